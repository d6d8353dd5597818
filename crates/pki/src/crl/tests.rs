use std::time::Duration;

use der::{Decode, Tag};
use rcgen::SigningKey;
use x509_cert::{
    crl::CertificateList,
    ext::pkix::{CrlNumber, CrlReason},
};

use super::*;
use crate::testing::{DAY, SoftCa, context, element, extension, keys, now};

fn issuer(ca: &SoftCa) -> CrlIssuer {
    CrlIssuer::from_certificate(ca.issuer.certificate()).unwrap()
}

fn entry(serial: &str, reason: Reason) -> RevokedEntry {
    RevokedEntry { serial: serial.parse().unwrap(), revoked_at: now() - DAY, reason, expires: now() + DAY }
}

fn content(entries: Vec<RevokedEntry>) -> CrlContent {
    CrlContent { number: 7, this_update: now(), next_update: now() + DAY * 30, entries }
}

fn signed(ca: &SoftCa, entries: Vec<RevokedEntry>) -> SignedCrl {
    let tbs = Arc::new(CrlTbs::build(issuer(ca), content(entries)).unwrap());
    let signature = ca.key.sign(tbs.der()).unwrap();
    SignedCrl::assemble(tbs, &signature).unwrap()
}

#[test]
fn list_has_its_fields_with_every_type_of_key() {
    for key in keys() {
        let ca = SoftCa::new(key);
        let entries = vec![
            entry("ff", Reason::KeyCompromise),
            entry("00:01", Reason::Unspecified),
            entry("0100", Reason::CertificateHold),
            // The first revocation of a certificate counts.
            RevokedEntry { revoked_at: now(), ..entry("01", Reason::Superseded) },
        ];
        let crl = signed(&ca, entries);
        let list: CertificateList = CertificateList::from_der(crl.der()).unwrap();
        let tbs = &list.tbs_cert_list;
        assert_eq!(tbs.this_update.to_system_time(), now());
        assert_eq!(tbs.next_update.unwrap().to_system_time(), now() + DAY * 30);
        let revoked = tbs.revoked_certificates.as_ref().unwrap();
        let found: Vec<_> = revoked
            .iter()
            .map(|revoked| {
                let reason = revoked.crl_entry_extensions.as_ref().map(|list| {
                    assert!(list.iter().all(|extension| !extension.critical));
                    CrlReason::from_der(list[0].extn_value.as_bytes()).unwrap()
                });
                (revoked.serial_number.as_bytes().to_vec(), revoked.revocation_date.to_system_time(), reason)
            })
            .collect();
        let at = now() - DAY;
        let expected = [
            (vec![1], at, None),
            (vec![0, 0xff], at, Some(CrlReason::KeyCompromise)),
            (vec![1, 0], at, Some(CrlReason::CertificateHold)),
        ];
        assert_eq!(found, expected);
        let extensions = tbs.crl_extensions.as_ref().unwrap();
        let number = CrlNumber::from_der(extensions[1].extn_value.as_bytes()).unwrap();
        assert_eq!(number, CrlNumber::try_from(7_u64).unwrap());
        assert!(crl.to_pem().starts_with("-----BEGIN X509 CRL-----\n"));
    }
}

#[test]
fn list_without_entries_has_no_empty_sequence() {
    let crl = signed(&SoftCa::new(keys()[0]), Vec::new());
    let list: CertificateList = CertificateList::from_der(crl.der()).unwrap();
    assert_eq!(list.tbs_cert_list.revoked_certificates, None);
}

#[test]
fn revocation_is_never_dated_after_the_list() {
    let later = RevokedEntry { revoked_at: now() + DAY, ..entry("01", Reason::Superseded) };
    let crl = signed(&SoftCa::new(keys()[0]), vec![later]);
    assert_eq!(CrlFacts::parse(crl.tbs().der()).unwrap().entries[0].revoked_at, now());
}

#[test]
fn wrong_signature_is_not_released() {
    let ca = SoftCa::new(keys()[0]);
    let tbs = Arc::new(CrlTbs::build(issuer(&ca), content(Vec::new())).unwrap());
    let other = ca.key.sign(b"another list").unwrap();
    assert_eq!(SignedCrl::assemble(tbs, &other).unwrap_err(), VerifyError::Signature);
}

#[test]
fn ca_without_crl_sign_signs_no_list() {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    for (usages, permitted) in [
        (vec![rcgen::KeyUsagePurpose::KeyCertSign], false),
        (vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign], true),
        (vec![], true),
    ] {
        params.key_usages = usages;
        let certificate = params.clone().self_signed(keys()[0]).unwrap();
        match CrlIssuer::from_certificate(certificate.der()) {
            Ok(_) => assert!(permitted),
            Err(error) => assert!(!permitted && error == CrlError::KeyUsage, "{error}"),
        }
    }
}

#[test]
fn list_beyond_the_limit_reports_how_many_entries_fit() {
    let ca = SoftCa::new(keys()[0]);
    let entries = |count: u32| {
        let serial = |number: u32| SerialNumber::new(&[&[0x80; 12][..], &number.to_be_bytes()].concat()).unwrap();
        let of = |number| RevokedEntry { serial: serial(number), ..entry("01", Reason::KeyCompromise) };
        (0..count).map(of).collect::<Vec<_>>()
    };
    let refused = CrlTbs::build(issuer(&ca), content(entries(20_000))).unwrap_err();
    let CrlError::TooLarge { entries: 20_000, fit, .. } = refused else { panic!("{refused}") };
    let fit = u32::try_from(fit).unwrap();
    let most = CrlTbs::build(issuer(&ca), content(entries(fit))).unwrap();
    assert!(most.der().len() <= TBS_MAX && most.der().len() > TBS_MAX - 200, "{}", most.der().len());
    assert!(pem::encode(LABEL, most.der()).len() < 1 << 20);
}

#[test]
fn lifetimes_and_numbers_that_no_list_may_have_are_refused() {
    let ca = SoftCa::new(keys()[0]);
    let build = |change: fn(&mut CrlContent)| {
        let mut content = content(Vec::new());
        change(&mut content);
        CrlTbs::build(issuer(&ca), content).map(|_| ()).unwrap_err().to_string()
    };
    for (change, expected) in [
        ((|content| content.next_update = content.this_update) as fn(&mut CrlContent), "nextUpdate is not after"),
        (|content| content.number = 0, "CRL number"),
        (|content| content.this_update = now() - DAY * 1000, "before the CA's validity"),
        (|content| content.this_update += Duration::from_millis(1), "thisUpdate"),
    ] {
        let refused = build(change);
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn lint_refuses_what_the_builder_never_makes() {
    let ca = SoftCa::new(keys()[0]);
    let tbs = CrlTbs::build(issuer(&ca), content(vec![entry("05", Reason::Superseded)])).unwrap();
    let parts = parts(tbs.der());
    let [version, algorithm, name, this_update, next_update, revoked, extensions] = &parts[..] else {
        panic!("{} parts", parts.len())
    };
    let check = |parts: &[&[u8]]| {
        let der = element(Tag::Sequence, parts);
        CrlFacts::parse(&der).and_then(|facts| lint::crl(&facts, &issuer(&ca).as_ca(), DAY * 30))
    };
    let list = |entries: &[Vec<u8>]| element(Tag::Sequence, &[&entries.concat()]);
    let one = |serial: &[u8], extensions: &[u8]| {
        element(Tag::Sequence, &[&element(Tag::Integer, &[serial]), this_update, extensions])
    };
    let code = |oid: &[u8], critical: Option<u8>, code: &[u8]| {
        let value = element(Tag::Enumerated, &[code]);
        element(Tag::Sequence, &[&extension(oid, critical, &value)])
    };
    const REASON: &[u8] = b"\x55\x1d\x15";
    let with = |revoked: &[u8]| check(&[version, algorithm, name, this_update, next_update, revoked, extensions]);
    assert_eq!(with(revoked), Ok(()));
    assert_eq!(with(&list(&[one(&[5], &code(REASON, None, &[1]))])), Ok(()));
    let number = extension(b"\x55\x1d\x14", None, &element(Tag::Integer, &[&[7]]));
    let key_id = element(Tag::Sequence, &[&element(context(0, false), &[ca.issuer.subject_key_id().unwrap()])]);
    let authority = extension(b"\x55\x1d\x23", None, &key_id);
    let extended = |extensions: &[&[u8]]| {
        let list = element(context(0, true), &[&element(Tag::Sequence, extensions)]);
        check(&[version, algorithm, name, this_update, next_update, &list])
    };
    assert_eq!(extended(&[&authority, &number]), Ok(()));
    let delta = extension(b"\x55\x1d\x1b", Some(0xff), &element(Tag::Integer, &[&[1]]));
    let critical = extension(b"\x55\x1d\x14", Some(0xff), &element(Tag::Integer, &[&[7]]));
    let long = extension(b"\x55\x1d\x14", None, &element(Tag::Integer, &[&[1; 9]]));
    let foreign = element(Tag::Sequence, &[&element(context(0, false), &[&[1; 20]])]);
    let foreign = extension(b"\x55\x1d\x23", None, &foreign);
    let refused = [
        ("version 1", check(&[algorithm, name, this_update, next_update, extensions])),
        ("version 3", check(&[b"\x02\x01\x02", algorithm, name, this_update, next_update, extensions])),
        ("no nextUpdate", check(&[version, algorithm, name, this_update, extensions])),
        ("another issuer", check(&[version, algorithm, b"\x30\x00", this_update, next_update, extensions])),
        ("times exchanged", check(&[version, algorithm, name, next_update, this_update, extensions])),
        ("no extensions", check(&[version, algorithm, name, this_update, next_update])),
        ("something behind", check(&[version, algorithm, name, this_update, next_update, extensions, b"\x05\x00"])),
        ("empty list", with(&list(&[]))),
        ("unsorted", with(&list(&[one(&[5], &[]), one(&[4], &[])]))),
        ("twice", with(&list(&[one(&[5], &[]), one(&[5], &[])]))),
        ("longer first", with(&list(&[one(&[1, 0], &[]), one(&[5], &[])]))),
        ("negative serial", with(&list(&[one(&[0x80], &[])]))),
        ("zero serial", with(&list(&[one(&[0], &[])]))),
        ("long serial", with(&list(&[one(&[1; 21], &[])]))),
        ("reason 0", with(&list(&[one(&[5], &code(REASON, None, &[0]))]))),
        ("reason 8", with(&list(&[one(&[5], &code(REASON, None, &[8]))]))),
        ("reason 10", with(&list(&[one(&[5], &code(REASON, None, &[10]))]))),
        ("critical reason", with(&list(&[one(&[5], &code(REASON, Some(0xff), &[1]))]))),
        ("invalidity date", with(&list(&[one(&[5], &code(b"\x55\x1d\x18", None, &[1]))]))),
        ("delta", extended(&[&authority, &number, &delta])),
        ("critical number", extended(&[&authority, &critical])),
        ("long number", extended(&[&authority, &long])),
        ("number twice", extended(&[&authority, &number, &number])),
        ("no number", extended(&[&authority])),
        ("no authority", extended(&[&number])),
        ("another authority", extended(&[&foreign, &number])),
        ("order", extended(&[&number, &authority])),
    ];
    for (what, result) in refused {
        assert!(result.is_err(), "{what}");
    }
    let facts = CrlFacts::parse(tbs.der()).unwrap();
    lint::crl(&facts, &issuer(&ca).as_ca(), DAY * 30 - crate::profile::CLOCK_SKEW).unwrap();
    assert!(lint::crl(&facts, &issuer(&ca).as_ca(), DAY * 29).is_err());
    assert!(lint::crl(&facts, &issuer(&SoftCa::new(keys()[1])).as_ca(), DAY * 30).is_err());
}

/// The elements of a SEQUENCE.
fn parts(der: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = crate::lint::reader::DerReader::inside(der, Tag::Sequence).unwrap();
    let mut parts = Vec::new();
    while !reader.at_end() {
        parts.push(reader.any_whole().unwrap().1.to_vec());
    }
    parts
}

#[test]
fn serial_numbers_are_read_as_tools_print_them() {
    let serial: SerialNumber = "serial=00:0A:fF\n".parse().unwrap();
    assert_eq!(serial.to_string(), "0aff");
    assert_eq!("0xaff".parse(), Ok(serial.clone()));
    assert!("ff".parse::<SerialNumber>().unwrap() < serial);
    for bad in ["", "0x", "0", "00:00", "g1", "1 2", "é", &"ff".repeat(20), &"11".repeat(21)] {
        assert!(bad.parse::<SerialNumber>().is_err(), "{bad}");
    }
    assert_eq!("7f".repeat(20).parse::<SerialNumber>().unwrap().as_bytes().len(), 20);
}

#[test]
fn reasons_have_their_names_and_codes() {
    for reason in Reason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(reason));
        assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{:?}", reason.as_str()));
    }
    assert_eq!("KEYCOMPROMISE".parse(), Ok(Reason::KeyCompromise));
    let refused = "removeFromCRL".parse::<Reason>().unwrap_err().to_string();
    assert!(refused.contains("keyCompromise"), "{refused}");
}
