//! Every rejection and its gRPC code, as seen by an agent.

use std::{process::Command, time::Duration};

use bench::agent::{KeyKind, WorkloadKey};
use rcgen::{CertificateParams, DistinguishedName, SanType};
use tonic::Code;

use testkit::{
    daemon::{Ask, Daemon, IDENTITY, ISSUER, SERVER, Site, issuer, mint, new_issuer_key},
    plug_in::{PlugIn, p256},
    softhsm::PIN,
};

/// Codes that Istio's agent retries (pkg/security/retry.go).
const RETRIED: [Code; 6] = [
    Code::Cancelled,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::Aborted,
    Code::Internal,
    Code::Unavailable,
];

/// A request with these names and this common name.
fn csr(names: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.serialize_request(&p256()).unwrap().pem().unwrap()
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// A CSR with an RSA key of 1024 bits, made by openssl, since the libraries here refuse to.
fn weak() -> String {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("openssl")
        .args(["req", "-new", "-newkey", "rsa:1024", "-nodes", "-keyout", "key", "-subj", "/", "-sha256"])
        .args(["-addext", &format!("subjectAltName=critical,URI:{IDENTITY}")])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A CSR with one bit of its signature changed.
fn forged() -> String {
    let request = WorkloadKey::generate(KeyKind::P256).unwrap().request(IDENTITY).unwrap();
    let (label, mut der) = der::pem::decode_vec(request.as_bytes()).unwrap();
    *der.last_mut().unwrap() ^= 1;
    pki::pem::encode(label, &der)
}

fn cases(site: &Site, daemon: &Daemon) -> Vec<(&'static str, Ask, Code)> {
    let now = process::clock::now();
    let ask = || daemon.ask();
    let with = |token: &str| Ask::new(IDENTITY).token(token);
    let mint = |issuer: &_, at| mint(issuer, "demo", "httpbin", at);
    let stranger = issuer(&new_issuer_key(), ISSUER, "istio-ca");
    let day = Duration::from_secs(86_400);
    let mut broken = daemon.token.clone();
    broken.pop();
    vec![
        ("no token", ask().without("authorization"), Code::Unauthenticated),
        ("another scheme", ask().header("authorization", format!("Basic {}", daemon.token)), Code::Unauthenticated),
        ("no token after the scheme", with(""), Code::Unauthenticated),
        ("a broken token", with(&broken), Code::Unauthenticated),
        ("wrong audience", with(&mint(&site.issuer_as(ISSUER, "vault"), now)), Code::Unauthenticated),
        ("expired token", with(&mint(&site.issuer, now - day)), Code::Unauthenticated),
        ("token of tomorrow", with(&mint(&site.issuer, now + day)), Code::Unauthenticated),
        ("unknown issuer", with(&mint(&site.issuer_as("https://other.test", "istio-ca"), now)), Code::Unauthenticated),
        ("foreign key", with(&mint(&stranger, now)), Code::Unauthenticated),
        ("another cluster", ask().header("clusterid", "elsewhere"), Code::Unauthenticated),
        (
            "somebody else's name",
            ask().csr(csr(vec![uri("spiffe://cluster.local/ns/demo/sa/other")])),
            Code::PermissionDenied,
        ),
        (
            "a second name",
            ask().csr(csr(vec![uri(IDENTITY), uri("spiffe://cluster.local/ns/demo/sa/other")])),
            Code::PermissionDenied,
        ),
        (
            "another trust domain",
            ask().csr(csr(vec![uri("spiffe://other/ns/demo/sa/httpbin")])),
            Code::PermissionDenied,
        ),
        ("a DNS name", ask().csr(csr(vec![SanType::DnsName(SERVER.try_into().unwrap())])), Code::PermissionDenied),
        (
            "an address",
            ask().csr(csr(vec![uri(IDENTITY), SanType::IpAddress([127, 0, 0, 1].into())])),
            Code::PermissionDenied,
        ),
        ("a signer", ask().metadata("CertSigner", "other"), Code::InvalidArgument),
        (
            "impersonation",
            ask().metadata("ImpersonatedIdentity", "spiffe://cluster.local/ns/demo/sa/other"),
            Code::PermissionDenied,
        ),
        ("too long a life", ask().validity(91 * 86_400), Code::InvalidArgument),
        ("the longest life", ask().validity(i64::MAX), Code::InvalidArgument),
        ("a weak key", ask().csr(weak()), Code::InvalidArgument),
        ("a broken self-signature", ask().csr(forged()), Code::InvalidArgument),
        ("no request", ask().csr(""), Code::InvalidArgument),
        ("garbage", ask().csr("garbage"), Code::InvalidArgument),
        (
            "garbage in PEM",
            ask().csr("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"),
            Code::InvalidArgument,
        ),
        ("too large a request", ask().csr("x".repeat(20_000)), Code::InvalidArgument),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code_and_leaves_its_reason_in_the_log() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let channel = daemon.connect(None).await;
    let mut secrets = vec![PIN.to_owned()];
    for (name, ask, code) in cases(&site, &daemon) {
        secrets.extend(ask.headers.iter().filter_map(|(_, value)| value.strip_prefix("Bearer ").map(str::to_owned)));
        let status = ask.send(channel.clone()).await.expect_err(name);
        assert_eq!(status.code(), code, "{name}: {status}");
        assert!(!RETRIED.contains(&status.code()), "{name}");
        let (_, id) = status.message().split_once("(request ").unwrap_or_else(|| panic!("{name}: {status}"));
        let id = id.strip_suffix(')').unwrap();
        let line = daemon.wait_line(|line| line["request_id"] == id);
        assert_eq!(line["message"], "refused", "{name}");
        let reason = line["reason"].as_str().unwrap();
        assert!(reason.len() > 10, "{name}: {reason}");
        let known = line["identity"].as_str();
        assert_eq!(known, (code != Code::Unauthenticated).then_some(IDENTITY), "{name}");
    }
    daemon.ask().send(channel.clone()).await.expect("after all that, a good request has its answer");
    // A message above the limit never reaches the service. Without the certificate just issued, its first part could exceed
    // what an unauthenticated connection may send.
    let status = daemon.ask().csr("x".repeat(1 << 20)).send(channel.clone()).await.unwrap_err();
    assert!(!RETRIED.contains(&status.code()), "{status}");
    daemon.ask().send(channel).await.expect("after a message that is too long, a good request has its answer");
    let text = daemon.stderr();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        assert!(!text.contains(secret.as_str()), "a secret in the log: {secret}");
        if let Some((_, signature)) = secret.rsplit_once('.') {
            assert!(!text.contains(signature), "a token's signature in the log");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_above_its_rate_limit_is_asked_to_retry() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("[rate_limits]\nper_identity = 1\nper_identity_burst = 2");
    let channel = daemon.connect(None).await;
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(daemon.ask().send(channel.clone()).await.map_or_else(|status| status.code(), |_| Code::Ok));
    }
    assert_eq!(codes[..2], [Code::Ok, Code::Ok]);
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    let other = Ask::new("spiffe://cluster.local/ns/demo/sa/other").token(&site.token("demo", "other"));
    other.send(channel).await.expect("another identity has a budget of its own");
}
