use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use der::Tag;
use proptest::prelude::*;

use super::*;
use crate::lint::reader::DerReader;
use crate::testing::*;
use crate::{
    CaProfile, Issuer, Tbs, Template, algorithm,
    tbs::{self, Serial},
};

const LONGEST: Duration = DAY;

fn good(ca: &SoftCa) -> Vec<u8> {
    Tbs::build(leaf(&[ID]), Arc::clone(&ca.issuer), Serial::random()).unwrap().der().to_vec()
}

fn judge(tbs: &[u8], ca: &SoftCa) -> Result<(), Finding> {
    leaf_rules(&Facts::parse(tbs)?, &Ca::from(&*ca.issuer), LONGEST)
}

use super::leaf as leaf_rules;
use crate::testing::leaf;

/// The elements of a SEQUENCE.
fn split(sequence: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = DerReader::inside(sequence, Tag::Sequence).unwrap();
    let mut parts = Vec::new();
    while !reader.at_end() {
        parts.push(reader.any_whole().unwrap().1.to_vec());
    }
    parts
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    element(Tag::Sequence, &[&parts.concat()])
}

/// A valid leaf with one field replaced (0 version ... 7 extensions), or removed.
fn field(tbs: &[u8], at: usize, by: Option<&[u8]>) -> Vec<u8> {
    let mut parts = split(tbs);
    match by {
        Some(by) => parts[at] = by.to_vec(),
        None => drop(parts.remove(at)),
    }
    join(&parts)
}

/// A valid leaf with changed extensions (0 key usage, 1 extended, 2 constraints, 3 authority, 4 names).
fn extended(tbs: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let parts = split(tbs);
    let list = DerReader::inside(&parts[7], context(3, true)).unwrap().whole(Tag::Sequence).unwrap().to_vec();
    let mut extensions = split(&list);
    change(&mut extensions);
    field(tbs, 7, Some(&element(context(3, true), &[&join(&extensions)])))
}

fn validity(not_before: &[u8], not_after: &[u8]) -> Vec<u8> {
    let time = |text: &[u8]| element(if text.len() == 13 { Tag::UtcTime } else { Tag::GeneralizedTime }, &[text]);
    element(Tag::Sequence, &[&time(not_before), &time(not_after)])
}

fn names(names: &[(u32, &[u8])]) -> Vec<u8> {
    extension(b"\x55\x1d\x11", Some(0xff), &san_value(names))
}

#[test]
fn a_good_leaf_has_no_finding_and_its_facts() {
    for key in keys() {
        let ca = SoftCa::new(key);
        let tbs = good(&ca);
        judge(&tbs, &ca).unwrap();
        let facts = Facts::parse(&tbs).unwrap();
        assert_eq!(facts.profile, Profile::Leaf);
        assert_eq!((facts.is_ca, facts.path_len), (false, None));
        assert_eq!(facts.names, leaf(&[ID]).names);
        assert_eq!(facts.public_key().unwrap(), public(&WORKLOAD));
        assert_eq!(facts.issuer, ca.issuer.subject());
        assert_eq!(facts.not_after, leaf(&[ID]).not_after);
    }
}

#[test]
fn key_types_are_recognized_by_their_encoding() {
    for key in keys() {
        let template = Template { public_key: public(key), ..leaf(&[ID]) };
        let tbs = Tbs::build(template, Arc::clone(&SoftCa::new(&WORKLOAD).issuer), Serial::random()).unwrap();
        assert_eq!(Facts::parse(tbs.der()).unwrap().key_algorithm(), Ok(public(key).algorithm()));
    }
}

#[test]
fn the_ca_is_the_same_read_from_its_certificate() {
    for key in keys() {
        let ca = SoftCa::new(key);
        assert_eq!(Ca::from_certificate(ca.issuer.certificate()).unwrap(), Ca::from(&*ca.issuer));
        assert_eq!(OwnedCa::from_certificate(ca.issuer.certificate()).unwrap().as_ca(), Ca::from(&*ca.issuer));
        let certificate = ca.issuer.certificate();
        assert_eq!(subject_public_key(certificate), Ok(ca.issuer.public_key().subject_public_key()));
        for at in 0..certificate.len() {
            assert!(Ca::from_certificate(&certificate[..at]).is_err(), "cut at {at}");
            assert!(subject_public_key(&certificate[..at]).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn every_rule_has_its_finding() {
    let ca = SoftCa::new(&P256);
    let tbs = good(&ca);
    let (from, to) = (b"251231235800Z", b"260102000000Z");
    let integer = |content: &[u8]| element(Tag::Integer, &[content]);
    let rsa = algorithm::identifier(crate::SignatureAlgorithm::RsaSha256);
    let id = b"spiffe://cluster.local/ns/foo/sa/bar".as_slice();
    let with = |names_: &[(u32, &[u8])]| {
        let names_ = names(names_);
        extended(&tbs, |list| list[4] = names_)
    };
    let set = |at: usize, by: &[u8]| {
        let by = by.to_vec();
        extended(&tbs, |list| list[at] = by)
    };
    let drop_ = |at: usize| extended(&tbs, |list| drop(list.remove(at)));
    let weak = {
        let modulus = integer(&[[0].as_slice(), &[0xff; 128]].concat());
        let key = element(Tag::Sequence, &[&modulus, &integer(&[1, 0, 1])]);
        let bits = element(Tag::BitString, &[b"\0", &key]);
        element(Tag::Sequence, &[b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00", &bits])
    };
    let unique_id = {
        let mut parts = split(&tbs);
        parts.insert(7, element(context(1, false), &[b"\0x"]));
        join(&parts)
    };
    let many: Vec<_> = (0..65u8).map(|n| [b'a' + n / 26, b'a' + n % 26]).collect();
    let many: Vec<(u32, &[u8])> = many.iter().map(|name| (2, name.as_slice())).collect();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it is not a TBSCertificate"),
        ([tbs.clone(), vec![0]].concat(), "it is not a TBSCertificate"),
        (field(&tbs, 0, None), "the version is missing"),
        (field(&tbs, 0, Some(b"\xa0\x03\x02\x01\x01")), "the version is not 3"),
        (field(&tbs, 1, Some(&integer(&[0]))), "the serial number is not a positive integer"),
        (field(&tbs, 1, Some(&integer(&[0x80; 16]))), "the serial number is not a positive integer"),
        (field(&tbs, 1, Some(&integer(&[1; 8]))), "the serial number is too small or too long"),
        (field(&tbs, 1, Some(&integer(&[1; 21]))), "the serial number is too small or too long"),
        (field(&tbs, 2, Some(b"\x30\x00")), "the signature algorithm is none of ours"),
        (field(&tbs, 2, Some(rsa)), "the signature algorithm is not that of the CA's key"),
        (field(&tbs, 3, Some(b"\x30\x00")), "the issuer is not the subject of the CA's certificate"),
        (field(&tbs, 4, Some(&validity(to, from))), "the validity ends before it begins"),
        (field(&tbs, 4, Some(&validity(from, from))), "the validity ends before it begins"),
        (field(&tbs, 4, Some(&validity(from, b"260102000001Z"))), "the validity is longer than allowed"),
        (field(&tbs, 4, Some(&validity(b"241231235900Z", b"250101000000Z"))), "the validity begins before the CA's"),
        (field(&tbs, 4, Some(&validity(b"341231235900Z", b"350101000001Z"))), "the validity ends after the CA's"),
        (field(&tbs, 4, Some(&validity(from, b"20260102000000Z"))), "a time before 2050 is a GeneralizedTime"),
        (field(&tbs, 4, Some(&validity(from, b"2601020000+00"))), "a time of the validity is malformed"),
        (field(&tbs, 4, Some(&validity(from, b"20600102000000.5Z"))), "a time of the validity is malformed"),
        (field(&tbs, 5, Some(ca.issuer.subject())), "the subject of a leaf is not empty"),
        (field(&tbs, 6, Some(&weak)), "the RSA key is malformed, or not of 2048 to 4096 bits"),
        (field(&tbs, 6, Some(b"\x30\x00")), "the public key is malformed"),
        (field(&tbs, 6, Some(ca.issuer.public_key().spki_der())), "the leaf has the CA's own key"),
        (field(&tbs, 7, None), "the extensions are missing"),
        (unique_id, "the extensions are missing"),
        (drop_(0), "the key usage is missing"),
        (drop_(1), "key usages, basic constraints and names are not those of one profile"),
        (drop_(2), "the basic constraints are missing"),
        (drop_(3), "the authority key identifier is not the CA's subject key identifier"),
        (drop_(4), "it names nobody"),
        (extended(&tbs, |list| list.swap(0, 1)), "an extension is none of ours, out of order or there twice"),
        (
            extended(&tbs, |list| list.push(list[4].clone())),
            "an extension is none of ours, out of order or there twice",
        ),
        (
            extended(&tbs, |list| list.push(extension(b"\x55\x1d\x20", None, b"\x30\x00"))),
            "an extension is none of ours, out of order or there twice",
        ),
        (
            set(0, &extension(b"\x55\x1d\x0f", None, b"\x03\x02\x05\xa0")),
            "an extension is critical and should not be, or the reverse",
        ),
        (set(0, &extension(b"\x55\x1d\x0f", Some(1), b"\x03\x02\x05\xa0")), "an extension is malformed"),
        (
            set(4, &extension(b"\x55\x1d\x11", None, &san_value(&[(6, id)]))),
            "an extension is critical and should not be, or the reverse",
        ),
        (
            set(0, &extension(b"\x55\x1d\x0f", Some(0xff), b"\x03\x02\x02\x04")),
            "key usages, basic constraints and names are not those of one profile",
        ),
        (
            set(2, &extension(b"\x55\x1d\x13", Some(0xff), b"\x30\x03\x01\x01\xff")),
            "key usages, basic constraints and names are not those of one profile",
        ),
        (
            set(1, &extension(b"\x55\x1d\x25", None, b"\x30\x06\x06\x04\x55\x1d\x25\x00")),
            "key usages, basic constraints and names are not those of one profile",
        ),
        (
            set(3, &extension(b"\x55\x1d\x23", None, b"\x30\x03\x80\x01x")),
            "the authority key identifier is not the CA's subject key identifier",
        ),
        (
            set(3, &extension(b"\x55\x1d\x23", None, b"\x30\x06\x80\x01x\x82\x01\x01")),
            "the authority key identifier is not a key identifier alone",
        ),
        (set(3, &extension(b"\x55\x1d\x0e", None, b"\x04\x01x")), "a leaf has a subject key identifier"),
        (with(&[]), "the subject alternative name is empty"),
        (with(&[(6, id), (6, b"spiffe://cluster.local/ns/foo/sa/other")]), "it has more than one SPIFFE ID"),
        (with(&[(6, id), (2, b"a")]), "it has a SPIFFE ID and other names"),
        (with(&[(7, &[10, 0, 0, 1]), (6, id)]), "it has a SPIFFE ID and other names"),
        (with(&[(2, b"a"), (2, b"a")]), "it has the same name twice"),
        (with(&[(6, b"https://cluster.local")]), "a URI is not a workload's SPIFFE ID"),
        (with(&[(2, b"A_b")]), "a DNS name is malformed"),
        (with(&[(7, b"abc")]), "an IP address is malformed"),
        (with(&[(1, b"a@b")]), "a name is of a kind that this CA does not issue"),
        (with(&many), "it has too many names"),
    ];
    for (tbs, expected) in cases {
        assert_eq!(judge(&tbs, &ca), Err(Finding(expected)));
    }
}

#[test]
fn profiles_are_distinguished() {
    let ca = SoftCa::new(&P256);
    let organization = "o".to_owned();
    let profile = Profile::Intermediate { organization };
    let template = Template { profile, names: vec![], ..leaf(&[ID]) };
    let tbs = Tbs::build(template, Arc::clone(&ca.issuer), Serial::random()).unwrap();
    let (facts, below) = (Facts::parse(tbs.der()).unwrap(), Ca::from(&*ca.issuer));
    assert_eq!((facts.is_ca, facts.path_len), (true, Some(0)));
    assert_eq!(intermediate(&facts, &below, LONGEST), Ok(()));
    assert!(leaf_rules(&facts, &below, LONGEST).is_err());
    assert!(self_signed_root(&facts, &below, LONGEST).is_err());
    for (name, verdict) in [
        ((2, b"ca.example.com".as_slice()), Ok(())),
        (
            (6, b"spiffe://cluster.local/ns/foo/sa/bar"),
            Err(Finding("the intermediate has a name that is not a DNS name")),
        ),
        ((7, b"\x0a\x00\x00\x01"), Err(Finding("the intermediate has a name that is not a DNS name"))),
    ] {
        let san = extension(b"\x55\x1d\x11", Some(0xff), &san_value(&[name]));
        let named = extended(tbs.der(), |list| list.push(san));
        assert_eq!(intermediate(&Facts::parse(&named).unwrap(), &below, LONGEST), verdict, "{name:?}");
    }
    let last = Ca { path_len: Some(0), ..below };
    assert_eq!(
        intermediate(&facts, &last, LONGEST).unwrap_err().0,
        "the CA's path length forbids an intermediate below it"
    );
    assert!(intermediate(&Facts::parse(&good(&ca)).unwrap(), &below, LONGEST).is_err());
}

/// The CA certificate of a ceremony.
fn ceremony(subject: &[u8], path_len: Option<u8>, key: &rcgen::KeyPair) -> Template {
    let profile = CaProfile { subject: subject.to_vec(), subject_key_id: b"identifier".to_vec(), path_len };
    Template { profile: Profile::Ca(profile), names: vec![], public_key: public(key), ..leaf(&[ID]) }
}

#[test]
fn certificate_of_a_ceremony_obeys_its_issuer() {
    let ca = SoftCa::new(&P256);
    let subject = b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x0a\x0c\x01o";
    let tbs = Tbs::build(ceremony(subject, Some(1), &P384), Arc::clone(&ca.issuer), Serial::random()).unwrap();
    let (facts, above) = (Facts::parse(tbs.der()).unwrap(), Ca::from(&*ca.issuer));
    assert_eq!(facts.profile, tbs.template().profile);
    assert_eq!((facts.is_ca, facts.path_len), (true, Some(1)));
    assert!(intermediate(&facts, &above, LONGEST).is_err() && self_signed_root(&facts, &above, LONGEST).is_err());

    let longest =
        Profile::Ca(CaProfile { subject: Vec::new(), subject_key_id: Vec::new(), path_len: None }).max_lifetime();
    let judge = |template: Template, above: &Ca<'_>| {
        let unlinted = tbs::unchecked(&template, &ca.issuer, Serial::random()).unwrap();
        let judged = Facts::parse(&unlinted).and_then(|facts| certificate_authority(&facts, above, longest));
        judged.map_err(|finding| finding.0)
    };
    assert_eq!(judge(ceremony(subject, None, &P384), &above), Ok(()));
    let limited = Ca { path_len: Some(1), ..above };
    assert_eq!(judge(ceremony(subject, Some(0), &P384), &limited), Ok(()));
    let path = Err("the path length is not below that of the CA above");
    assert_eq!(judge(ceremony(subject, Some(1), &P384), &limited), path);
    assert_eq!(judge(ceremony(subject, None, &P384), &limited), path);
    assert_eq!(judge(ceremony(b"\x30\x00", None, &P384), &above), Err("the subject of the CA is empty"));
    let own_name = Err("the CA has the name of the one that certifies it");
    assert_eq!(judge(ceremony(ca.issuer.subject(), None, &P384), &above), own_name);
    let ends = Err("the validity ends after the CA's");
    let late = Template { not_after: ca.issuer.not_after() + DAY, ..ceremony(subject, None, &P384) };
    assert_eq!(judge(late, &above), ends);

    // Self-signed: its own name, no authority key identifier, and a validity of its own.
    let renewed = |subject: &[u8]| Template { not_after: now() + 9000 * DAY, ..ceremony(subject, None, &P256) };
    let own = Issuer::of_new_root(&renewed(ca.issuer.subject())).unwrap();
    let tbs = Tbs::build(renewed(ca.issuer.subject()), own, Serial::random()).unwrap();
    assert_eq!(Facts::parse(tbs.der()).unwrap().authority_key_id, None);
    let unlinted = tbs::unchecked(&renewed(subject), &ca.issuer, Serial::random()).unwrap();
    let other_name = certificate_authority(&Facts::parse(&unlinted).unwrap(), &above, longest);
    assert_eq!(other_name, Err(Finding("issuer and subject of the self-signed certificate differ")));
}

#[test]
fn a_changed_byte_is_found_or_stands_in_a_value_that_may_differ() {
    let ca = SoftCa::new(&P256);
    let tbs = good(&ca);
    let original = Facts::parse(&tbs).unwrap();
    for at in 0..tbs.len() {
        for mask in [0x01, 0x20, 0x80, 0xff] {
            let mut bad = tbs.clone();
            bad[at] ^= mask;
            if judge(&bad, &ca).is_ok() {
                let facts = Facts::parse(&bad).unwrap();
                assert_ne!(facts, original, "byte {at} ^ {mask:#x} changes nothing that is compared");
            }
        }
        assert!(judge(&tbs[..at], &ca).is_err(), "cut at {at}");
    }
}

#[test]
fn utc_time_ends_with_2049() {
    let ca = SoftCa::with_life(&P256, (2025, 1, 1), (2060, 1, 1));
    let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
    let template = |from: SystemTime, to| Template { not_before: from, not_after: to, ..leaf(&[ID]) };
    let built = Tbs::build(template(at(2_524_607_990), at(2_524_608_010)), Arc::clone(&ca.issuer), Serial::random());
    let tbs = built.unwrap();
    let facts = Facts::parse(tbs.der()).unwrap();
    assert_eq!((facts.not_before, facts.not_after), (at(2_524_607_990), at(2_524_608_010)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Facts::parse(&bytes).is_err());
        prop_assert!(Ca::from_certificate(&bytes).is_err());
    }

    #[test]
    fn spliced_certificates_never_panic(at in 0usize..400, cut in 0usize..20, bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
        let ca = SoftCa::new(&P256);
        let mut tbs = good(&ca);
        let at = at.min(tbs.len());
        let end = (at + cut).min(tbs.len());
        tbs.splice(at..end, bytes);
        let _ = judge(&tbs, &ca);
        let mut certificate = ca.issuer.certificate().to_vec();
        let end = end.min(certificate.len());
        certificate.drain(at.min(end)..end);
        let _ = Ca::from_certificate(&certificate);
    }
}
