//! What is fuzzed. Each target takes one input and says whether it was accepted; it panics where a promise about accepted
//! input does not hold. `tests/repository/corpus.rs` runs the kept inputs through the same functions.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pki::{
    Bundle, PublicKey, VerifiedCsr,
    bundle::{BundleFiles, Input},
    pem,
};
use token::TokenUri;
use token_host::{
    Settings,
    protocol::{Frame, Kind, Reply, Request, Sign},
    testing::Judge,
};
use x509_cert::der::{Decode, Encode};

use super::compact::Compact;

/// Runs one input, and says whether it was accepted.
pub type Target = fn(&[u8]) -> bool;

/// All targets. Each has a directory of its name in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 6] =
    [("bundle", bundle), ("csr", csr), ("frame", frame), ("judge", judge), ("jwt", jwt), ("uri", uri)];

/// The CA of the inputs of [`judge`].
const CA_CERT: &str = include_str!("../ca-cert.pem");

/// 2026-07-01, at which the inputs of [`judge`] are judged.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_782_864_000)
}

/// The files of a plug-in CA, separated by zero bytes: ca-cert.pem, cert-chain.pem, root-cert.pem.
fn bundle(input: &[u8]) -> bool {
    let mut files = input.split(|byte| *byte == 0);
    let mut file = |name: &str| Input { name: name.to_owned(), bytes: files.next().unwrap_or_default().to_vec() };
    let files = BundleFiles {
        ca_cert: file("ca-cert.pem"),
        cert_chain: file("cert-chain.pem"),
        root_cert: file("root-cert.pem"),
    };
    match Bundle::check(files, now()) {
        Ok(bundle) => {
            assert!(bundle.issuer().not_after() > now(), "an accepted CA certificate has expired");
            true
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "a bundle is rejected without a reason");
            false
        }
    }
}

/// A certificate request in PEM or DER.
fn csr(input: &[u8]) -> bool {
    let read = match std::str::from_utf8(input) {
        Ok(text) if text.contains("-----BEGIN") => VerifiedCsr::from_pem(text),
        Ok(_) | Err(_) => VerifiedCsr::from_der(input),
    };
    read.is_ok_and(|csr| {
        let key = csr.public_key();
        assert_eq!(PublicKey::from_spki_der(key.spki_der()).as_ref(), Ok(key));
        true
    })
}

/// Frames of the token host's protocol, one after another, as daemon and host read them.
fn frame(input: &[u8]) -> bool {
    let (mut rest, mut read) = (input, false);
    while let Ok(Some((frame, length))) = Frame::split(rest) {
        rest = rest.get(length..).expect("a frame is a part of its buffer");
        let correlation = frame.correlation;
        let mut again = Vec::new();
        if let Ok(request) = Request::decode(&frame) {
            request.encode(correlation, &mut again).expect("what was read can be written");
            let (frame, _) = Frame::split(&again).expect("what was written can be read").expect("it is whole");
            assert_eq!(Request::decode(&frame).as_ref(), Ok(&request));
            read = true;
        } else if let Ok(reply) = Reply::decode(frame) {
            // Long texts are cut, so that only what is written can be compared.
            if reply.encode(correlation, &mut again).is_ok() {
                let (frame, _) = Frame::split(&again).expect("what was written can be read").expect("it is whole");
                Reply::decode(frame).expect("what was written can be read");
            }
            read = true;
        }
    }
    read
}

/// A message that a token host is to sign: a byte for its kind, then the message.
fn judge(input: &[u8]) -> bool {
    static HOST: LazyLock<(Settings, Vec<u8>, [u8; 32])> = LazyLock::new(|| {
        let mut settings = Settings::new(String::new(), "/".into(), "/".into(), Duration::from_secs(86_400));
        settings.trust_domains = "cluster.local".parse().into_iter().collect();
        settings.dns_names = "ca.test".parse().into_iter().collect();
        settings.ip_addresses = "192.0.2.1".parse().into_iter().collect();
        settings.allow_intermediate = true;
        settings.max_crl_lifetime = Some(Duration::from_secs(720 * 3600));
        settings.log_origins = vec!["ca.test/log".to_owned()];
        let der = pem::blocks(CA_CERT.as_bytes()).expect("PEM").remove(0).der.to_vec();
        let key = Judge::new(&settings, der.clone()).expect("a CA certificate").key();
        (settings, der, key)
    });
    let Some((kind, message)) = input.split_first() else { return false };
    let kind = match kind {
        b'c' => Kind::Canary,
        b'h' => Kind::Checkpoint,
        b'i' => Kind::Intermediate,
        b'l' => Kind::Leaf,
        b'r' => Kind::Crl,
        _ => return false,
    };
    let (settings, ca, key) = &*HOST;
    // Each input has a host of its own: no message depends on an earlier one.
    let host = Judge::new(settings, ca.clone()).expect("a CA certificate");
    let sign = Sign { kind, key: *key, request_id: "", deadline_ms: 0, message };
    if host.admit(&sign, now()).is_err() {
        return false;
    }
    host.admit(&sign, now()).expect("the same message is admitted again");
    match kind {
        Kind::Canary => assert!(message.starts_with(b"istio-hsm-ca canary\0") && message.len() <= 64),
        Kind::Checkpoint => {
            let text = std::str::from_utf8(message).expect("a checkpoint is text");
            assert!(text.starts_with("ca.test/log\n") && text.lines().count() == 3);
        }
        Kind::Crl => crl(message),
        Kind::Intermediate | Kind::Leaf => certificate(kind, message),
    }
    true
}

/// An admitted certificate, as x509-cert reads it.
fn certificate(kind: Kind, message: &[u8]) {
    use x509_cert::{
        TbsCertificate,
        ext::pkix::{BasicConstraints, SubjectAltName, name::GeneralName},
    };
    let tbs = TbsCertificate::from_der(message).expect("an admitted certificate is DER");
    assert_eq!(tbs.to_der().as_deref(), Ok(message), "in its only form");
    let spki = tbs.subject_public_key_info().to_der().expect("a key");
    PublicKey::from_spki_der(&spki).expect("the key is valid");
    let validity = tbs.validity();
    let (from, to) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
    assert!(from < now() + Duration::from_secs(240) && to > now());
    assert!(to.duration_since(from).is_ok_and(|lifetime| lifetime <= Duration::from_secs(86_400 + 120)));
    let constraints = tbs.get_extension::<BasicConstraints>().expect("constraints").expect("constraints").1;
    assert_eq!(constraints.ca, kind == Kind::Intermediate);
    let names = tbs.get_extension::<SubjectAltName>().expect("names").map(|(_, names)| names.0).unwrap_or_default();
    assert_eq!(names.is_empty(), kind == Kind::Intermediate);
    for name in &names {
        match name {
            GeneralName::DnsName(name) => assert_eq!(name.as_str(), "ca.test"),
            GeneralName::IpAddress(address) => assert_eq!(address.as_bytes(), [192, 0, 2, 1]),
            GeneralName::UniformResourceIdentifier(uri) => {
                assert!(uri.as_str().starts_with("spiffe://cluster.local/ns/") && names.len() == 1);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An admitted CRL, as x509-cert reads it.
fn crl(message: &[u8]) {
    use x509_cert::crl::TbsCertList;
    let list: TbsCertList = TbsCertList::from_der(message).expect("an admitted CRL is DER");
    assert_eq!(list.to_der().as_deref(), Ok(message), "in its only form");
    let (from, to) = (list.this_update.to_system_time(), list.next_update.expect("nextUpdate").to_system_time());
    assert!(from < now() + Duration::from_secs(240) && to > now());
    assert!(to.duration_since(from).is_ok_and(|lifetime| lifetime <= Duration::from_secs(720 * 3600 + 120)));
    let revoked = list.revoked_certificates.unwrap_or_default();
    let serials: Vec<_> = revoked.iter().map(|entry| entry.serial_number.as_bytes()).collect();
    assert!(serials.is_sorted_by_key(|serial| (serial.len(), serial.to_vec())));
    assert!(revoked.iter().all(|entry| entry.revocation_date.to_system_time() <= from));
}

/// A JWT, up to its signature.
fn jwt(input: &[u8]) -> bool {
    std::str::from_utf8(input).is_ok_and(|text| {
        Compact::parse(text).is_ok_and(|jwt| {
            assert!(text.starts_with(jwt.signed) && text.ends_with(jwt.signature));
            true
        })
    })
}

/// A PKCS#11 URI.
fn uri(input: &[u8]) -> bool {
    let read = std::str::from_utf8(input).ok().and_then(|text| text.parse::<TokenUri>().ok());
    read.is_some_and(|uri| {
        assert_eq!(uri.to_string().parse::<TokenUri>().as_ref(), Ok(&uri), "{uri}");
        true
    })
}
