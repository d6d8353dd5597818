use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair},
};
use proptest::prelude::*;

use super::*;

fn spki(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    key.as_der().unwrap().as_ref().to_vec()
}

fn ec(algorithm: &'static signature::EcdsaSigningAlgorithm) -> (EcdsaKeyPair, PublicKey) {
    let pair = EcdsaKeyPair::generate(algorithm).unwrap();
    let key = PublicKey::from_spki_der(&spki(pair.public_key())).unwrap();
    (pair, key)
}

/// A SubjectPublicKeyInfo of an RSA key with these numbers, valid or not.
fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap();
        let mut out = vec![tag];
        match length {
            0..=127 => out.push(length.to_be_bytes()[1]),
            128..=255 => out.extend([0x81, length.to_be_bytes()[1]]),
            256.. => out.extend([&[0x82][..], &length.to_be_bytes()].concat()),
        }
        out.extend(content);
        out
    }
    let integer = |number: &[u8]| {
        let sign = number.first().is_some_and(|byte| *byte >= 0x80);
        tlv(2, &[&vec![0; usize::from(sign)], number].concat())
    };
    let key = tlv(0x30, &[integer(modulus), integer(exponent)].concat());
    let algorithm = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    tlv(0x30, &[&algorithm[..], &tlv(3, &[&[0], &key[..]].concat())].concat())
}

/// 2^`bits` - 1.
fn ones(bits: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; bits.div_ceil(8)];
    bytes[0] >>= (8 - bits % 8) % 8;
    bytes
}

fn is_divisible(number: &[u8], by: u32) -> bool {
    number.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % by) == 0
}

/// The largest number of this many bits without a factor below 100.
fn modulus(bits: usize) -> Vec<u8> {
    let mut number = ones(bits);
    while (2..100).any(|factor| is_divisible(&number, factor)) {
        *number.last_mut().unwrap() -= 1;
    }
    number
}

#[test]
fn rsa_modulus_has_no_small_factor() {
    let f4 = &[1, 0, 1];
    for bits in [2048, 2050, 2052, 3072, 4095, 4096] {
        // Divided by 53 and no smaller prime, and so on.
        for factor in [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53_u32] {
            let mut number = ones(bits);
            let smaller = |number: &[u8]| (2..factor).any(|smaller| is_divisible(number, smaller));
            while !is_divisible(&number, factor) || smaller(&number) {
                let at = number.iter().rposition(|byte| *byte != 0).unwrap();
                number[at..].iter_mut().for_each(|byte| *byte = byte.wrapping_sub(1));
            }
            assert_eq!(PublicKey::from_rsa(&number, f4), Err(KeyError::SmallFactor(factor.into())), "{bits}");
        }
        assert!(PublicKey::from_rsa(&modulus(bits), f4).is_ok(), "{bits}");
    }
    assert_eq!(PublicKey::from_spki_der(&rsa_spki(&ones(2048), f4)), Err(KeyError::SmallFactor(3)));
}

#[test]
fn rsa_is_bounded_before_any_arithmetic() {
    let f4 = &[1, 0, 1][..];
    let cases: &[(usize, &[u8], Result<u16, KeyError>)] = &[
        (2048, f4, Ok(2048)),
        (2049, f4, Ok(2049)),
        (4096, f4, Ok(4096)),
        (3072, &[3], Ok(3072)),
        (2048, &[0xff, 0xff, 0xff, 0xff], Ok(2048)),
        (2047, f4, Err(KeyError::RsaSize(2047))),
        (1024, f4, Err(KeyError::RsaSize(1024))),
        (4097, f4, Err(KeyError::RsaSize(4097))),
        (65536, f4, Err(KeyError::RsaSize(65536))),
        (2048, &[1], Err(KeyError::RsaExponent)),
        (2048, &[4], Err(KeyError::RsaExponent)),
        (2048, &[1, 0, 0, 0, 1], Err(KeyError::RsaExponent)),
    ];
    for (bits, exponent, expected) in cases {
        let found = PublicKey::from_spki_der(&rsa_spki(&modulus(*bits), exponent));
        let expected = expected.clone().map(|bits| KeyAlgorithm::Rsa { bits });
        assert_eq!(found.as_ref().map(PublicKey::algorithm), expected.as_ref().copied(), "{bits} {exponent:?}");
        let of_token = PublicKey::from_rsa(&[&[0], &modulus(*bits)[..]].concat(), exponent);
        assert_eq!(of_token, found, "{bits} {exponent:?}");
        if let Ok(key) = found {
            assert_eq!(key.rsa_components(), Some((&modulus(*bits)[..], *exponent)));
            assert_eq!(key.has_usual_exponent(), *exponent == f4);
            assert_eq!((key.ec_point(), key.ec_parameters_der()), (None, None));
        }
    }
    let even = rsa_spki(&[&modulus(2040)[..], &[0]].concat(), f4);
    assert!(matches!(PublicKey::from_spki_der(&even), Err(KeyError::Malformed(_))));
    assert_eq!(PublicKey::from_rsa(&[], &[]), Err(KeyError::RsaSize(0)));
}

#[test]
fn curves_are_named_and_points_uncompressed_and_on_them() {
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl").args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let public = |arguments: &[&str]| {
        let mut private = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut private, &openssl(&[&["genpkey", "-algorithm"], arguments].concat())).unwrap();
        move |more: &[&str]| {
            let path = private.path().to_str().unwrap();
            openssl(&[&["pkey", "-pubout", "-outform", "DER", "-in", path], more].concat())
        }
    };
    let named = "ec_param_enc:named_curve";
    let p256 = public(&["EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", named]);
    let good = p256(&[]);
    assert_eq!(PublicKey::from_spki_der(&good).unwrap().algorithm(), KeyAlgorithm::P256);
    let p384 = public(&["EC", "-pkeyopt", "ec_paramgen_curve:P-384"])(&[]);
    assert_eq!(PublicKey::from_spki_der(&p384).unwrap().algorithm(), KeyAlgorithm::P384);
    let ed25519 = public(&["ED25519"])(&[]);
    assert_eq!(PublicKey::from_spki_der(&ed25519).unwrap().algorithm(), KeyAlgorithm::Ed25519);

    let mut off_curve = good.clone();
    *off_curve.last_mut().unwrap() ^= 1;
    let mut infinity = good.clone();
    infinity[26] = 0;
    let malformed = [
        ("compressed", p256(&["-ec_conv_form", "compressed"])),
        ("off the curve", off_curve),
        ("wrong first byte", infinity),
        ("trailing byte", [&good[..], &[0]].concat()),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("empty", vec![]),
    ];
    for (name, der) in malformed {
        assert!(matches!(PublicKey::from_spki_der(&der), Err(KeyError::Malformed(_))), "{name}");
    }
    let unsupported = [
        ("P-521", public(&["EC", "-pkeyopt", "ec_paramgen_curve:P-521"])(&[])),
        ("secp256k1", public(&["EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"])(&[])),
        (
            "explicit parameters",
            public(&["EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"])(&[]),
        ),
        ("Ed448", public(&["ED448"])(&[])),
        ("X25519", public(&["X25519"])(&[])),
        ("RSASSA-PSS", public(&["RSA-PSS"])(&[])),
    ];
    for (name, der) in unsupported {
        let error = PublicKey::from_spki_der(&der).unwrap_err();
        assert!(matches!(&error, KeyError::UnsupportedType(found) if found.contains(name)), "{name}: {error}");
    }
}

fn ed25519_spki(point: &[u8]) -> Vec<u8> {
    [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", point].concat()
}

/// 2^255 - 19 + `add`, little-endian, with the sign of x.
fn field_prime_and(add: u8, negative: bool) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xed + add;
    bytes[31] = if negative { 0xff } else { 0x7f };
    bytes
}

#[test]
fn ed25519_point_of_small_order_is_refused() {
    let canonical = curve25519_dalek::constants::EIGHT_TORSION.map(|point| point.compress().to_bytes());
    // The identity, and the points of order 2 and 4, in their other encodings.
    let mut negative_identity = [0; 32];
    (negative_identity[0], negative_identity[31]) = (1, 0x80);
    let mut negative_order_two = field_prime_and(0, true);
    negative_order_two[0] = 0xec;
    let others = [
        negative_identity,
        negative_order_two,
        field_prime_and(0, false),
        field_prime_and(0, true),
        field_prime_and(1, false),
        field_prime_and(1, true),
    ];
    for point in canonical.iter().chain(&others) {
        assert_eq!(PublicKey::from_spki_der(&ed25519_spki(point)), Err(KeyError::SmallOrder), "{point:02x?}");
        let of_token = PublicKey::from_ec_point(b"\x06\x03\x2b\x65\x70", point);
        assert_eq!(of_token, Err(KeyError::SmallOrder), "{point:02x?}");
    }
}

#[test]
fn ed25519_point_is_on_its_curve_and_in_its_only_encoding() {
    let (mut off_curve, mut other_encodings) = (0, 0);
    for y in 2..=18 {
        let mut canonical = [0; 32];
        canonical[0] = y;
        let malformed = |point: [u8; 32]| match PublicKey::from_spki_der(&ed25519_spki(&point)) {
            Ok(_) => None,
            Err(KeyError::Malformed(reason)) => Some(reason),
            Err(other) => panic!("{point:02x?}: {other}"),
        };
        let expected = match malformed(canonical) {
            None => {
                other_encodings += 1;
                "its point is not in the only encoding of RFC 8032"
            }
            Some(reason) => {
                assert_eq!(reason, "its point is not on the curve of Ed25519");
                off_curve += 1;
                reason
            }
        };
        assert_eq!(malformed(field_prime_and(y, false)), Some(expected), "{y}");
        assert_eq!(malformed(field_prime_and(y, true)), Some(expected), "{y}");
    }
    assert!(off_curve > 0 && other_encodings > 0, "{off_curve} {other_encodings}");
}

#[test]
fn only_the_canonical_encoding_is_accepted() {
    let good = rsa_spki(&modulus(2048), &[1, 0, 1]);
    assert!(PublicKey::from_spki_der(&good).is_ok());
    // RSA without its NULL parameters.
    let mut without_null = good.clone();
    without_null.drain(17..19);
    without_null[3] -= 2;
    without_null[5] -= 2;
    let error = PublicKey::from_spki_der(&without_null).unwrap_err();
    assert_eq!(error, KeyError::Malformed("it is not the canonical DER of the key"));
}

#[test]
fn keys_of_a_token_are_the_keys_of_their_certificates() {
    let (_, p256) = ec(&signature::ECDSA_P256_SHA256_ASN1_SIGNING);
    let (_, p384) = ec(&signature::ECDSA_P384_SHA384_ASN1_SIGNING);
    let ed25519 = spki(Ed25519KeyPair::generate().unwrap().public_key());
    let ed25519 = PublicKey::from_spki_der(&ed25519).unwrap();
    for key in [&p256, &p384, &ed25519] {
        let (curve, point) = (key.ec_parameters_der().unwrap(), key.ec_point().unwrap());
        let wrapped = [&[4, u8::try_from(point.len()).unwrap()], point].concat();
        for form in [point, &wrapped] {
            assert_eq!(PublicKey::from_ec_point(curve, form).as_ref(), Ok(key));
        }
        assert!(PublicKey::from_ec_point(curve, &wrapped[..wrapped.len() - 1]).is_err());
        assert!(key.has_usual_exponent() && key.rsa_components().is_none());
    }
    let name = b"\x13\x0cedwards25519";
    assert_eq!(PublicKey::from_ec_point(name, ed25519.ec_point().unwrap()), Ok(ed25519));
    let wrong_curve = PublicKey::from_ec_point(p384.ec_parameters_der().unwrap(), p256.ec_point().unwrap());
    assert!(matches!(wrong_curve, Err(KeyError::Malformed(_))));
    assert!(matches!(PublicKey::from_ec_point(b"\x05\x00", &[]), Err(KeyError::UnsupportedType(_))));
}

#[test]
fn signatures_verify_with_their_own_algorithm_only() {
    use SignatureAlgorithm as A;
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa_key = PublicKey::from_spki_der(&spki(rsa.public_key())).unwrap();
    let rsa_sign = |encoding| {
        let mut signature = vec![0; 256];
        rsa.sign(encoding, &random, b"message", &mut signature).unwrap();
        signature
    };
    let (p256, p256_key) = ec(&signature::ECDSA_P256_SHA256_ASN1_SIGNING);
    let (p384, p384_key) = ec(&signature::ECDSA_P384_SHA384_ASN1_SIGNING);
    let ed25519 = Ed25519KeyPair::generate().unwrap();
    let ed25519_key = PublicKey::from_spki_der(&spki(ed25519.public_key())).unwrap();
    let ec_sign = |pair: &EcdsaKeyPair| pair.sign(&random, b"message").unwrap().as_ref().to_vec();
    let cases = [
        (&rsa_key, A::RsaSha256, rsa_sign(&signature::RSA_PKCS1_SHA256)),
        (&rsa_key, A::RsaSha384, rsa_sign(&signature::RSA_PKCS1_SHA384)),
        (&rsa_key, A::RsaSha512, rsa_sign(&signature::RSA_PKCS1_SHA512)),
        (&p256_key, A::EcdsaSha256, ec_sign(&p256)),
        (&p384_key, A::EcdsaSha384, ec_sign(&p384)),
        (&ed25519_key, A::Ed25519, ed25519.sign(b"message").as_ref().to_vec()),
    ];
    for (key, algorithm, signature) in &cases {
        for (other_key, other, _) in &cases {
            let expected = key == other_key && algorithm == other;
            assert_eq!(other_key.verify(*other, b"message", signature).is_ok(), expected, "{algorithm} {other}");
        }
        assert_eq!(key.verify(*algorithm, b"massage", signature), Err(SignatureInvalid));
        assert_eq!(key.verify(*algorithm, b"message", &[]), Err(SignatureInvalid));
        let mut flipped = signature.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(key.verify(*algorithm, b"message", &flipped), Err(SignatureInvalid));
    }
    let fixed = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let key = PublicKey::from_spki_der(&spki(fixed.public_key())).unwrap();
    assert!(key.verify(A::EcdsaSha256, b"message", &ec_sign(&fixed)).is_err(), "r and s without DER are accepted");
    let sha1 = rsa_key.verify_legacy_sha1(b"message", &cases[0].2);
    assert_eq!(sha1, Err(SignatureInvalid));
}

#[test]
fn identifiers_are_those_of_openssl() {
    let (_, key) = ec(&signature::ECDSA_P256_SHA256_ASN1_SIGNING);
    let digest = |arguments: &[&str], bytes: &[u8]| {
        let mut child = std::process::Command::new("openssl")
            .args([&["dgst", "-binary"], arguments].concat())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), bytes).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    assert_eq!(digest(&["-sha1"], key.subject_public_key()), key.key_id());
    assert_eq!(digest(&["-sha256"], key.spki_der()), key.fingerprint());
    let shown = format!("{key:?}");
    assert!(shown.starts_with("PublicKey(P-256, SHA-256 ") && shown.len() < 100, "{shown}");
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(bytes: Vec<u8>, more: Vec<u8>) {
        let _ = PublicKey::from_spki_der(&bytes);
        let _ = PublicKey::from_rsa(&bytes, &more);
        let _ = PublicKey::from_ec_point(b"\x06\x03\x2b\x65\x70", &bytes);
    }

    #[test]
    fn one_changed_byte_is_refused_or_another_key(at in 0_usize..294, to: u8) {
        let mut der = rsa_spki(&modulus(2048), &[1, 0, 1]);
        let before = PublicKey::from_spki_der(&der).unwrap();
        let changed = der[at] != to;
        der[at] = to;
        if let Ok(after) = PublicKey::from_spki_der(&der) {
            prop_assert_eq!(after != before, changed);
        }
    }
}
