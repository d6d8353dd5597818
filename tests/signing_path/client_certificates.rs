//! Renewal by client certificate: which certificates are accepted, and for how long.

use std::{fs, time::Duration};
use testkit::wait::eventually;

use bench::agent::{self, Tls};
use nix::sys::signal::Signal;
use tonic::Code;

use testkit::{
    daemon::{Ask, Daemon, IDENTITY, SERVER, Site},
    plug_in::{PlugIn, leaf},
};

/// Sends a request with only a client certificate.
async fn renew(daemon: &Daemon, client: (&str, &str)) -> Code {
    code(Ask::new(IDENTITY).send(daemon.connect(Some(client)).await).await)
}

fn code(result: Result<Vec<String>, tonic::Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Obtains a certificate from the daemon, with its key.
async fn obtain(daemon: &Daemon, ask: Ask) -> (String, String) {
    let key = ask.key_pem.clone();
    let reply = daemon.send(ask).await.unwrap();
    (reply[..reply.len() - 1].concat(), key)
}

/// Sends SIGHUP and waits until the files are reloaded.
fn reload(daemon: &Daemon) {
    let read =
        |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains("reloaded the denylist"));
    let reloads = || daemon.lines().iter().filter(|line| read(line)).count();
    let before = reloads();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_line(|_| reloads() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_denylist_is_read_again_on_sighup() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let ask = daemon.ask();
    let csr = ask.csr.clone();
    let (certificate, key) = obtain(&daemon, ask).await;
    let client = (certificate.as_str(), key.as_str());
    let channel = daemon.connect(Some(client)).await;
    assert_eq!(code(Ask::new(IDENTITY).send(channel.clone()).await), Code::Ok);
    let chain_and_key = Some((certificate.as_bytes(), key.as_bytes()));
    let resuming = Tls::new(daemon.roots.as_bytes(), SERVER, chain_and_key).unwrap().resuming();
    let renew_resumed =
        async || code(Ask::new(IDENTITY).send(agent::connect(daemon.address, &resuming).await.unwrap()).await);
    assert_eq!(renew_resumed().await, Code::Ok);

    let spki = {
        use der::{DecodePem, Encode};
        let certificate = x509_cert::Certificate::from_pem(&certificate[..certificate.find("-----END").unwrap() + 25]);
        certificate.unwrap().tbs_certificate().subject_public_key_info().to_der().unwrap()
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    for (entry, with_another_key) in
        [(IDENTITY.to_owned(), Code::PermissionDenied), (format!("sha256:{hex}"), Code::Ok)]
    {
        site.deny(&entry);
        reload(&daemon);
        // On the connection that was opened before, too.
        assert_eq!(code(Ask::new(IDENTITY).send(channel.clone()).await), Code::Unauthenticated, "{entry}");
        assert_eq!(renew(&daemon, client).await, Code::Unauthenticated, "{entry}");
        assert_eq!(renew_resumed().await, Code::Unauthenticated, "a session ticket does not help: {entry}");
        let with_token = daemon.ask().send(channel.clone()).await;
        assert_eq!(code(with_token), with_another_key, "a JWT does not help a denied identity: {entry}");
        let same_key = daemon.ask().csr(csr.as_str()).send(channel.clone()).await;
        assert_eq!(code(same_key), Code::PermissionDenied, "nor a denied key: {entry}");
        daemon.wait_line(|line| line["kind"] == "denylist" && line["reason"].as_str().unwrap().starts_with(&entry));
    }
    // A malformed list is not accepted, and the previous one stays in use.
    site.deny("nonsense");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_line(|line| line["message"].as_str().is_some_and(|text| text.contains("could not be reloaded")));
    assert_eq!(renew(&daemon, client).await, Code::Unauthenticated);
    site.deny("");
    reload(&daemon);
    assert_eq!(renew(&daemon, client).await, Code::Ok);
    written_slowly(&site, &daemon);
    // A change is also detected without a signal.
    eventually("the changed denylist is applied", async || renew(&daemon, client).await == Code::Unauthenticated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denylist_for_client_certificates_alone_leaves_jwts_to_their_issuers() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("[auth.client_certificate]\ndenylist_scope = \"client_certificates\"");
    let (certificate, key) = obtain(&daemon, daemon.ask()).await;
    site.deny(IDENTITY);
    reload(&daemon);
    assert_eq!(renew(&daemon, (&certificate, &key)).await, Code::Unauthenticated);
    assert_eq!(code(daemon.send(daemon.ask()).await), Code::Ok);
}

/// Writes the denylist in place in two halves, of which the first alone is no list: it is not read by halves.
fn written_slowly(site: &Site, daemon: &Daemon) {
    use std::io::Write;
    for _ in 0..20 {
        let errors = daemon.stderr().matches("could not be reloaded").count();
        let began = std::time::Instant::now();
        let mut file = fs::File::create(site.denylist()).unwrap();
        let (half, rest) = IDENTITY.split_at(20);
        file.write_all(half.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(80));
        file.write_all(rest.as_bytes()).unwrap();
        // A busy machine may have delayed the write: try once more.
        if began.elapsed() < Duration::from_millis(180) {
            std::thread::sleep(Duration::from_millis(1500));
            assert_eq!(daemon.stderr().matches("could not be reloaded").count(), errors, "an incomplete list was read");
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    panic!("this machine is too busy for this test");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_on_an_open_connection_proves_nothing_any_more() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let (certificate, key) = obtain(&daemon, daemon.ask().validity(12)).await;
    let channel = daemon.connect(Some((&certificate, &key))).await;
    assert_eq!(code(Ask::new(IDENTITY).send(channel.clone()).await), Code::Ok);
    tokio::time::sleep(Duration::from_secs(14)).await;
    let status = Ask::new(IDENTITY).send(channel.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    daemon.wait_line(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("expired")));
    assert_eq!(code(daemon.ask().send(channel).await), Code::Ok, "the same connection with a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_trusted_cas_are_accepted() {
    let plug_in = PlugIn::intermediate();
    let site = Site::new(&plug_in);
    let (previous, unknown) = (PlugIn::intermediate(), PlugIn::intermediate());
    site.configure("");
    let file = site.denylist().with_file_name("previous.pem");
    fs::write(&file, &previous.ca_cert).unwrap();
    let list = format!("[auth.client_certificate]\nprevious_ca_certificates = [\"{}\"]", file.display());
    let same = |_: &mut rcgen::CertificateParams| {};
    let years = |from, to| {
        move |params: &mut rcgen::CertificateParams| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        }
    };
    type Case = (&'static str, (String, String), Code, Code);
    let refused = Code::Unauthenticated;
    let cases: Vec<Case> = vec![
        ("ours", leaf(&plug_in.ca, IDENTITY, same), Code::Ok, Code::Ok),
        ("of the previous CA", leaf(&previous.ca, IDENTITY, same), refused, Code::Ok),
        ("of an unknown CA", leaf(&unknown.ca, IDENTITY, same), refused, refused),
        ("of the root itself", leaf(plug_in.root.as_ref().unwrap(), IDENTITY, same), refused, refused),
        ("a serving certificate", leaf(&plug_in.ca, SERVER, same), refused, refused),
        ("of another trust domain", leaf(&plug_in.ca, "spiffe://other/ns/demo/sa/httpbin", same), refused, refused),
        ("no workload's name", leaf(&plug_in.ca, "spiffe://cluster.local/other", same), refused, refused),
        ("expired", leaf(&plug_in.ca, IDENTITY, years(2025, 2026)), refused, refused),
        ("not yet valid", leaf(&plug_in.ca, IDENTITY, years(2040, 2044)), refused, refused),
        (
            "for servers alone",
            leaf(&plug_in.ca, IDENTITY, |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            }),
            refused,
            refused,
        ),
    ];
    for (more, configured) in [("", false), (list.as_str(), true)] {
        let daemon = site.serve(more);
        for (name, (certificate, key), without, with) in &cases {
            let client = (certificate.as_str(), key.as_str());
            assert_eq!(renew(&daemon, client).await, if configured { *with } else { *without }, "{name}, {configured}");
            // None of them fails the handshake or prevents authentication by JWT.
            let asked = daemon.ask().send(daemon.connect(Some(client)).await).await;
            assert_eq!(code(asked), Code::Ok, "{name} with a token");
        }
        daemon.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_certificate_needs_a_token_where_an_age_is_set() {
    let plug_in = PlugIn::intermediate();
    let site = Site::new(&plug_in);
    let daemon = site.serve("[auth.client_certificate]\nmax_age = '3600s'");
    let (certificate, key) = leaf(&plug_in.ca, IDENTITY, |_| {});
    assert_eq!(renew(&daemon, (&certificate, &key)).await, Code::Unauthenticated);
    let (certificate, key) = obtain(&daemon, daemon.ask()).await;
    assert_eq!(renew(&daemon, (&certificate, &key)).await, Code::Ok);
}
