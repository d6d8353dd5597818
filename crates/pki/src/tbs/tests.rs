use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::{Decode, Encode, Tag};
use rcgen::{PublicKeyData, SigningKey};
use x509_cert::{
    certificate::TbsCertificate,
    ext::pkix::{
        AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
        SubjectKeyIdentifier, name::GeneralName,
    },
};

use super::*;
use crate::Issued;
use crate::testing::*;
use crate::{lint::reader::DerReader, verify::VerifyError};

const SERIAL: Serial = Serial([0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

#[expect(clippy::unwrap_in_result, reason = "only the last step is under test")]
fn issue(ca: &SoftCa, template: Template) -> Result<Issued, VerifyError> {
    let tbs = Tbs::build(template, Arc::clone(&ca.issuer), SERIAL).unwrap();
    let signature = ca.key.sign(tbs.der()).unwrap();
    Issued::assemble(Arc::new(tbs), &signature)
}

fn intermediate() -> Template {
    let profile = Profile::Intermediate { organization: "cluster.local".to_owned() };
    Template { profile, names: Vec::new(), ..leaf(&[ID]) }
}

fn root(organization: &str) -> Template {
    let profile = Profile::SelfSignedRoot { organization: organization.to_owned() };
    Template { profile, names: Vec::new(), not_after: now() + 3650 * DAY, public_key: public(&P256), ..leaf(&[ID]) }
}

/// Each field as Istio's own CA encodes it, with the DER written by hand.
#[test]
fn a_leaf_is_istios_field_by_field() {
    let ca = SoftCa::new(&P256);
    let tbs = Tbs::build(leaf(&[ID]), Arc::clone(&ca.issuer), SERIAL).unwrap();
    let mut fields = DerReader::inside(tbs.der(), Tag::Sequence).unwrap();
    let mut next = || fields.any_whole().unwrap().1.to_vec();
    assert_eq!(next(), b"\xa0\x03\x02\x01\x02", "version 3");
    let serial = b"\x02\x11\x00\x80\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f";
    assert_eq!(next(), serial, "positive, 17 bytes");
    assert_eq!(next(), b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", "ecdsa-with-SHA256");
    let issuer = b"\x30\x22\x31\x0e\x30\x0c\x06\x03\x55\x04\x0a\x0c\x05Istio\
        \x31\x10\x30\x0e\x06\x03\x55\x04\x03\x0c\x07Root CA";
    assert_eq!(next(), issuer, "issuer");
    assert_eq!(next(), b"\x30\x1e\x17\x0d251231235800Z\x17\x0d260102000000Z", "validity");
    assert_eq!(next(), b"\x30\x00", "empty subject");
    assert_eq!(next(), WORKLOAD.subject_public_key_info(), "public key");
    let extensions = [
        b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x05\xa0".as_slice(),
        b"\x30\x1d\x06\x03\x55\x1d\x25\x04\x16\x30\x14",
        b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02",
        b"\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00",
        b"\x30\x1f\x06\x03\x55\x1d\x23\x04\x18\x30\x16\x80\x14",
        ca.issuer.subject_key_id().unwrap(),
        b"\x30\x32\x06\x03\x55\x1d\x11\x01\x01\xff\x04\x28\x30\x26\x86\x24spiffe://cluster.local/ns/foo/sa/bar",
    ]
    .concat();
    assert_eq!(next(), element(context(3, true), &[&element(Tag::Sequence, &[&extensions])]), "extensions");
    assert!(fields.at_end());
}

/// The extensions of CA certificates, with the DER written by hand.
#[test]
fn ca_certificates_have_exactly_these_extensions() {
    let extensions = |der: &[u8]| {
        let tbs = TbsCertificate::from_der(der).unwrap();
        tbs.extensions().unwrap().iter().flat_map(|each| each.to_der().unwrap()).collect::<Vec<u8>>()
    };
    let ca = SoftCa::new(&P256);
    let below = Tbs::build(intermediate(), Arc::clone(&ca.issuer), SERIAL).unwrap();
    let expected = [
        b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x01\x86".as_slice(),
        b"\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00",
        b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14",
        &public(&WORKLOAD).key_id(),
        b"\x30\x1f\x06\x03\x55\x1d\x23\x04\x18\x30\x16\x80\x14",
        ca.issuer.subject_key_id().unwrap(),
    ];
    assert_eq!(extensions(below.der()), expected.concat(), "intermediate");

    let new_root = Tbs::build(root("o"), Issuer::of_new_root(&root("o")).unwrap(), SERIAL).unwrap();
    let expected = [
        b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x02\x04".as_slice(),
        b"\x30\x0f\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x05\x30\x03\x01\x01\xff",
        b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14",
        &public(&P256).key_id(),
    ];
    assert_eq!(extensions(new_root.der()), expected.concat(), "root");
}

/// DER sorts the attributes of an RDN, but some CA certificates do not.
#[test]
fn the_issuer_keeps_the_order_of_its_attributes() {
    let subject = b"\x30\x18\x31\x16\x30\x09\x06\x03\x55\x04\x0a\x0c\x02zz\x30\x09\x06\x03\x55\x04\x03\x0c\x02aa";
    let issuer = Issuer::self_signed(subject.to_vec(), public(&P256), now() - DAY, now() + 30 * DAY);
    let tbs = Tbs::build(leaf(&[ID]), Arc::new(issuer), SERIAL).unwrap();
    assert_eq!(Facts::parse(tbs.der()).unwrap().issuer, subject);
}

#[test]
fn another_reader_finds_the_same() {
    let ca = SoftCa::new(&RSA);
    let names = ["DNS:istiod.istio-system.svc", "DNS:*.example.com", "IP:10.0.0.1", "IP:::1"];
    let usages = KeyUsages::DigitalSignature;
    let cases = [
        (leaf(&names), usages | KeyUsages::KeyEncipherment, false, None, true),
        (intermediate(), usages | KeyUsages::KeyCertSign | KeyUsages::CRLSign, true, Some(0), true),
    ];
    for (template, usages, is_ca, path_len, authority) in cases {
        let der = Tbs::build(template.clone(), Arc::clone(&ca.issuer), SERIAL).unwrap().der().to_vec();
        let tbs = TbsCertificate::from_der(&der).unwrap();
        assert_eq!(tbs.to_der().unwrap(), der, "strict DER");
        assert_eq!(tbs.issuer().to_der().unwrap(), ca.issuer.subject());
        assert_eq!(tbs.get_extension::<KeyUsage>().unwrap(), Some((true, KeyUsage(usages))));
        let constraints = BasicConstraints { ca: is_ca, path_len_constraint: path_len };
        assert_eq!(tbs.get_extension::<BasicConstraints>().unwrap(), Some((true, constraints)));
        let (_, found) = tbs.get_extension::<AuthorityKeyIdentifier>().unwrap().unwrap();
        assert!(authority && found.authority_cert_issuer.is_none() && found.authority_cert_serial_number.is_none());
        assert_eq!(found.key_identifier.unwrap().as_bytes(), ca.issuer.subject_key_id().unwrap());
        let own = tbs.get_extension::<SubjectKeyIdentifier>().unwrap();
        assert_eq!(own.is_some(), is_ca);
        let purposes = tbs.get_extension::<ExtendedKeyUsage>().unwrap();
        assert_eq!(purposes.is_some(), !is_ca);
        let found = tbs.get_extension::<SubjectAltName>().unwrap();
        assert_eq!(found.as_ref().is_some_and(|(critical, _)| *critical), !is_ca, "critical SAN");
        let found = found.map(|(_, SubjectAltName(names))| names).unwrap_or_default();
        let shown: Vec<_> = found
            .iter()
            .map(|name| match name {
                GeneralName::DnsName(name) => format!("DNS:{name}"),
                GeneralName::IpAddress(bytes) if bytes.as_bytes().len() == 4 => "IP:10.0.0.1".to_owned(),
                GeneralName::IpAddress(_) => "IP:::1".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shown, template.names.iter().map(ToString::to_string).collect::<Vec<_>>());
        issue(&ca, template).unwrap();
    }
}

#[test]
fn a_root_signs_itself() {
    for (organization, tag) in [("cluster.local", 0x13), ("Größe", 0x0c), ("a@b", 0x0c)] {
        let template = root(organization);
        let issuer = Issuer::of_new_root(&template).unwrap();
        let ca = SoftCa { key: &P256, issuer };
        let issued = issue(&ca, template).unwrap();
        let tbs = TbsCertificate::from_der(issued.tbs().der()).unwrap();
        assert_eq!(tbs.issuer(), tbs.subject());
        assert_eq!(ca.issuer.subject()[11], tag, "{organization}");
        assert_eq!(tbs.get_extension::<KeyUsage>().unwrap(), Some((true, KeyUsage(KeyUsages::KeyCertSign.into()))));
        let constraints = BasicConstraints { ca: true, path_len_constraint: None };
        assert_eq!(tbs.get_extension::<BasicConstraints>().unwrap(), Some((true, constraints)));
        let (critical, id) = tbs.get_extension::<SubjectKeyIdentifier>().unwrap().unwrap();
        assert!(!critical && id.0.as_bytes() == public(&P256).key_id());
        assert_eq!(tbs.extensions().unwrap().len(), 3);
        assert_eq!(issued.chain().len(), 2, "fewer than two elements");
    }
    assert!(Issuer::of_new_root(&leaf(&[ID])).is_err());
    assert!(Issuer::of_new_root(&root("")).is_err());
    assert!(Issuer::of_new_root(&root("a\nb")).is_err());
    assert!(Issuer::of_new_root(&root(&"x".repeat(65))).is_err());
    let wrong_key = Template { public_key: public(&P384), ..root("o") };
    let built = Tbs::build(wrong_key, Issuer::of_new_root(&root("o")).unwrap(), SERIAL);
    assert!(matches!(built, Err(TbsError::Lint(_))), "{built:?}");
}

#[test]
fn times_change_their_form_in_2050() {
    let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
    let cases: &[(SystemTime, Option<&[u8]>)] = &[
        (at(0), Some(b"\x17\x0d700101000000Z")),
        (at(2_524_607_999), Some(b"\x17\x0d491231235959Z")),
        (at(2_524_608_000), Some(b"\x18\x0f20500101000000Z")),
        (at(253_402_300_799), Some(b"\x18\x0f99991231235959Z")),
        (at(253_402_300_800), None),
        (at(u64::try_from(i64::MAX).unwrap()), None),
        (at(1) + Duration::from_millis(500), None),
        (UNIX_EPOCH - Duration::from_secs(1), None),
    ];
    for (time, expected) in cases {
        assert_eq!(encode::time(*time).map(|time| time.to_der().unwrap()).ok().as_deref(), *expected, "{time:?}");
    }
}

#[test]
fn invalid_template_is_not_built() {
    let ca = SoftCa::new(&P256);
    let many: Vec<_> = (0..65).map(|n| format!("DNS:a{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let other = "URI:spiffe://cluster.local/ns/foo/sa/other";
    let cases: Vec<(&str, Template)> = vec![
        ("no name", leaf(&[])),
        ("many names", leaf(&many)),
        ("two SPIFFE IDs", leaf(&[ID, other])),
        ("the same name twice", leaf(&["DNS:a", "DNS:a"])),
        ("ends before it begins", Template { not_after: now() - DAY, ..leaf(&[ID]) }),
        ("ends as it begins", Template { not_after: leaf(&[ID]).not_before, ..leaf(&[ID]) }),
        ("after the CA's end", Template { not_after: now() + 3651 * DAY, ..leaf(&[ID]) }),
        ("before the CA's beginning", Template { not_before: now() - 366 * DAY, ..leaf(&[ID]) }),
        ("fraction", Template { not_after: now() + Duration::from_nanos(1), ..leaf(&[ID]) }),
        ("an intermediate with a name", Template { names: vec![san(ID)], ..intermediate() }),
        ("an intermediate of the CA's key", Template { public_key: public(&P256), ..intermediate() }),
    ];
    for (what, template) in cases {
        assert!(Tbs::build(template, Arc::clone(&ca.issuer), SERIAL).is_err(), "{what}");
    }
}

#[test]
fn serial_numbers() {
    assert_eq!(SERIAL.to_hex(), "800102030405060708090a0b0c0d0e0f");
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let serial = Serial::random();
        assert!(serial.as_bytes()[0] >= 0x80);
        assert!(seen.insert(serial));
    }
}

/// The bytes differ from the template: each difference is detected, although the signature is valid.
#[test]
fn every_field_is_compared_with_what_was_granted() {
    let ca = SoftCa::new(&P256);
    let good = Tbs::build(leaf(&[ID]), Arc::clone(&ca.issuer), SERIAL).unwrap();
    let template = |template: Template| Tbs { template, ..good.clone() };
    let other = SoftCa { key: ca.key, issuer: SoftCa::new(&P384).issuer };
    let cases = [
        (good.clone(), None),
        (Tbs { serial: Serial([0x81; 16]), ..good.clone() }, Some("serial number")),
        (Tbs { issuer: other.issuer, ..good.clone() }, Some("signature algorithm")),
        (template(Template { not_before: now(), ..leaf(&[ID]) }), Some("notBefore")),
        (template(Template { not_after: now(), ..leaf(&[ID]) }), Some("notAfter")),
        (template(Template { public_key: public(&P384), ..leaf(&[ID]) }), Some("public key")),
        (template(Template { profile: intermediate().profile, ..leaf(&[ID]) }), Some("profile")),
        (template(leaf(&["URI:spiffe://cluster.local/ns/foo/sa/baz"])), Some("subject alternative name")),
        (template(leaf(&[ID, "DNS:a"])), Some("subject alternative name")),
    ];
    for (tbs, expected) in cases {
        let signature = ca.key.sign(tbs.der()).unwrap();
        let found = Issued::assemble(Arc::new(tbs), &signature).err();
        assert_eq!(found, expected.map(VerifyError::Field));
    }
    let new_root = Issuer::of_new_root(&root("o")).unwrap();
    let tbs = Tbs { issuer: new_root, ..good };
    let signature = ca.key.sign(tbs.der()).unwrap();
    assert_eq!(Issued::assemble(Arc::new(tbs), &signature).unwrap_err(), VerifyError::Field("issuer"));
}
