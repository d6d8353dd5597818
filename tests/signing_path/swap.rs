//! A new bundle is applied while requests are in flight; an invalid one is rejected, and the old one stays in use.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use testkit::wait::eventually;

use serde_json::Value;

use crate::judges::judge;
use rcgen::{CertifiedIssuer, SerialNumber};
use testkit::{
    daemon::{Ask, Daemon, Site},
    plug_in::{PlugIn, authority, new_root, p256},
};

const CONNECTIONS: usize = 10;
const STREAMS: usize = 8;

/// Another CA issued by another root; its roots file has both roots, as during a root rotation.
fn successor(of: &PlugIn) -> PlugIn {
    let mut plug_in = PlugIn::below(new_root("Next root"), p256(), true);
    plug_in.root_cert = format!("{}{}", of.root_cert, plug_in.root_cert);
    plug_in
}

fn refused(daemon: &Daemon, because: &str) -> Value {
    daemon.wait_line(|line| {
        line["message"].as_str().is_some_and(|text| text.contains("the new bundle is refused"))
            && line["error"].as_str().is_some_and(|error| error.contains(because))
    })
}

fn taken(daemon: &Daemon) -> usize {
    daemon.lines().iter().filter(|line| line["message"] == "the new bundle is in use").count()
}

async fn issuer_in_use(daemon: &Daemon) -> String {
    daemon.send(daemon.ask()).await.unwrap()[1].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_during_a_swap_and_none_is_lost() {
    let first = PlugIn::intermediate();
    let site = Site::new(&first);
    // One thread on all machines; the other tests use one per core.
    let daemon = site.serve("[listen]\nthreads = 1");
    let second = successor(&first);
    let done = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = daemon.connect(None).await;
        for _ in 0..STREAMS {
            let (channel, done, token) = (channel.clone(), Arc::clone(&done), daemon.token.clone());
            tasks.push(tokio::spawn(async move {
                let mut replies = Vec::new();
                while !done.load(Ordering::Relaxed) || replies.len() * CONNECTIONS * STREAMS < 1000 {
                    replies.push(Ask::new(testkit::daemon::IDENTITY).token(&token).send(channel.clone()).await);
                }
                replies
            }));
        }
    }
    // The key is imported into the same token while it signs, the files into the same directory.
    tokio::task::block_in_place(|| {
        daemon.wait_line(|line| line["message"] == "issued");
        site.import(&second);
        daemon.wait_line(|line| line["message"] == "the new bundle is in use");
    });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    done.store(true, Ordering::Relaxed);

    let mut by_bundle: BTreeMap<&str, usize> = BTreeMap::new();
    let mut judged = BTreeMap::new();
    for task in tasks {
        for reply in task.await.unwrap() {
            let reply = reply.expect("a request was lost");
            let [_, ca, roots] = reply.as_slice() else { panic!("{reply:?}") };
            let bundle = if *ca == first.ca_cert { "first" } else { "second" };
            let plug_in = if bundle == "first" { &first } else { &second };
            assert_eq!((ca, roots), (&plug_in.ca_cert, &plug_in.root_cert), "a reply from two bundles");
            *by_bundle.entry(bundle).or_default() += 1;
            let signed_by = issuer_of(&reply[0]);
            assert_eq!(signed_by, issuer_of_key(plug_in), "{bundle}: the leaf is the other CA's");
            judged.insert(bundle, reply);
        }
    }
    assert!(by_bundle.values().sum::<usize>() >= 1000 && by_bundle.len() == 2, "{by_bundle:?}");
    for (bundle, reply) in judged {
        judge(bundle, &reply, process::clock::now());
    }
    // The serving certificate is renewed, as istiod's is.
    let mut later = daemon;
    later.roots = second.root_cert.clone();
    assert_eq!(issuer_in_use(&later).await, second.ca_cert);
}

/// The authority key identifier: both CAs here have the same name.
fn issuer_of(leaf: &str) -> Vec<u8> {
    extension(leaf, "2.5.29.35")[4..].to_vec()
}

fn issuer_of_key(plug_in: &PlugIn) -> Vec<u8> {
    extension(&plug_in.ca_cert, "2.5.29.14")[2..].to_vec()
}

fn extension(pem: &str, oid: &str) -> Vec<u8> {
    use der::DecodePem;
    let certificate = x509_cert::Certificate::from_pem(pem).unwrap();
    let extensions = certificate.tbs_certificate().extensions().unwrap();
    let found = extensions.iter().find(|extension| extension.extn_id.to_string() == oid).unwrap();
    found.extn_value.as_bytes().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_bundle_leaves_the_old_one_in_use() {
    let first = PlugIn::intermediate();
    let site = Site::new(&first);
    let daemon = site.serve("");

    fs::write(site.bundle().join("ca-cert.pem"), "-----BEGIN CERTIFICATE-----\nnothing\n").unwrap();
    let line = refused(&daemon, "ca-cert.pem");
    assert_eq!(line["level"], "ERROR");
    assert_eq!(issuer_in_use(&daemon).await, first.ca_cert);

    fs::remove_file(site.bundle().join("ca-cert.pem")).unwrap();
    refused(&daemon, "is missing");
    assert_eq!(issuer_in_use(&daemon).await, first.ca_cert);

    // Its key is in the token, but its only root is not the mesh's.
    let mut other = successor(&first);
    other.root_cert = other.root.as_ref().unwrap().pem();
    site.import_to(&other, &site.softhsm.path().join("aside"));
    other.write_public(&site.bundle());
    refused(&daemon, "lacks a root");
    assert_eq!(issuer_in_use(&daemon).await, first.ca_cert);

    // The key in use survives even a new token host, which reads the bundle again.
    for broken in ["", "-----BEGIN CERTIFICATE-----\nnothing\n"] {
        if !broken.is_empty() {
            fs::write(site.bundle().join("ca-cert.pem"), broken).unwrap();
        }
        let hosts = || daemon.stderr().matches("the token host is logged in").count();
        let before = hosts();
        for host in crate::ending::children(daemon.pid()) {
            nix::sys::signal::kill(host, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        daemon.wait_line(|_| hosts() > before);
        daemon.wait_ready();
        assert_eq!(issuer_in_use(&daemon).await, first.ca_cert);
    }

    let (status, body) = daemon.get("/readyz");
    assert_eq!(status, 200, "a refused bundle stops nothing: {body}");
    let reported =
        body.lines().find(|line| line.starts_with("bundle: the new bundle in ")).unwrap_or_else(|| panic!("{body}"));
    assert!(
        reported.contains("is refused and the previous one stays in use, but") && reported.contains("restart"),
        "{reported}"
    );

    first.write_public(&site.bundle());
    assert_eq!(issuer_in_use(&daemon).await, first.ca_cert);
    assert_eq!(taken(&daemon), 0);
    eventually("the refused bundle is gone", async || daemon.get("/readyz").1.contains("bundle: ok\n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_imported_later_is_found_without_a_file_event() {
    let first = PlugIn::intermediate();
    let site = Site::new(&first);
    let mut daemon = site.serve("");
    let second = successor(&first);
    second.write_public(&site.bundle());
    refused(&daemon, "is not in every token");
    assert_eq!(issuer_in_use(&daemon).await, first.ca_cert);
    site.import_to(&second, &site.softhsm.path().join("aside"));
    daemon.wait_line(|line| line["message"] == "the new bundle is in use");
    // The serving certificate is renewed at once.
    daemon.roots.clone_from(&second.root_cert);
    assert_eq!(issuer_in_use(&daemon).await, second.ca_cert);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_starts_before_the_import_is_ready_after_it() {
    let plug_in = PlugIn::intermediate();
    let site = Site::bare();
    plug_in.write_public(&site.bundle());
    let daemon = site.spawn("");
    let (status, body) = daemon.get("/readyz");
    assert_eq!(status, 503, "{body}");
    daemon.wait_line(|line| line["message"].as_str().is_some_and(|text| text.contains("key was not found")));
    site.import_to(&plug_in, &site.softhsm.path().join("aside"));
    daemon.wait_ready();
    assert_eq!(issuer_in_use(&daemon).await, plug_in.ca_cert);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_may_be_dropped_where_that_is_allowed() {
    let first = PlugIn::intermediate();
    let site = Site::new(&first);
    let mut daemon = site.serve("[ca]\nallow_root_removal = true");
    let mut second = successor(&first);
    second.root_cert = second.root.as_ref().unwrap().pem();
    site.import(&second);
    daemon.wait_line(|line| line["message"] == "the new bundle is in use");
    // The serving certificate is renewed; otherwise clients with only the new root could not connect.
    daemon.roots = second.root_cert.clone();
    let tls = bench::agent::Tls::new(daemon.roots.as_bytes(), testkit::daemon::SERVER, None).unwrap();
    eventually("the serving certificate is still the old CA's", async || {
        bench::agent::connect(daemon.address, &tls).await.is_ok()
    })
    .await;
    assert_eq!(issuer_in_use(&daemon).await, second.ca_cert);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_refuses_what_a_reload_refuses_and_says_what_to_do() {
    let first = PlugIn::intermediate();
    let site = Site::new(&first);
    let daemon = site.serve("");
    daemon.stop();

    fs::write(site.bundle().join("ca-cert.pem"), "nothing").unwrap();
    let error = site.does_not_start("");
    for words in ["the bundle in", "is refused", "ca-cert.pem", "put the files back", "`istio-hsm-ca check`"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    first.write_public(&site.bundle());
    site.serve("").stop();

    // Another CA whose key is in the token, but without the root that workloads trust.
    let mut other = successor(&first);
    let both = other.root_cert.clone();
    other.root_cert = other.root.as_ref().unwrap().pem();
    site.import(&other);
    let error = site.does_not_start("");
    for words in ["root-cert.pem in", "lacks a root that was in use", "roots-in-use.pem", "allow_root_removal = true"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    let check = site.run(&["check", "--config", site.configure("").to_str().unwrap()]);
    let text = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
    assert!(text.contains("lacks a root that was in use"), "{text}");
    site.serve("[ca]\nallow_root_removal = true").stop();
    // Once permitted, the new roots are those in use.
    site.serve("").stop();
    other.root_cert = both;
    other.write_public(&site.bundle());
    site.serve("").stop();
}

/// A CA and its root with serial numbers of this content.
fn numbered(serial: &[u8]) -> PlugIn {
    let mut params = [authority("Root CA"), authority("Intermediate CA")];
    params.iter_mut().for_each(|params| params.serial_number = Some(SerialNumber::from_slice(serial)));
    let [root, mut ca] = params;
    ca.use_authority_key_identifier_extension = true;
    let root = CertifiedIssuer::self_signed(root, p256()).unwrap();
    let ca = CertifiedIssuer::signed_by(ca, p256(), &root).unwrap();
    let (ca_cert, root_cert) = (ca.pem(), root.pem());
    PlugIn { root: Some(root), ca, cert_chain: ca_cert.clone(), ca_cert, root_cert }
}

/// RFC 5280, section 4.1.2.2 allows 20 octets, and no client minds more. The second one has 20 without the leading zero.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_judges_a_serial_number_of_21_octets_alike() {
    for (serial, is_warned) in [(vec![0x7f; 21], true), (vec![0xff; 20], false)] {
        let first = PlugIn::intermediate();
        let site = Site::new(&first);
        let second = numbered(&serial);
        let [made, copy] = ["made", "copy"].map(|name| site.softhsm.path().join(name));
        second.write(&made);
        let (from, uri, bundle) = (made.to_str().unwrap(), site.uri(), copy.to_str().unwrap());
        let judged = |arguments: &[&str]| {
            let output = site.run(arguments);
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{arguments:?}: {text}");
            let warned = text.contains("has a serial number longer than the 20 octets of RFC 5280");
            assert_eq!(warned, is_warned, "{arguments:?}: {text}");
        };
        let import = ["import", "--from", from, "--token", &uri, "--bundle", bundle];
        judged(&[&import[..], &["--dry-run"]].concat());
        judged(&import);
        judged(&import);
        judged(&["install", "--from", from, "--token", &uri, "--bundle", bundle]);
        judged(&["adopt", "--from", from, "--token", &uri, "--bundle", bundle]);
        // It shows keys and certificates, and no warnings.
        let view = site.run(&["inspect", "--token", &uri, "--bundle", bundle, "--output", "json"]);
        let view: Value = serde_json::from_slice(&view.stdout).unwrap();
        assert_eq!(view["bundle"]["key_in_token"], true, "{view}");

        // A reload, and a start.
        let warned = |daemon: &Daemon| {
            let is_it =
                |line: &Value| line["warning"].as_str().is_some_and(|text| text.contains("has a serial number"));
            assert_eq!(daemon.lines().iter().any(is_it), is_warned, "{}", daemon.stderr());
        };
        let mut daemon = site.serve("");
        second.write_public(&site.bundle());
        fs::write(site.bundle().join("root-cert.pem"), format!("{}{}", first.root_cert, second.root_cert)).unwrap();
        daemon.wait_line(|line| line["message"] == "the new bundle is in use");
        daemon.roots = site.roots();
        judge("reloaded", &daemon.send(daemon.ask()).await.unwrap(), process::clock::now());
        warned(&daemon);
        daemon.stop();
        judged(&["check", "--config", site.configure("").to_str().unwrap()]);
        let daemon = site.serve("");
        assert_eq!(issuer_in_use(&daemon).await, second.ca_cert);
        warned(&daemon);
    }
}
