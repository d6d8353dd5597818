use der::Tag;
use rcgen::SigningKey;

use super::*;
use crate::testing::*;
use crate::{Issuer, Profile, Template};

fn tbs(ca: &SoftCa) -> Arc<Tbs> {
    Arc::new(Tbs::build(leaf(&[ID]), Arc::clone(&ca.issuer), Serial::random()).unwrap())
}

#[test]
fn a_good_signature_of_each_key_type_is_released() {
    for key in keys() {
        let ca = SoftCa::new(key);
        let tbs = tbs(&ca);
        let issued = Issued::assemble(Arc::clone(&tbs), &key.sign(tbs.der()).unwrap()).unwrap();
        assert_eq!(issued.names(), leaf(&[ID]).names);
        assert_eq!(issued.not_after() - DAY, now());
        assert_eq!(issued.serial(), tbs.serial());
        assert!(issued.der().windows(tbs.der().len()).any(|part| part == tbs.der()));
    }
}

#[test]
fn rehearsed_certificate_has_the_same_content_and_the_signature_of_the_stand_in() {
    let ca = SoftCa::new(&P256);
    let tbs = tbs(&ca);
    let signature = WORKLOAD.sign(tbs.der()).unwrap();
    let der = rehearsed(&tbs, &public(&WORKLOAD), &signature).unwrap();
    assert!(der.windows(tbs.der().len()).any(|part| part == tbs.der()));
    assert_eq!(rehearsed(&tbs, &public(&P256), &signature), Err(VerifyError::Signature));
    assert_eq!(Issued::assemble(tbs, &signature).unwrap_err(), VerifyError::Signature);
}

#[test]
fn no_other_signature_is_released() {
    for key in keys() {
        let ca = SoftCa::new(key);
        let tbs = tbs(&ca);
        let good = key.sign(tbs.der()).unwrap();
        let other = Tbs::build(leaf(&["DNS:a"]), Arc::clone(&ca.issuer), tbs.serial()).unwrap();
        let mut cases = vec![
            Vec::new(),
            vec![0; good.len()],
            [good.clone(), vec![0]].concat(),
            good[..good.len() - 1].to_vec(),
            key.sign(other.der()).unwrap(),
            key.sign(b"").unwrap(),
            vec![0xff; 5000],
        ];
        cases.extend(
            keys().into_iter().filter(|other| public(other) != public(key)).map(|other| other.sign(tbs.der()).unwrap()),
        );
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            cases.push(bad);
        }
        for bad in cases {
            let refused = Issued::assemble(Arc::clone(&tbs), &bad).unwrap_err();
            assert_eq!(refused, VerifyError::Signature, "{:?}: {bad:02x?}", ca.issuer.key_algorithm());
        }
    }
}

#[test]
fn an_ecdsa_signature_value_is_strict_der() {
    let number = |content: &[u8]| element(Tag::Integer, &[content]);
    let value = |r: &[u8], s: &[u8]| element(Tag::Sequence, &[&number(r), &number(s)]);
    let long = [[0].as_slice(), &[0xff; 32]].concat();
    let too_long = [[0x7f].as_slice(), &[0xff; 32]].concat();
    let cases: &[(&str, Vec<u8>, bool)] = &[
        ("short", value(&[1], &[1]), true),
        ("as long as the order", value(&long, &long), true),
        ("longer than the order", value(&too_long, &[1]), false),
        ("zero", value(&[0], &[1]), false),
        ("negative", value(&[0x80], &[1]), false),
        ("padded", value(&[0, 1], &[1]), false),
        ("empty integer", value(&[], &[1]), false),
        ("one integer", element(Tag::Sequence, &[&number(&[1])]), false),
        ("three integers", element(Tag::Sequence, &[&number(&[1]), &number(&[1]), &number(&[1])]), false),
        ("trailing byte", [value(&[1], &[1]), vec![0]].concat(), false),
        ("raw r and s", vec![1; 64], false),
        ("long form of a length", b"\x30\x81\x06\x02\x01\x01\x02\x01\x01".to_vec(), false),
    ];
    for (what, signature, good) in cases {
        assert_eq!(check_form(KeyAlgorithm::P256, signature).is_ok(), *good, "{what}");
    }
}

#[test]
fn the_chain_has_one_certificate_an_element_and_the_roots_last() {
    let ca = SoftCa::new(&P256);
    let sign = |template: Template, issuer: &Arc<Issuer>, key: &rcgen::KeyPair| {
        let tbs = Arc::new(Tbs::build(template, Arc::clone(issuer), Serial::random()).unwrap());
        let signature = key.sign(tbs.der()).unwrap();
        Issued::assemble(tbs, &signature).unwrap()
    };
    let profile = Profile::Intermediate { organization: "o".to_owned() };
    let below =
        Template { profile, public_key: public(&P384), names: vec![], not_after: now() + 30 * DAY, ..leaf(&[ID]) };
    let intermediate = sign(below, &ca.issuer, ca.key).to_pem();
    let root = ca.issuer.roots_pem();
    let two_roots = format!("# ours\n{root}# the next one\n{}", SoftCa::new(&RSA).issuer.roots_pem().trim_end());
    let cases: &[(Arc<Issuer>, &rcgen::KeyPair, &str, usize)] = &[
        (Arc::clone(&ca.issuer), &P256, root, 2),
        (plug_in(root, &two_roots), &P256, &two_roots, 2),
        (plug_in(&intermediate, root), &P384, root, 3),
        (plug_in(&intermediate, &two_roots), &P384, &two_roots, 3),
    ];
    for (issuer, key, roots, length) in cases {
        let issued = sign(leaf(&[ID]), issuer, key);
        let chain = issued.chain();
        assert_eq!(chain.len(), *length);
        assert_eq!(chain.last().map(String::as_str), Some(*roots), "byte for byte");
        for element in chain.iter().rev().skip(1) {
            assert!(element.ends_with("-----END CERTIFICATE-----\n"), "{element}");
            assert_eq!(element.matches("-----BEGIN CERTIFICATE-----").count(), 1);
        }
        assert_eq!(crate::pem::blocks(chain[0].as_bytes()).unwrap()[0].der.as_slice(), issued.der());
        if *length == 3 {
            assert_eq!(chain[1], intermediate);
        }
    }
}
