//! Decodes and encodes SubjectPublicKeyInfo and the keys in it (RFC 3279, RFC 5480, RFC 8410).
//!
//! All parsers check sizes before anything is computed with a key.

use const_oid::{
    ObjectIdentifier,
    db::{rfc5912, rfc8410},
};
use curve25519_dalek::edwards::CompressedEdwardsY;
use der::{
    AnyRef, Decode, Encode, Sequence,
    asn1::{BitStringRef, Null, OctetStringRef, UintRef},
};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::{KeyAlgorithm, KeyError};

const P256_DER: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384_DER: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519_DER: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// PKCS #11 3.0, section 2.3.5: a PrintableString names an Edwards curve.
const ED25519_NAME_DER: &[u8] = b"\x13\x0cedwards25519";

/// RFC 8017, appendix A.1.1.
#[derive(Sequence)]
pub(crate) struct RsaPublicKey<'a> {
    pub(crate) modulus: UintRef<'a>,
    pub(crate) public_exponent: UintRef<'a>,
}

/// A key's type and its subjectPublicKey bits.
pub(super) type Key = (KeyAlgorithm, Vec<u8>);

/// Parses a SubjectPublicKeyInfo. The caller checks whether the encoding is canonical.
pub(super) fn from_spki(der: &[u8]) -> Result<Key, KeyError> {
    let spki = SubjectPublicKeyInfoRef::from_der(der)
        .map_err(|_error| KeyError::Malformed("it is not a DER SubjectPublicKeyInfo"))?;
    let bits = spki
        .subject_public_key
        .as_bytes()
        .ok_or(KeyError::Malformed("its bit string is not a whole number of bytes"))?;
    match spki.algorithm.oid {
        rfc5912::RSA_ENCRYPTION => {
            let key = RsaPublicKey::from_der(bits)
                .map_err(|_error| KeyError::Malformed("it does not hold a DER RSAPublicKey"))?;
            rsa(key.modulus.as_bytes(), key.public_exponent.as_bytes())
        }
        rfc5912::ID_EC_PUBLIC_KEY => {
            let curve = spki.algorithm.parameters.ok_or(KeyError::Malformed("its curve is missing"))?;
            match curve.decode_as::<ObjectIdentifier>() {
                Ok(rfc5912::SECP_256_R_1) => point(KeyAlgorithm::P256, bits),
                Ok(rfc5912::SECP_384_R_1) => point(KeyAlgorithm::P384, bits),
                _ => Err(unsupported(spki.algorithm)),
            }
        }
        rfc8410::ID_ED_25519 => point(KeyAlgorithm::Ed25519, bits),
        _ => Err(unsupported(spki.algorithm)),
    }
}

/// The error that names a type of key which this CA does not take.
pub(crate) fn unsupported(algorithm: AlgorithmIdentifierRef<'_>) -> KeyError {
    KeyError::UnsupportedType(type_of(algorithm))
}

/// What kind of key an AlgorithmIdentifier is for, as people write it; also of kinds that this CA does not take.
pub(crate) fn type_of(algorithm: AlgorithmIdentifierRef<'_>) -> String {
    let (oid, kinds) = match (algorithm.oid, algorithm.parameters) {
        (rfc5912::ID_EC_PUBLIC_KEY, Some(parameters)) => match parameters.decode_as::<ObjectIdentifier>() {
            Ok(curve) => (curve, CURVES),
            Err(_) => return "EC with a curve that is spelled out as numbers (explicit parameters)".to_owned(),
        },
        (oid, _) => (oid, KEY_TYPES),
    };
    let name = kinds.iter().find(|(known, _)| *known == oid).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| match kinds {
        CURVES => format!("EC on the curve with OID {oid}"),
        _ => format!("of the type with OID {oid}"),
    })
}

/// The curves that are found in certificates.
const CURVES: &[(ObjectIdentifier, &str)] = &[
    (rfc5912::SECP_224_R_1, "P-224"),
    (rfc5912::SECP_256_R_1, "P-256"),
    (rfc5912::SECP_384_R_1, "P-384"),
    (rfc5912::SECP_521_R_1, "P-521"),
    (ObjectIdentifier::new_unwrap("1.2.156.10197.1.301"), "SM2"),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.1"), "P-192"),
    (ObjectIdentifier::new_unwrap("1.3.132.0.10"), "secp256k1"),
    (ObjectIdentifier::new_unwrap("1.3.36.3.3.2.8.1.1.7"), "brainpoolP256r1"),
    (ObjectIdentifier::new_unwrap("1.3.36.3.3.2.8.1.1.11"), "brainpoolP384r1"),
    (ObjectIdentifier::new_unwrap("1.3.36.3.3.2.8.1.1.13"), "brainpoolP512r1"),
];

/// The types of keys, other than EC, that are found in certificates.
const KEY_TYPES: &[(ObjectIdentifier, &str)] = &[
    (rfc5912::ID_DSA, "DSA"),
    (rfc5912::ID_EC_PUBLIC_KEY, "EC without a curve"),
    (rfc5912::ID_RSASSA_PSS, "RSASSA-PSS"),
    (rfc5912::RSA_ENCRYPTION, "RSA"),
    (rfc8410::ID_ED_25519, "Ed25519"),
    (rfc8410::ID_ED_448, "Ed448"),
    (rfc8410::ID_X_25519, "X25519"),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.17"), "ML-DSA-44"),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.18"), "ML-DSA-65"),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.19"), "ML-DSA-87"),
];

/// The odd primes whose product fits in 64 bits. More of them find few moduli more: a random odd number has one of these as
/// a factor in 72 of 100 cases, and one below 752 (NIST SP 800-89, section 5.3.3) in 83.
const SMALL_PRIMES: [u64; 15] = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53];

/// The smallest of [`SMALL_PRIMES`] that divides a big-endian number.
fn small_factor(number: &[u8]) -> Option<u64> {
    const PRODUCT: u64 = {
        let (mut product, mut at) = (1, 0);
        while at < SMALL_PRIMES.len() {
            product *= SMALL_PRIMES[at];
            at += 1;
        }
        product
    };
    let (first, words) = number.as_rchunks::<8>();
    let first = first.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte));
    let remainder = words.iter().try_fold(first % PRODUCT, |remainder, word| {
        let value = (u128::from(remainder) << 64) | u128::from(u64::from_be_bytes(*word));
        u64::try_from(value % u128::from(PRODUCT)).ok()
    })?;
    SMALL_PRIMES.into_iter().find(|prime| remainder % prime == 0)
}

/// An RSA key of big-endian numbers, leading zeros taken.
pub(super) fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Key, KeyError> {
    let modulus = without_leading_zeros(modulus);
    let exponent = without_leading_zeros(exponent);
    let bits = bit_length(modulus);
    if !(2048..=4096).contains(&bits) {
        return Err(KeyError::RsaSize(bits));
    }
    if modulus.last().is_none_or(|byte| byte % 2 == 0) {
        return Err(KeyError::Malformed("its RSA modulus is even"));
    }
    if exponent.last().is_none_or(|byte| byte % 2 == 0) || exponent == [1] || exponent.len() > 4 {
        return Err(KeyError::RsaExponent);
    }
    if let Some(factor) = small_factor(modulus) {
        return Err(KeyError::SmallFactor(factor));
    }
    let unencodable = |_error| KeyError::Malformed("its numbers cannot be encoded");
    let key = RsaPublicKey {
        modulus: UintRef::new(modulus).map_err(unencodable)?,
        public_exponent: UintRef::new(exponent).map_err(unencodable)?,
    };
    let bits = u16::try_from(bits).map_err(|_error| KeyError::RsaSize(bits))?;
    Ok((KeyAlgorithm::Rsa { bits }, key.to_der().map_err(unencodable)?))
}

/// A key from a token's CKA_EC_PARAMS and CKA_EC_POINT.
pub(super) fn ec_point(parameters_der: &[u8], raw_or_der: &[u8]) -> Result<Key, KeyError> {
    let algorithm = match parameters_der {
        P256_DER => KeyAlgorithm::P256,
        P384_DER => KeyAlgorithm::P384,
        ED25519_DER | ED25519_NAME_DER => KeyAlgorithm::Ed25519,
        other => {
            let parameters = AnyRef::from_der(other).ok();
            return Err(unsupported(AlgorithmIdentifierRef { oid: rfc5912::ID_EC_PUBLIC_KEY, parameters }));
        }
    };
    // No raw point is as long as a wrapped one of the same curve, so the length distinguishes them.
    let bits = match <&OctetStringRef>::from_der(raw_or_der) {
        Ok(wrapped) if wrapped.as_bytes().len() == point_length(algorithm) => wrapped.as_bytes(),
        _ => raw_or_der,
    };
    point(algorithm, bits)
}

/// Modulus and exponent of the RSAPublicKey in the subjectPublicKey bits.
pub(super) fn rsa_components(bits: &[u8]) -> Option<(&[u8], &[u8])> {
    let key = RsaPublicKey::from_der(bits).ok()?;
    Some((key.modulus.as_bytes(), key.public_exponent.as_bytes()))
}

/// DER of the curve's OID.
pub(super) fn ec_parameters_der(algorithm: KeyAlgorithm) -> Option<&'static [u8]> {
    match algorithm {
        KeyAlgorithm::Ed25519 => Some(ED25519_DER),
        KeyAlgorithm::P256 => Some(P256_DER),
        KeyAlgorithm::P384 => Some(P384_DER),
        KeyAlgorithm::Rsa { .. } => None,
    }
}

/// The only accepted encoding of a key.
pub(super) fn to_spki(algorithm: KeyAlgorithm, bits: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (oid, parameters) = match algorithm {
        KeyAlgorithm::Ed25519 => (rfc8410::ID_ED_25519, None),
        KeyAlgorithm::P256 => (rfc5912::ID_EC_PUBLIC_KEY, Some(AnyRef::from(&rfc5912::SECP_256_R_1))),
        KeyAlgorithm::P384 => (rfc5912::ID_EC_PUBLIC_KEY, Some(AnyRef::from(&rfc5912::SECP_384_R_1))),
        KeyAlgorithm::Rsa { .. } => (rfc5912::RSA_ENCRYPTION, Some(AnyRef::from(Null))),
    };
    BitStringRef::from_bytes(bits)
        .and_then(|subject_public_key| {
            SubjectPublicKeyInfoRef { algorithm: AlgorithmIdentifierRef { oid, parameters }, subject_public_key }
                .to_der()
        })
        .map_err(|_error| KeyError::Malformed("it cannot be encoded"))
}

/// Checks the form of a point, and for Ed25519 the point itself; whether one of another curve is on it is checked when
/// it is parsed.
fn point(algorithm: KeyAlgorithm, bits: &[u8]) -> Result<Key, KeyError> {
    if bits.len() != point_length(algorithm) {
        return Err(KeyError::Malformed("its point is compressed, or not of its curve's length"));
    }
    if algorithm != KeyAlgorithm::Ed25519 && bits.first() != Some(&0x04) {
        return Err(KeyError::Malformed("its point is not uncompressed"));
    }
    if algorithm == KeyAlgorithm::Ed25519 {
        ed25519(bits)?;
    }
    Ok((algorithm, bits.to_vec()))
}

/// Checks an Ed25519 key as RFC 8032, section 5.1.3, decodes it: aws-lc-rs takes any 32 bytes. A point of small order is
/// on the curve, but everyone can make signatures that verify with it.
fn ed25519(bits: &[u8]) -> Result<(), KeyError> {
    let encoded = CompressedEdwardsY::from_slice(bits)
        .map_err(|_error| KeyError::Malformed("its point is compressed, or not of its curve's length"))?;
    let point = encoded.decompress().ok_or(KeyError::Malformed("its point is not on the curve of Ed25519"))?;
    if point.is_small_order() {
        return Err(KeyError::SmallOrder);
    }
    // `decompress` also takes a y of 2^255-19 and more, and a negative sign of x = 0.
    if point.compress() != encoded {
        return Err(KeyError::Malformed("its point is not in the only encoding of RFC 8032"));
    }
    Ok(())
}

fn point_length(algorithm: KeyAlgorithm) -> usize {
    match algorithm {
        KeyAlgorithm::Ed25519 => 32,
        KeyAlgorithm::P256 => 65,
        KeyAlgorithm::P384 => 97,
        KeyAlgorithm::Rsa { .. } => 0,
    }
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// The bit length of a number without leading zero bytes.
fn bit_length(number: &[u8]) -> usize {
    let used = number.first().and_then(|byte| byte.checked_ilog2()).and_then(|log| usize::try_from(log).ok());
    used.map_or(0, |log| (number.len() - 1) * 8 + log + 1)
}
