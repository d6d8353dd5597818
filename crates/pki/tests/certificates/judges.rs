//! The programs that verify a leaf of ours in a mesh, or their libraries: OpenSSL, rustls-webpki (ztunnel), Go's
//! crypto/x509 (istiod, Istio's agent) and BoringSSL (Envoy). The latter two are in tests/chain-judges.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use istio_hsm_ca_pki::pem;
use process::clock;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, ExpirationPolicy, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

/// The version of grpcio, which is BoringSSL's here.
const GRPCIO: &str = "1.76.0";

/// What a peer sees of a workload, and the roots it trusts.
#[derive(Clone)]
pub struct Presented {
    /// DER.
    pub leaf: Vec<u8>,
    /// PEM of the leaf's private key.
    pub key: String,
    /// PEM of what follows the leaf in the handshake.
    pub sent: String,
    /// root-cert.pem.
    pub roots: String,
    /// PEM of the CRLs that the peer has; none where it does not check for revocation.
    pub crls: String,
}

impl Presented {
    fn leaf_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.leaf)
    }

    /// PEM of what is presented in a handshake.
    pub fn chain(&self) -> String {
        format!("{}{}", self.leaf_pem(), self.sent)
    }

    fn to_json(&self) -> String {
        let fields = [
            ("leaf", &self.leaf_pem()),
            ("key", &self.key),
            ("sent", &self.sent),
            ("roots", &self.roots),
            ("crls", &self.crls),
        ];
        serde_json::json!(
            fields
                .map(|(name, text)| (name.to_owned(), text.clone()))
                .into_iter()
                .collect::<std::collections::BTreeMap<_, _>>()
        )
        .to_string()
    }

    /// Why OpenSSL refuses it, with the flag that Envoy sets: any root is a trust anchor, also one that is not self-signed.
    pub fn openssl(&self, now: SystemTime) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (leaf, roots) = (file("leaf", &self.leaf_pem()), file("roots", &self.roots));
        let at = now.duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
        let mut arguments = vec!["verify", "-partial_chain", "-no-CApath", "-no-CAstore", "-auth_level", "0"];
        arguments.extend(["-attime", &at, "-CAfile", &roots]);
        let sent = file("sent", &self.sent);
        // openssl takes no empty file.
        if !self.sent.is_empty() {
            arguments.extend(["-untrusted", &sent]);
        }
        let crls = file("crls", &self.crls);
        if !self.crls.is_empty() {
            arguments.extend(["-crl_check_all", "-CRLfile", &crls]);
        }
        for purpose in ["sslserver", "sslclient"] {
            let output = Command::new("openssl").args(&arguments).args(["-purpose", purpose, &leaf]).output().unwrap();
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        Ok(())
    }

    /// Why rustls-webpki refuses it, or rustls' reader of PEM; with CRLs as ztunnel checks them (Istio ztunnel:
    /// src/tls/workload.rs).
    pub fn webpki(&self, now: SystemTime) -> Result<(), String> {
        let ders = |text: &str| -> Result<Vec<_>, String> {
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|error| error.to_string())
        };
        let (roots, sent) = (ders(&self.roots)?, ders(&self.sent)?);
        let anchors: Vec<_> = roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok()).collect();
        let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
        let leaf = CertificateDer::from(self.leaf.clone());
        let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(|error| error.to_string())?;
        let crls = CertificateRevocationListDer::pem_slice_iter(self.crls.as_bytes());
        let crls = crls.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let crls: Result<Vec<_>, _> = crls.iter().map(|der| BorrowedCertRevocationList::from_der(der)).collect();
        let crls: Vec<_> = crls.map_err(|error| error.to_string())?.into_iter().map(CertRevocationList::from).collect();
        let crls: Vec<_> = crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            let options = options.with_depth(RevocationCheckDepth::Chain);
            options
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            let verified =
                leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &sent, time, usage, revocation, None);
            verified.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Why Go refuses each, now; empty where it does not.
pub fn go(presented: &[Presented]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let judge = directory.path().join("judge");
    let built = Command::new("go").args(["build", "-o"]).arg(&judge).arg(".").current_dir(sources()).status();
    assert!(built.expect("go; install the package golang-go").success(), "the judge in Go was not built");
    asked(Command::new(judge), presented)
}

/// Why BoringSSL refuses each, now; empty where it does not.
pub fn boringssl(presented: &[Presented]) -> Vec<String> {
    let mut python = Command::new(grpc_python());
    python.arg(sources().join("boringssl.py"));
    asked(python, presented)
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/chain-judges")
}

/// A Python with grpcio, installed once into a cache outside the tree.
fn grpc_python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"))).unwrap();
    let place = cache.join(format!("istio-hsm-ca/grpcio-{GRPCIO}"));
    let python = place.join("bin/python");
    if !python.exists() {
        let made = cache.join(format!("istio-hsm-ca/grpcio-{GRPCIO}.{}", std::process::id()));
        let run = |program: &Path, arguments: &[&str]| {
            let status = Command::new(program).args(arguments).status();
            assert!(status.is_ok_and(|status| status.success()), "{} {arguments:?}", program.display());
        };
        run(Path::new("python3"), &["-m", "venv", made.to_str().unwrap()]);
        let package = format!("grpcio=={GRPCIO}");
        run(&made.join("bin/python"), &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &package]);
        // Put in place as a whole; another test may have been faster.
        if fs::rename(&made, &place).is_err() {
            fs::remove_dir_all(&made).unwrap();
        }
    }
    python
}

/// Gives a judge one line for each, and takes one.
fn asked(mut judge: Command, presented: &[Presented]) -> Vec<String> {
    let mut child = judge.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: Vec<String> = presented.iter().map(Presented::to_json).collect();
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(input, "{line}").unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "a judge failed");
    let reasons: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(reasons.len(), presented.len());
    reasons
}

/// The time at which all judge: Go and BoringSSL have no other.
pub fn now() -> SystemTime {
    let seconds = clock::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}
