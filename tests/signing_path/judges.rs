//! Verifiers of a reply: OpenSSL's command, rustls-webpki (as in ztunnel), and Istio's own description of the leaf.

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime},
};

use der::{Decode, DecodePem, Encode};
use pki::pem;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_cert::{Certificate, request::CertReq};

/// The certificates in a PEM text, DER.
pub fn ders(text: &str) -> Vec<Vec<u8>> {
    pem::blocks(text.as_bytes()).unwrap().into_iter().map(|block| block.der.to_vec()).collect()
}

/// OpenSSL and webpki accept the leaf for both usages, with the last element as roots and the others as intermediates.
pub fn judge(name: &str, reply: &[String], now: SystemTime) {
    let [leaf, between @ .., roots] = reply else { panic!("{name}: {} elements", reply.len()) };
    openssl(name, leaf, between, roots);
    let der = |text: &String| CertificateDer::from(ders(text).remove(0));
    let (leaf, between): (_, Vec<_>) = (der(leaf), between.iter().map(der).collect());
    let roots: Vec<_> = ders(roots).into_iter().map(CertificateDer::from).collect();
    let anchors: Vec<_> = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
    let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
    let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &between, time, usage, None, None)
            .unwrap_or_else(|error| panic!("{name}: webpki: {error}"));
    }
}

fn openssl(name: &str, leaf: &str, between: &[String], roots: &str) {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = directory.path().join(file);
        fs::write(&path, text).unwrap();
        path
    };
    for purpose in ["sslserver", "sslclient"] {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", purpose, "-CAfile"]);
        // Certificates like Istio's samples (no key identifiers, basicConstraints not critical) fail strict
        // verification.
        if name.contains("without SKI") {
            command = Command::new("openssl");
            command.args(["verify", "-no-CApath", "-no-CAstore", "-purpose", purpose, "-CAfile"]);
        }
        command.arg(write("roots.pem", roots));
        if !between.is_empty() {
            command.arg("-untrusted").arg(write("between.pem", &between.concat()));
        }
        let output = command.arg(write("leaf.pem", leaf)).output().expect("openssl is missing");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: openssl for {purpose}: {text}");
    }
}

/// The leaf equals that of Istio's own CA, field by field (security/pkg/pki/util, `generate_cert.go`).
pub fn is_istios(name: &str, leaf: &str, ca: &str, csr: &str, identity: &str, (asked, lifetime): (SystemTime, u64)) {
    let (leaf, ca) = (Certificate::from_pem(leaf).unwrap(), Certificate::from_pem(ca).unwrap());
    let (tbs, ca) = (leaf.tbs_certificate(), ca.tbs_certificate());
    let csr = CertReq::from_pem(csr).unwrap();
    assert_eq!(tbs.version(), x509_cert::Version::V3, "{name}");
    let serial = tbs.serial_number().as_bytes();
    assert!(serial.iter().any(|byte| *byte != 0) && serial.len() <= 17, "{name}: serial {serial:02x?}");
    let algorithm = match ca.subject_public_key_info().to_der().unwrap().len() {
        // Lengths of SubjectPublicKeyInfo for P-256 and P-384; all longer ones are RSA.
        91 => "1.2.840.10045.4.3.2",
        120 => "1.2.840.10045.4.3.3",
        _ => "1.2.840.113549.1.1.11",
    };
    assert_eq!(tbs.signature().oid.to_string(), algorithm, "{name}");
    assert_eq!(leaf.signature_algorithm(), tbs.signature(), "{name}");
    assert_eq!(tbs.issuer().to_der().unwrap(), ca.subject().to_der().unwrap(), "{name}");
    assert_eq!(tbs.subject().to_der().unwrap(), [0x30, 0], "{name}: the subject is empty");
    assert_eq!(tbs.subject_public_key_info(), &csr.info.public_key, "{name}");
    assert!(tbs.issuer_unique_id().is_none() && tbs.subject_unique_id().is_none(), "{name}");

    let (from, to) = (tbs.validity().not_before.to_system_time(), tbs.validity().not_after.to_system_time());
    let near = |time: SystemTime, wanted: SystemTime| {
        let slow = Duration::from_secs(30);
        time + Duration::from_secs(1) >= wanted && time <= wanted + slow
    };
    assert!(near(from, asked - Duration::from_secs(120)), "{name}: notBefore");
    assert!(near(to, asked + Duration::from_secs(lifetime)), "{name}: notAfter");

    let mut wanted: Vec<(&str, bool, Vec<u8>)> = vec![
        ("2.5.29.15", true, vec![0x03, 0x02, 0x05, 0xa0]),
        (
            "2.5.29.37",
            false,
            b"\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02".to_vec(),
        ),
        ("2.5.29.19", true, vec![0x30, 0x00]),
    ];
    if let Some(key_id) = key_id(ca) {
        let length = u8::try_from(key_id.len()).unwrap();
        wanted.push(("2.5.29.35", false, [&[0x30, length + 2, 0x80, length], &*key_id].concat()));
    }
    let length = u8::try_from(identity.len()).unwrap();
    wanted.push(("2.5.29.17", true, [&[0x30, length + 2, 0x86, length], identity.as_bytes()].concat()));
    let found: Vec<(String, bool, Vec<u8>)> = tbs
        .extensions()
        .unwrap()
        .iter()
        .map(|extension| (extension.extn_id.to_string(), extension.critical, extension.extn_value.as_bytes().to_vec()))
        .collect();
    let wanted: Vec<_> = wanted.into_iter().map(|(oid, critical, value)| (oid.to_owned(), critical, value)).collect();
    assert_eq!(found, wanted, "{name}: extensions, in Go's order");
}

/// The keyIdentifier of a CA certificate.
fn key_id(ca: &x509_cert::TbsCertificate) -> Option<Vec<u8>> {
    let extension = ca.extensions()?.iter().find(|extension| extension.extn_id.to_string() == "2.5.29.14")?;
    Some(der::asn1::OctetString::from_der(extension.extn_value.as_bytes()).unwrap().as_bytes().to_vec())
}
