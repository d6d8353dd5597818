//! Our certificates, verified by OpenSSL's command and rustls-webpki.
//!
//! The CA is a software CA, but the certificates pass through the same code as those signed by a token. Each
//! certificate is also stored in `target/tmp/leaf` for `tests/pkilint.sh`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use istio_hsm_ca_pki::{
    Bundle, Issued, Issuer, Profile, Tbs, Template, VerifiedCsr,
    bundle::{BundleFiles, Input},
    identity::Name,
    tbs::Serial,
};
use process::clock;
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize, SigningKey};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tempfile::TempDir;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

const DAY: Duration = Duration::from_secs(86_400);
const SPIFFE: &str = "spiffe://cluster.local/ns/foo/sa/bar";

/// A plug-in CA in software: its key and its checked files.
struct SoftCa {
    name: &'static str,
    key: KeyPair,
    issuer: Arc<Issuer>,
}

impl SoftCa {
    fn new(name: &'static str, key: KeyPair, ca_cert: &str, cert_chain: &str, root_cert: &str) -> Self {
        let input = |name: &str, text: &str| Input { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
        let files = BundleFiles {
            ca_cert: input("ca-cert.pem", ca_cert),
            cert_chain: input("cert-chain.pem", cert_chain),
            root_cert: input("root-cert.pem", root_cert),
        };
        let bundle = Bundle::check(files, clock::now()).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        Self { name, key, issuer: Arc::clone(bundle.issuer()) }
    }

    /// A root that signs leaves.
    fn root(name: &'static str, key: KeyPair) -> Self {
        let certificate = authority("Root CA").self_signed(&key).unwrap().pem();
        Self::new(name, key, &certificate, "", &certificate)
    }

    /// An intermediate with an offline root, like Istio's samples.
    fn intermediate(name: &'static str, key: KeyPair) -> Self {
        let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let root_params = authority("Root CA");
        let root = root_params.self_signed(&root_key).unwrap().pem();
        let signer = rcgen::Issuer::from_params(&root_params, &root_key);
        let mut params = authority("Intermediate CA");
        params.use_authority_key_identifier_extension = true;
        let own = params.signed_by(&key, &signer).unwrap().pem();
        Self::new(name, key, &own, &own, &root)
    }

    /// A root without a subject key identifier, like Istio's sample CA.
    fn without_key_id(name: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let (config, key_file) = (dir.path().join("openssl.cnf"), dir.path().join("key.pem"));
        let text = "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=CA:TRUE\n\
                    keyUsage=critical,keyCertSign\nsubjectKeyIdentifier=none\nauthorityKeyIdentifier=none\n";
        fs::write(&config, text).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        let (config, key_file) = (config.to_str().unwrap(), key_file.to_str().unwrap());
        let arguments = ["req", "-x509", "-new", "-key", key_file, "-subj", "/O=Istio/CN=Root CA", "-days", "30"];
        let certificate = openssl(&[arguments.as_slice(), &["-config", config, "-extensions", "ca"]].concat());
        Self::new(name, key, &certificate, "", &certificate)
    }

    fn issue(&self, names: &[&str], key: &KeyPair) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = VerifiedCsr::from_pem(&params.serialize_request(key).unwrap().pem().unwrap()).unwrap();
        let now = whole_second(clock::now());
        let template = Template {
            profile: Profile::Leaf,
            public_key: csr.public_key().clone(),
            names: names.iter().map(|text| name(text)).collect(),
            not_before: (now - Duration::from_secs(120)).max(self.issuer.not_before()),
            not_after: now + DAY,
        };
        let tbs = Arc::new(Tbs::build(template, Arc::clone(&self.issuer), Serial::random()).unwrap());
        let signature = self.key.sign(tbs.der()).unwrap();
        Issued::assemble(tbs, &signature).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

fn authority(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Istio");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    params
}

fn authorities() -> Vec<SoftCa> {
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
    let of = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    vec![
        SoftCa::root("p256-root", of(&rcgen::PKCS_ECDSA_P256_SHA256)),
        SoftCa::root("ed25519-root", of(&rcgen::PKCS_ED25519)),
        SoftCa::intermediate("rsa-intermediate", rsa(RsaKeySize::_2048)),
        SoftCa::intermediate("p384-intermediate", of(&rcgen::PKCS_ECDSA_P384_SHA384)),
        SoftCa::without_key_id("no-key-id"),
    ]
}

fn name(text: &str) -> Name {
    if text.starts_with("spiffe://") {
        return Name::Spiffe(text.parse().unwrap());
    }
    text.parse().map(Name::Ip).unwrap_or_else(|_| Name::Dns(text.parse().unwrap()))
}

fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Runs `openssl`, which must succeed, and returns its output.
fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().expect("openssl (apt-get install openssl)");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "openssl {arguments:?}: {out}{error}");
    out.into_owned()
}

/// The directory of the certificates for pkilint.
pub fn directory() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("leaf");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Writes a certificate's chain for OpenSSL and pkilint: leaf, path and roots.
fn files(ca: &SoftCa, what: &str, issued: &Issued) -> [PathBuf; 3] {
    let dir = directory();
    let write = |part: &str, text: &str| {
        let path = dir.join(format!("{}-{what}.{part}.pem", ca.name));
        fs::write(&path, text).unwrap();
        path
    };
    let chain = issued.chain();
    let (last, rest) = chain.split_last().unwrap();
    let (first, path) = rest.split_first().unwrap();
    [write("leaf", first), write("path", &path.concat()), write("roots", last)]
}

#[test]
fn openssl_verifies_for_both_purposes() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    for ca in authorities() {
        for (what, names) in [("workload", vec![SPIFFE]), ("server", vec!["ca.istio-system.svc", "10.0.0.1", "::1"])] {
            let issued = ca.issue(&names, &key);
            let [leaf, path, roots] = files(&ca, what, &issued).map(|path| path.to_str().unwrap().to_owned());
            for purpose in ["sslserver", "sslclient"] {
                let mut arguments = vec!["verify", "-purpose", purpose, "-CAfile", &roots];
                if !ca.issuer.path_pem().is_empty() {
                    arguments.extend(["-untrusted", &path]);
                }
                // RFC 5280 requires a key identifier of every CA; this one has none.
                if ca.issuer.subject_key_id().is_some() {
                    arguments.push("-x509_strict");
                }
                arguments.push(&leaf);
                assert!(openssl(&arguments).ends_with("OK\n"), "{} {what}", ca.name);
            }
        }
    }
}

#[test]
fn webpki_verifies_for_both_purposes() {
    for key in [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ] {
        for ca in authorities() {
            let issued = ca.issue(&["ca.istio-system.svc", "10.0.0.1"], &key);
            let chain: Vec<_> = issued.chain().iter().map(|pem| der(pem)).collect();
            let (root, rest) = chain.split_last().unwrap();
            let (leaf, path) = rest.split_first().unwrap();
            let anchors = [anchor_from_trusted_cert(root).unwrap()];
            let certificate = EndEntityCert::try_from(leaf).unwrap();
            // Read after the CA was created, since OpenSSL dates its certificate by its own clock.
            let now = UnixTime::since_unix_epoch(clock::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
            for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
                let verified =
                    certificate.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, path, now, usage, None, None);
                assert!(verified.is_ok(), "{}: {:?}", ca.name, verified.err());
            }
            for name in ["ca.istio-system.svc", "10.0.0.1"] {
                let name = ServerName::try_from(name).unwrap();
                certificate.verify_is_valid_for_subject_name(&name).unwrap();
            }
            let other = ServerName::try_from("other.istio-system.svc").unwrap();
            assert!(certificate.verify_is_valid_for_subject_name(&other).is_err());
        }
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    let blocks = istio_hsm_ca_pki::pem::blocks(pem.as_bytes()).unwrap();
    assert_eq!(blocks.len(), 1, "not one certificate per element");
    CertificateDer::from(blocks[0].der.to_vec())
}

#[test]
fn openssl_reads_the_fields_that_istio_writes() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    for ca in authorities() {
        let issued = ca.issue(&[SPIFFE], &key);
        let [leaf, ..] = files(&ca, "fields", &issued);
        let text =
            openssl(&["x509", "-noout", "-text", "-certopt", "no_pubkey,no_sigdump", "-in", leaf.to_str().unwrap()]);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let after = |title: &str| {
            let at = lines.iter().position(|line| *line == title).unwrap_or_else(|| panic!("{title} in {text}"));
            lines[at + 1]
        };
        assert!(lines.contains(&"Version: 3 (0x2)"), "{text}");
        assert!(lines.contains(&"Subject:"), "{text}");
        assert!(lines.iter().any(|line| line.starts_with("Issuer: O = Istio")), "{text}");
        assert_eq!(after("X509v3 Key Usage: critical"), "Digital Signature, Key Encipherment");
        let purposes = "TLS Web Server Authentication, TLS Web Client Authentication";
        assert_eq!(after("X509v3 Extended Key Usage:"), purposes);
        assert_eq!(after("X509v3 Basic Constraints: critical"), "CA:FALSE");
        assert_eq!(after("X509v3 Subject Alternative Name: critical"), format!("URI:{SPIFFE}"));
        let titles: Vec<_> = lines.iter().filter(|line| line.starts_with("X509v3")).collect();
        let has_authority = titles.iter().any(|line| line.starts_with("X509v3 Authority Key Identifier:"));
        assert_eq!(has_authority, ca.issuer.subject_key_id().is_some(), "{}", ca.name);
        // "X509v3 extensions:" is the heading.
        assert_eq!(titles.len(), if has_authority { 6 } else { 5 }, "{titles:?}");
        let serial = lines[lines.iter().position(|line| line.starts_with("Serial Number")).unwrap() + 1];
        assert_eq!(serial.replace(':', ""), issued.serial().to_hex());
    }
}

#[test]
fn a_root_and_an_intermediate_of_ours_carry_a_chain() {
    let dir = TempDir::new().unwrap();
    let keys: Vec<_> = (0..3).map(|_| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()).collect();
    let now = whole_second(clock::now());
    let public = |key: &KeyPair| {
        let request = CertificateParams::default().serialize_request(key).unwrap();
        VerifiedCsr::from_der(request.der()).unwrap().public_key().clone()
    };
    let template = |profile, key, days: u32| Template {
        profile,
        public_key: public(key),
        names: Vec::new(),
        not_before: now,
        not_after: now + days * DAY,
    };
    let sign = |template: Template, issuer: Arc<Issuer>, key: &KeyPair| {
        let tbs = Arc::new(Tbs::build(template, issuer, Serial::random()).unwrap());
        let signature = key.sign(tbs.der()).unwrap();
        Issued::assemble(tbs, &signature).unwrap()
    };
    let organization = || "cluster.local".to_owned();
    let root = template(Profile::SelfSignedRoot { organization: organization() }, &keys[0], 3650);
    let root = sign(root.clone(), Issuer::of_new_root(&root).unwrap(), &keys[0]);
    let own = KeyPair::from_pem(&keys[0].serialize_pem()).unwrap();
    let ca = SoftCa::new("our-root", own, &root.to_pem(), "", &root.to_pem());
    let profile = Profile::Intermediate { organization: "cluster.local intermediate".to_owned() };
    let intermediate = sign(template(profile, &keys[1], 30), Arc::clone(&ca.issuer), &keys[0]);
    let own = KeyPair::from_pem(&keys[1].serialize_pem()).unwrap();
    let below = SoftCa::new("our-intermediate", own, &intermediate.to_pem(), "", &root.to_pem());
    let leaf = below.issue(&[SPIFFE], &keys[2]);
    assert_eq!(leaf.chain().len(), 3);
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let roots = file("root.pem", &root.to_pem());
    let path = file("path.pem", &intermediate.to_pem());
    let leaf = file("leaf.pem", &leaf.to_pem());
    let verified = openssl(&["verify", "-x509_strict", "-CAfile", &roots, "-untrusted", &path, &leaf]);
    assert!(verified.ends_with("OK\n"));
    let text = openssl(&["x509", "-noout", "-text", "-in", &roots]);
    assert!(text.contains("Certificate Sign") && text.contains("O = cluster.local"), "{text}");
    let refused = Tbs::build(
        template(Profile::Intermediate { organization: organization() }, &keys[2], 10),
        Arc::clone(&below.issuer),
        Serial::random(),
    );
    assert!(refused.is_err(), "path length 0 permits another CA");
}
