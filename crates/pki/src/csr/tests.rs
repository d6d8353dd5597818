#![expect(clippy::type_complexity, reason = "tables of cases are read where they stand")]

use proptest::prelude::*;

use super::*;
use crate::testing::*;

const SAN: &[u8] = b"\x55\x1d\x11";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
const EXTENSION_REQUEST: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";
const CHALLENGE: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07";
const EMPTY_SUBJECT: &[u8] = b"\x30\x00";
const ID: &[u8] = b"spiffe://cluster.local/ns/foo/sa/bar";

fn san(critical: Option<u8>) -> Vec<u8> {
    extension(SAN, critical, &san_value(&[(6, ID)]))
}

fn good() -> Vec<u8> {
    signed_request(&P256, EMPTY_SUBJECT, &[extension_request(&[san(Some(0xff))])])
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode(label, der)
}

#[test]
fn every_key_type_verifies() {
    for key in keys() {
        let csr = VerifiedCsr::from_der(&signed_request(key, EMPTY_SUBJECT, &[])).unwrap();
        assert_eq!(csr.public_key(), &public(key));
        assert!(csr.names().is_empty());
    }
}

#[test]
fn requests_of_istio_clients_are_accepted() {
    let uri = [RequestedName::Uri(String::from_utf8(ID.to_vec()).unwrap())];
    let usage = extension(KEY_USAGE, Some(0xff), b"\x03\x02\x01\x06");
    let not_a_ca = extension(BASIC_CONSTRAINTS, Some(0xff), b"\x30\x00");
    let challenge = attribute(CHALLENGE, b"\x0c\x01x");
    let cases: &[(&str, Vec<Vec<u8>>, &[RequestedName])] = &[
        ("no attribute", vec![], &[]),
        ("critical SAN, as ztunnel", vec![extension_request(&[san(Some(0xff))])], &uri),
        ("SAN that is not critical, as old ztunnel", vec![extension_request(&[san(None)])], &uri),
        ("explicit FALSE", vec![extension_request(&[san(Some(0))])], &uri),
        ("key usages", vec![extension_request(&[usage, not_a_ca, san(Some(0xff))])], &uri),
        ("another attribute", vec![challenge, extension_request(&[san(None)])], &uri),
        ("no extension in the request", vec![extension_request(&[])], &[]),
    ];
    for (what, attributes, names) in cases {
        let subjects: [&[u8]; 5] = [
            EMPTY_SUBJECT,
            // `O=""`, as PrintableString (Go, i.e. Istio's agent) and as UTF8String.
            b"\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x0a\x13\x00",
            b"\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x0a\x0c\x00",
            b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x0a\x0c\x01x",
            b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01x",
        ];
        for subject in subjects {
            let csr = VerifiedCsr::from_der(&signed_request(&P256, subject, attributes)).expect(what);
            assert_eq!(csr.names(), *names, "{what}");
        }
    }
}

#[test]
fn every_kind_of_name_is_read() {
    let names = san_value(&[
        (1, b"a@b"),
        (2, b"a.b"),
        (6, b"https://x"),
        (7, &[10, 0, 0, 1]),
        (7, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (8, b"\x55\x04\x03"),
    ]);
    let wanted = extension_request(&[extension(SAN, None, &names)]);
    let csr = VerifiedCsr::from_der(&signed_request(&P256, EMPTY_SUBJECT, &[wanted])).unwrap();
    let shown: Vec<_> = csr.names().iter().map(ToString::to_string).collect();
    let expected =
        ["of kind rfc822Name (e-mail)", "DNS:a.b", "URI:https://x", "IP:10.0.0.1", "IP:::1", "of kind registeredID"];
    assert_eq!(shown, expected);
}

#[test]
fn a_name_is_shown_short_and_without_control_characters() {
    let hostile = RequestedName::Uri("a\nb\u{1b}[0m".to_owned() + &"x".repeat(10_000));
    let shown = hostile.to_string();
    assert!(shown.starts_with("URI:a\\nb\\u{1b}[0mx") && shown.ends_with("..."), "{shown}");
    assert!(shown.len() < 300);
}

#[test]
fn the_first_block_counts_whatever_its_label() {
    let (first, second) = (good(), signed_request(&P384, EMPTY_SUBJECT, &[]));
    let cases = [
        pem("CERTIFICATE REQUEST", &first),
        pem("NEW CERTIFICATE REQUEST", &first),
        pem("ANYTHING", &first),
        format!("Some words before\n{}", pem("CERTIFICATE REQUEST", &first)),
        pem("CERTIFICATE REQUEST", &first).trim_end().to_owned(),
        pem("CERTIFICATE REQUEST", &first).replace('\n', "\r\n"),
        pem("CERTIFICATE REQUEST", &first) + &pem("CERTIFICATE REQUEST", &second),
        pem("CERTIFICATE REQUEST", &first) + "-----BEGIN X-----\nnot base64\n",
    ];
    for text in cases {
        let csr = VerifiedCsr::from_pem(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(csr.public_key(), &public(&P256));
    }
}

/// A SubjectPublicKeyInfo of an RSA key with this size and arbitrary numbers.
fn rsa_spki(bytes: usize) -> Vec<u8> {
    let modulus = element(Tag::Integer, &[&[0], &vec![0xff; bytes]]);
    let key = element(Tag::Sequence, &[&modulus, b"\x02\x03\x01\x00\x01"]);
    let algorithm = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
    element(Tag::Sequence, &[algorithm, &element(Tag::BitString, &[b"\0", &key])])
}

#[test]
fn each_refusal_says_why() {
    use rcgen::{PublicKeyData, SigningKey};
    let p521 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let spki = P256.subject_public_key_info();
    let ecdsa = algorithm::identifier(crate::SignatureAlgorithm::EcdsaSha256);
    let rsa_id = |last: u8| {
        let oid = [b"\x2a\x86\x48\x86\xf7\x0d\x01\x01".as_slice(), &[last]].concat();
        element(Tag::Sequence, &[&element(Tag::ObjectIdentifier, &[&oid]), b"\x05\x00"])
    };
    let plain = info(0, EMPTY_SUBJECT, &spki, &[]);
    let keyed = |spki: &[u8]| request(&info(0, EMPTY_SUBJECT, spki, &[]), ecdsa, b"");
    let with = |attributes: &[Vec<u8>]| signed_request(&P256, EMPTY_SUBJECT, attributes);
    let wants = |extensions: &[Vec<u8>]| with(&[extension_request(extensions)]);
    let names = |names: &[(u32, &[u8])]| wants(&[extension(SAN, None, &san_value(names))]);
    let numbered = |number: usize| [0x2a, 0x83, u8::try_from(number).unwrap()];
    let trailing = [good(), vec![0]].concat();
    let many: Vec<(u32, &[u8])> = vec![(2, b"a".as_slice()); 65];
    let dup_value = element(Tag::Sequence, &[&san(None)]);
    let two_values = element(
        Tag::Sequence,
        &[&element(Tag::ObjectIdentifier, &[EXTENSION_REQUEST]), &element(Tag::Set, &[&dup_value, &dup_value])],
    );
    let ca = |value: &[u8]| wants(&[extension(BASIC_CONSTRAINTS, None, value)]);
    let cases: Vec<(&str, Vec<u8>, CsrError)> = vec![
        ("empty", vec![], CsrError::Malformed("not a certification request")),
        ("not DER", b"hello".to_vec(), CsrError::Malformed("not a certification request")),
        ("trailing byte", trailing, CsrError::Malformed("not a certification request")),
        (
            "version 2",
            request(&info(1, EMPTY_SUBJECT, &spki, &[]), ecdsa, b""),
            CsrError::Malformed("the version is not 1"),
        ),
        ("P-521", keyed(&p521.subject_public_key_info()), CsrError::Key(KeyError::UnsupportedType("P-521".to_owned()))),
        ("RSA-1024", keyed(&rsa_spki(128)), CsrError::Key(KeyError::RsaSize(1024))),
        ("RSA-8192", keyed(&rsa_spki(1024)), CsrError::Key(KeyError::RsaSize(8192))),
        ("MD5", request(&plain, &rsa_id(4), b""), CsrError::UnsupportedSignatureAlgorithm("RSA with MD5")),
        ("SHA-1", request(&plain, &rsa_id(5), b""), CsrError::UnsupportedSignatureAlgorithm("RSA with SHA-1")),
        ("PSS", request(&plain, &rsa_id(10), b""), CsrError::UnsupportedSignatureAlgorithm("RSASSA-PSS")),
        ("of another key", request(&plain, ecdsa, &P384.sign(&plain).unwrap()), CsrError::Signature),
        ("of another type", request(&plain, &rsa_id(11), &RSA.sign(&plain).unwrap()), CsrError::Signature),
        ("no signature", request(&plain, ecdsa, b""), CsrError::Signature),
        ("CA:TRUE", ca(b"\x30\x03\x01\x01\xff"), CsrError::CaRequested),
        ("CA:TRUE, not DER", ca(b"\x30\x03\x01\x01\x01"), CsrError::CaRequested),
        ("constraints malformed", ca(b"\x05\x00"), CsrError::Malformed("the requested basicConstraints")),
        (
            "attribute twice",
            with(&[extension_request(&[]), extension_request(&[])]),
            CsrError::Malformed("an attribute that comes twice"),
        ),
        ("two values", with(&[two_values]), CsrError::Malformed("the requested extensions")),
        (
            "extension twice",
            wants(&[san(None), san(None)]),
            CsrError::Malformed("a requested extension that comes twice"),
        ),
        (
            "many attributes",
            with(&(0..17).map(|n| attribute(&numbered(n), b"\x05\x00")).collect::<Vec<_>>()),
            CsrError::Malformed("too many attributes"),
        ),
        (
            "many extensions",
            wants(&(0..33).map(|n| extension(&numbered(n), None, b"")).collect::<Vec<_>>()),
            CsrError::Malformed("too many extensions"),
        ),
        ("many names", names(&many), CsrError::Malformed("too many subject alternative names")),
        ("no name", names(&[]), CsrError::Malformed("the subject alternative name is there but empty")),
        ("IP of 5 bytes", names(&[(7, &[1, 2, 3, 4, 5])]), CsrError::Malformed("the subject alternative name")),
        ("URI not ASCII", names(&[(6, "ä".as_bytes())]), CsrError::Malformed("the subject alternative name")),
        ("name of no kind", names(&[(9, b"x")]), CsrError::Malformed("the subject alternative name")),
    ];
    for (what, der, expected) in cases {
        assert_eq!(VerifiedCsr::from_der(&der).expect_err(what), expected, "{what}");
    }
    assert_eq!(VerifiedCsr::from_pem("").unwrap_err(), CsrError::NoPem);
    assert_eq!(VerifiedCsr::from_pem(&"x".repeat(CSR_MAX + 1)).unwrap_err(), CsrError::TooLarge(CSR_MAX + 1));
    let torn = pem("X", &good()).replace("-----END", "END");
    assert!(matches!(VerifiedCsr::from_pem(&torn), Err(CsrError::Pem(_))));
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let good = good();
    assert!(VerifiedCsr::from_der(&good).is_ok());
    for at in 0..good.len() {
        for mask in [0x01, 0x20, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= mask;
            assert!(VerifiedCsr::from_der(&bad).is_err(), "byte {at} ^ {mask:#x}");
        }
        assert!(VerifiedCsr::from_der(&good[..at]).is_err(), "cut at {at}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(VerifiedCsr::from_der(&bytes).is_err());
    }

    #[test]
    fn arbitrary_text_never_panics(text in "(-----BEGIN [A-Z ]{0,9}-----\n)?[A-Za-z0-9+/=\n -]{0,300}(-----END X-----)?.{0,9}") {
        prop_assert!(VerifiedCsr::from_pem(&text).is_err());
    }

    #[test]
    fn spliced_requests_never_panic(at in 0usize..300, cut in 0usize..20, bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
        let good = good();
        let mut der = good.clone();
        let at = at.min(der.len());
        let end = (at + cut).min(der.len());
        der.splice(at..end, bytes);
        if let Ok(csr) = VerifiedCsr::from_der(&der) {
            prop_assert_eq!(csr.public_key(), &public(&P256));
            prop_assert_eq!(der, good);
        }
    }
}

#[test]
fn csr_for_a_ca_may_ask_for_one() {
    let asks = |constraints: &[u8]| {
        let extension = extension(BASIC_CONSTRAINTS, Some(0xff), constraints);
        let der = signed_request(&WORKLOAD, EMPTY_SUBJECT, &[extension_request(&[extension])]);
        pem("CERTIFICATE REQUEST", &der)
    };
    let (ca, end_entity) = (asks(b"\x30\x03\x01\x01\xff"), asks(b"\x30\x00"));
    let silent = pem("CERTIFICATE REQUEST", &signed_request(&WORKLOAD, EMPTY_SUBJECT, &[]));
    for (text, for_leaf, for_ca) in [
        (&ca, Err(CsrError::CaRequested), Ok(())),
        (&end_entity, Ok(()), Err(CsrError::EndEntityRequested)),
        (&silent, Ok(()), Ok(())),
    ] {
        assert_eq!(VerifiedCsr::from_pem(text).map(drop), for_leaf);
        assert_eq!(VerifiedCsr::for_ca_from_pem(text).map(drop), for_ca);
    }
}
