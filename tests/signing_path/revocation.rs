//! Revocation end to end: the operator's command, the endpoint of each replica, the CRL as OpenSSL sees it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use der::{DecodePem, Encode};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, SerialNumber};
use serde_json::Value;
use testkit::{
    daemon::{Ask, Daemon, IDENTITY, Site},
    plug_in::PlugIn,
    wait::{eventually, eventually_blocking},
};
use tonic::Code;
use x509_cert::Certificate;

/// A CA with `[revocation]` in a directory that others may share.
struct Revoking {
    site: Site,
    plug_in: PlugIn,
    store: PathBuf,
}

impl Revoking {
    fn new() -> Self {
        let plug_in = PlugIn::intermediate();
        let site = Site::new(&plug_in);
        let store = site.softhsm.path().join("shared");
        fs::create_dir(&store).unwrap();
        Self { site, plug_in, store }
    }

    /// The section, with the CRL in the site's directory.
    fn section(&self, site: &Site) -> String {
        format!(
            "[revocation]\nstore = {{ file = \"{}\" }}\nenabled = true\ncrl_file = \"{}\"\n",
            self.store.join("revocations.json").display(),
            crl_file(site).display()
        )
    }

    /// The root's CRL, which its owner issues.
    fn root_crl(&self) -> String {
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2025, 1, 1),
            next_update: rcgen::date_time_ymd(2045, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(self.plug_in.root.as_ref().unwrap()).unwrap().pem().unwrap()
    }

    fn serve(&self) -> Daemon {
        self.site.serve(&self.section(&self.site))
    }

    /// Runs `revoke` with these words and `--yes`.
    fn try_revoke(&self, words: &str) -> Output {
        let config = self.site.softhsm.path().join("istio-hsm-ca.toml");
        let mut arguments = vec!["--output", "json", "revoke", "--config", config.to_str().unwrap(), "--yes"];
        arguments.extend(words.split_whitespace());
        self.site.run(&arguments)
    }

    fn revoke(&self, words: &str) -> Value {
        let output = self.try_revoke(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, words: &str, reason: &str) {
        let output = self.try_revoke(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(reason), "{words}: {text}");
    }
}

fn crl_file(site: &Site) -> PathBuf {
    site.softhsm.path().join("ca-crl.pem")
}

/// A workload's certificate with its chain, and its key.
struct Workload {
    chain: String,
    key: String,
    csr: String,
    serial: String,
}

async fn workload(daemon: &Daemon) -> Workload {
    let ask = daemon.ask();
    let (key, csr) = (ask.key_pem.clone(), ask.csr.clone());
    let reply = daemon.send(ask).await.unwrap();
    let leaf = Certificate::from_pem(&reply[0]).unwrap();
    // Without the sign byte, as OpenSSL prints it.
    let serial = leaf.tbs_certificate().serial_number().as_bytes().iter().skip_while(|byte| **byte == 0);
    let serial = serial.map(|byte| format!("{byte:02x}")).collect();
    Workload { chain: reply[..reply.len() - 1].concat(), key, csr, serial }
}

impl Workload {
    /// The code with which the daemon answers a renewal by the certificate on a new connection.
    async fn renews(&self, daemon: &Daemon) -> Code {
        let channel = daemon.connect(Some((&self.chain, &self.key))).await;
        code(Ask::new(IDENTITY).send(channel).await)
    }
}

fn code(result: Result<Vec<String>, tonic::Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Waits for a CRL in the file that has, or lacks, a serial number; returns OpenSSL's text of it.
fn crl_text(file: &Path, serial: &str, expected: bool) -> String {
    let text = || {
        let output = Command::new("openssl").args(["crl", "-noout", "-text", "-in"]).arg(file).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let wanted = format!("Serial Number: {}", serial.to_uppercase());
    eventually_blocking("the CRL follows", || {
        let text = text();
        text.contains("Certificate Revocation List") && text.contains(&wanted) == expected
    });
    text()
}

/// `openssl verify` with a CRL of every CA.
fn verified(revoking: &Revoking, directory: &Path, workload: &Workload) -> (bool, String) {
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let root_crl = revoking.root_crl();
    let own = fs::read_to_string(crl_file(&revoking.site)).unwrap();
    let crls = file("crls.pem", &format!("{own}{root_crl}"));
    let roots = file("root.pem", &revoking.plug_in.root_cert);
    let (leaf, chain) = (file("leaf.pem", &workload.chain), file("chain.pem", &revoking.plug_in.cert_chain));
    let arguments =
        ["verify", "-x509_strict", "-crl_check_all", "-CAfile", &roots, "-untrusted", &chain, "-CRLfile", &crls, &leaf];
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_certificate_is_refused_at_once_and_is_on_the_crl() {
    let revoking = Revoking::new();
    let daemon = revoking.serve();
    let (revoked, other) = (workload(&daemon).await, workload(&daemon).await);
    // Before any revocation there is a CRL without entries.
    let text = crl_text(&crl_file(&revoking.site), &revoked.serial, false);
    assert!(text.contains("No Revoked Certificates.") && text.contains("X509v3 CRL Number"), "{text}");
    let open = daemon.connect(Some((&revoked.chain, &revoked.key))).await;
    assert_eq!(code(Ask::new(IDENTITY).send(open.clone()).await), Code::Ok);

    let dry = revoking.revoke(&format!("--serial {} --reason keyCompromise --dry-run", revoked.serial));
    assert_eq!((&dry["revision"], dry["certificates"].as_array().unwrap().len()), (&Value::Null, 1), "{dry}");
    assert!(!revoking.store.join("revocations.json").exists() || revoked.renews(&daemon).await == Code::Ok);
    let done = revoking.revoke(&format!("--serial {} --reason keyCompromise", revoked.serial));
    assert_eq!(done["certificates"][0]["names"][0], format!("URI:{IDENTITY}"), "{done}");

    // On a connection that was open before, also with a JWT; on a new one, the handshake fails.
    eventually("the open connection is refused", async || {
        code(Ask::new(IDENTITY).send(open.clone()).await) == Code::Unauthenticated
    })
    .await;
    assert_eq!(code(daemon.ask().send(open).await), Code::Unauthenticated, "a JWT does not help its holder");
    assert_ne!(revoked.renews(&daemon).await, Code::Ok);
    assert_eq!(other.renews(&daemon).await, Code::Ok, "another certificate of the same workload");
    // A JWT gets a certificate for another key, and none for the revoked certificate's.
    assert_eq!(code(daemon.send(daemon.ask()).await), Code::Ok);
    assert_eq!(code(daemon.send(daemon.ask().csr(revoked.csr.as_str())).await), Code::PermissionDenied);
    daemon.wait_line(|line| line["kind"] == "revoked");

    let text = crl_text(&crl_file(&revoking.site), &revoked.serial, true);
    assert!(text.contains("Key Compromise") && !text.contains(&other.serial.to_uppercase()), "{text}");
    let scratch = tempfile::tempdir().unwrap();
    let (good, text) = verified(&revoking, scratch.path(), &other);
    assert!(good, "{text}");
    let (good, text) = verified(&revoking, scratch.path(), &revoked);
    assert!(!good && text.contains("certificate revoked"), "{text}");

    // All of it is in the log, and no signature is without a record.
    let shown = revoking.site.run(&["log", "show", "--directory", revoking.site.log().to_str().unwrap()]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("revoked by ") && shown.contains("keyCompromise") && shown.contains("CRL "), "{shown}");
    let metrics = daemon.get("/metrics").1;
    assert!(metrics.contains("istio_hsm_ca_excess_signatures 0"), "{metrics}");
    let (_, ready) = daemon.get("/readyz");
    assert!(ready.contains("revocation: ok (revision 1)") && ready.contains("CRL signing: ok (number "), "{ready}");
    drop(daemon);
    let report = revoking.site.verified_log();
    assert!(report["intents"].as_u64().unwrap() >= 6, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn block_denies_further_certificates_on_every_replica_until_it_is_lifted() {
    let revoking = Revoking::new();
    let other_site = revoking.site.duplicate();
    let daemon = revoking.serve();
    let other = other_site.serve(&revoking.section(&other_site));
    let held = workload(&other).await;
    let done = revoking.revoke("--namespace demo --no-revoke");
    assert_eq!(done["block"], "namespace=demo", "{done}");
    for daemon in [&daemon, &other] {
        eventually("the block is applied", async || code(daemon.send(daemon.ask()).await) == Code::PermissionDenied)
            .await;
        let elsewhere = Ask::new("spiffe://cluster.local/ns/shop/sa/web");
        let token = revoking.site.token("shop", "web");
        assert_eq!(code(daemon.send(elsewhere.token(&token)).await), Code::Ok, "another namespace");
    }
    assert_eq!(held.renews(&other).await, Code::PermissionDenied, "the certificate stays valid, and is not renewed");
    let list = revoking.revoke("--list");
    let id = list["blocks"][0]["id"].as_u64().unwrap();
    revoking.refused(&format!("--unblock {}", id + 1), "there is no block");
    revoking.revoke(&format!("--unblock {id}"));
    for daemon in [&daemon, &other] {
        eventually("the block is lifted", async || code(daemon.send(daemon.ask()).await) == Code::Ok).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_is_revoked_with_all_its_certificates_and_a_hold_is_released() {
    let revoking = Revoking::new();
    let daemon = revoking.serve();
    let (one, another) = (workload(&daemon).await, workload(&daemon).await);
    let done = revoking.revoke(&format!("--identity {IDENTITY} --no-block --reason certificateHold"));
    assert_eq!(done["certificates"].as_array().unwrap().len(), 2, "{done}");
    for workload in [&one, &another] {
        crl_text(&crl_file(&revoking.site), &workload.serial, true);
        assert_ne!(workload.renews(&daemon).await, Code::Ok);
    }
    revoking.refused("--release --serial 0a", "is not revoked");
    revoking.revoke(&format!("--release --serial {}", one.serial));
    crl_text(&crl_file(&revoking.site), &one.serial, false);
    assert_eq!(one.renews(&daemon).await, Code::Ok);
    assert_ne!(another.renews(&daemon).await, Code::Ok);
    revoking.revoke(&format!("--serial {} --reason keyCompromise", another.serial));
    revoking.refused(&format!("--release --serial {}", another.serial), "was revoked for good (keyCompromise)");
    revoking.refused(&format!("--serial {} --reason keyCompromise", another.serial), "nothing would change");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_store_changes_nothing_and_keeps_a_restarted_daemon_unready() {
    let revoking = Revoking::new();
    let daemon = revoking.serve();
    let revoked = workload(&daemon).await;
    revoking.revoke(&format!("--serial {}", revoked.serial));
    crl_text(&crl_file(&revoking.site), &revoked.serial, true);
    let file = revoking.store.join("revocations.json");
    let content = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    eventually_blocking("the loss is reported", || daemon.get("/readyz").1.contains("has revision 0"));
    assert_eq!(daemon.get("/readyz").0, 200, "it issues all the same");
    assert_ne!(revoked.renews(&daemon).await, Code::Ok);
    drop(daemon);
    let daemon = revoking.site.spawn(&revoking.section(&revoking.site));
    eventually_blocking("the loss is reported", || {
        let (status, text) = daemon.get("/readyz");
        status == 503 && text.contains("this replica has applied revision 1") && text.contains("applied-revocations")
    });
    assert!(!file.exists(), "a new document would begin with nothing revoked");
    fs::write(&file, content).unwrap();
    eventually_blocking("the store is back", || daemon.get("/readyz").0 == 200);
    assert_ne!(revoked.renews(&daemon).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_that_no_log_has_is_revoked_by_its_serial_and_expiry() {
    let revoking = Revoking::new();
    let daemon = revoking.serve();
    revoking.refused("--serial 0abc", "name the log that has it by --log, or its notAfter by --expires");
    revoking.refused("--serial 0abc --expires 2020-01-01", "has expired");
    revoking.refused("--namespace nowhere --no-block", "no certificate that is still valid matches");
    revoking.revoke("--serial 0abc --expires 2035-01-01 --reason superseded");
    let text = crl_text(&crl_file(&revoking.site), "0ABC", true);
    assert!(text.contains("Superseded"), "{text}");
    drop(daemon);
}

/// Two revocations by two clients at once, and the CRL numbers of two replicas.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_never_sign_two_crls_with_one_number() {
    let revoking = Revoking::new();
    let other_site = revoking.site.duplicate();
    let _one = revoking.serve();
    let _two = other_site.serve(&revoking.section(&other_site));
    for serial in 1..=4 {
        revoking.revoke(&format!("--serial {serial:x} --expires 2035-01-01"));
        for site in [&revoking.site, &other_site] {
            crl_text(&crl_file(site), &format!("{serial:02X}"), true);
        }
    }
    let numbers = |site: &Site| {
        let shown = site.run(&["--output", "json", "log", "show", "--directory", site.log().to_str().unwrap()]);
        let lines: Vec<Value> = serde_json::from_slice(&shown.stdout).unwrap();
        let crls = lines.iter().filter_map(|line| line["crl"]["number"].as_u64());
        crls.collect::<Vec<_>>()
    };
    let (one, two) = (numbers(&revoking.site), numbers(&other_site));
    assert!(one.len() >= 4 && two.len() >= 4, "{one:?} {two:?}");
    assert!(one.is_sorted() && two.is_sorted() && one.iter().all(|number| !two.contains(number)), "{one:?} {two:?}");
    let state = fs::read_to_string(revoking.store.join("revocations.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let last = one.iter().chain(&two).max().copied();
    assert_eq!(state["crl"]["number"].as_u64(), last, "{state}");
    // What was signed is what the CA's certificate says.
    let ca = Certificate::from_pem(fs::read(revoking.site.bundle().join("ca-cert.pem")).unwrap()).unwrap();
    let issuer = ca.tbs_certificate().subject().to_der().unwrap();
    let crl = fs::read(crl_file(&revoking.site)).unwrap();
    let crl = x509_cert::crl::CertificateList::<x509_cert::certificate::Rfc5280>::from_pem(crl).unwrap();
    assert_eq!(crl.tbs_cert_list.issuer.to_der().unwrap(), issuer);
}

#[tokio::test(flavor = "multi_thread")]
async fn crls_are_complete_when_the_roots_crl_is_there() {
    let revoking = Revoking::new();
    let root_crl = revoking.site.softhsm.path().join("root.crl");
    let section = format!("{}root_crl_files = [\"{}\"]\n", revoking.section(&revoking.site), root_crl.display());
    let daemon = revoking.site.serve(&section);
    let line = |wanted: &str| {
        eventually_blocking(wanted, || {
            daemon.get("/readyz").1.lines().any(|line| line.starts_with("CRLs: ") && line.contains(wanted))
        });
    };
    let check = || {
        let config = revoking.site.softhsm.path().join("istio-hsm-ca.toml");
        let output = revoking.site.run(&["check", "--config", config.to_str().unwrap()]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    line("root.crl: is missing; put it there, or correct its path in the configuration");
    assert!(daemon.get("/metrics").1.contains("istio_hsm_ca_crls_publishable 0"));
    assert!(check().contains("root.crl: is missing"), "{}", check());

    fs::write(&root_crl, revoking.root_crl()).unwrap();
    line("ok (the CA CN=Intermediate CA,O=Istio: number ");
    line("; the root CN=Root CA,O=Istio: number 1 until 2045-01-01T00:00:00Z, 0 entries");
    let metrics = daemon.get("/metrics").1;
    for wanted in [
        "istio_hsm_ca_crls_publishable 1",
        "istio_hsm_ca_crls_enabled 1",
        "istio_hsm_ca_crl_next_update_timestamp_seconds{of=\"others\"} 2366841600",
        "istio_hsm_ca_crl_entries{of=\"ca\"} 0",
    ] {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }
    assert!(daemon.status_page().contains("CRL number 1 until 2045-01-01T00:00:00Z, 0 entries"));
    let checked = check();
    assert!(
        checked.contains("the root CN=Root CA,O=Istio: number 1 until 2045-01-01T00:00:00Z, 0 entries"),
        "{checked}"
    );
    assert!(checked.contains("the CA CN=Intermediate CA,O=Istio: the daemon signs its CRL"), "{checked}");

    fs::write(&root_crl, "").unwrap();
    line("has no `X509 CRL` block");
    fs::write(&root_crl, revoking.root_crl()).unwrap();
    line("ok (");
}
