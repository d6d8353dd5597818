//! Our CRLs, as OpenSSL and rustls-webpki see them. Each one is also stored in `target/tmp/leaf` for `tests/pkilint.sh`.
//!
//! The CA is a software CA, but the CRLs pass through the same code as those signed by a token. What a set of CRLs does to
//! the certificates of a mesh is in `published_crls`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use istio_hsm_ca_pki::{
    CrlTbs, SignedCrl,
    crl::{CrlContent, CrlIssuer, Reason, RevokedEntry},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize,
    SigningKey,
};
use webpki::{BorrowedCertRevocationList, CertRevocationList};

use super::judges::now;

const DAY: Duration = Duration::from_secs(86_400);

/// Where the CRLs are stored for other linters.
fn stored() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp/leaf");
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn keys() -> [(&'static str, KeyPair); 4] {
    [
        ("p256", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()),
        ("p384", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()),
        ("ed25519", KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()),
        ("rsa", KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()),
    ]
}

fn authority(key: &KeyPair) -> rcgen::Certificate {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Istio");
    params.distinguished_name.push(DnType::CommonName, "CRL test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    params.self_signed(key).unwrap()
}

/// A CRL with these entries; the first has no reason code.
fn crl(key: &KeyPair, certificate: &rcgen::Certificate, reasons: &[Reason]) -> SignedCrl {
    let entry = |(number, reason): (usize, &Reason)| RevokedEntry {
        serial: format!("{:x}{}", 0x8000 + number, "00".repeat(14)).parse().unwrap(),
        revoked_at: now() - DAY,
        reason: *reason,
        expires: now() + DAY,
    };
    let content = CrlContent {
        number: 1_767_225_600,
        this_update: now() - Duration::from_secs(120),
        next_update: now() + DAY * 30,
        entries: reasons.iter().enumerate().map(entry).collect(),
    };
    let tbs = Arc::new(CrlTbs::build(CrlIssuer::from_certificate(certificate.der()).unwrap(), content).unwrap());
    SignedCrl::assemble(Arc::clone(&tbs), &key.sign(tbs.der()).unwrap()).unwrap()
}

#[test]
fn crl_of_each_key_type_is_valid_to_openssl_and_webpki() {
    for (name, key) in keys() {
        let certificate = authority(&key);
        for (kind, reasons) in [("empty", &[][..]), ("full", &Reason::ALL)] {
            let crl = crl(&key, &certificate, reasons);
            let file = stored().join(format!("{name}-{kind}.crl.pem"));
            fs::write(&file, crl.to_pem()).unwrap();
            let ca = stored().join(format!("{name}-crl-ca.pem"));
            fs::write(&ca, certificate.pem()).unwrap();
            let output = Command::new("openssl")
                .args(["crl", "-noout", "-verify", "-text", "-CAfile"])
                .arg(&ca)
                .arg("-in")
                .arg(&file)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success() && text.contains("verify OK"), "{name} {kind}: {text}");
            for expected in
                ["Version 2", "X509v3 Authority Key Identifier", "X509v3 CRL Number: \n                1767225600"]
            {
                assert!(text.contains(expected), "{expected}: {text}");
            }
            assert_eq!(text.matches("Serial Number").count(), reasons.len(), "{text}");
            let codes = [
                "Key Compromise",
                "CA Compromise",
                "Affiliation Changed",
                "Superseded",
                "Cessation Of Operation",
                "Certificate Hold",
                "Privilege Withdrawn",
            ];
            assert!(reasons.is_empty() || codes.iter().all(|code| text.contains(code)), "{text}");
            assert!(!text.contains("Unspecified") && !text.contains("critical"), "{text}");
            let read = CertRevocationList::from(BorrowedCertRevocationList::from_der(crl.der()).unwrap());
            let found = read.find_serial(&[&[0, 0x80, 1][..], &[0; 14]].concat()).unwrap();
            assert_eq!(found.is_some(), reasons.len() > 1, "{name} {kind}");
        }
    }
}

/// Go's crypto/x509, and zlint's lints of CRLs.
#[test]
#[ignore = "make test-foreign"]
fn crl_of_each_key_type_is_valid_to_go_and_zlint() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("zlint-crl");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/zlint");
    let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(sources).status();
    assert!(built.expect("go; install the package golang-go").success(), "tests/zlint was not built");
    for (name, key) in keys() {
        let certificate = authority(&key);
        for reasons in [&[][..], &Reason::ALL] {
            let crl = crl(&key, &certificate, reasons);
            let (file, ca) = (directory.path().join("crl.pem"), directory.path().join("ca.pem"));
            fs::write(&file, crl.to_pem()).unwrap();
            fs::write(&ca, certificate.pem()).unwrap();
            let output = Command::new(&program).args([&ca, &file]).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{name}: {text}");
            let mut lines = text.lines();
            assert_eq!(lines.next(), Some(reasons.len().to_string().as_str()), "{name}: {text}");
            assert_eq!(lines.collect::<Vec<_>>(), expected(reasons), "{name}");
        }
    }
}

/// Rules of the CA/Browser Forum, which are for public CAs: at most ten days to nextUpdate, and only some reasons.
fn expected(reasons: &[Reason]) -> &'static [&'static str] {
    match reasons {
        [] => &["e_crl_next_update_invalid: error"],
        _ => &["e_cab_crl_has_valid_reason_code: error", "e_crl_next_update_invalid: error"],
    }
}
