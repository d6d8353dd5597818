//! The public key in a certificate of a bundle: of any type, since a root's key never gets near a token of ours.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ParsedPublicKey, VerificationAlgorithm,
};
use const_oid::{
    ObjectIdentifier,
    db::{rfc5912, rfc8410},
};
use der::{
    AnyRef, Decode, Sequence,
    asn1::{BitStringRef, UintRef},
};
use spki::AlgorithmIdentifierRef;

use crate::key::encoding::{self, RsaPublicKey};

/// Go refuses larger RSA exponents.
const EXPONENT_MAX: u64 = (1 << 31) - 1;

/// SubjectPublicKeyInfo, of any type.
#[derive(Sequence)]
struct Spki<'a> {
    algorithm: AnyRef<'a>,
    key: BitStringRef<'a>,
}

/// A key as signatures are verified with it.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// The content of its AlgorithmIdentifier.
    pub(super) algorithm: Vec<u8>,
    /// The content of its subjectPublicKey.
    pub(super) bits: Vec<u8>,
    /// Its type, as people write it.
    pub(super) kind: String,
    /// Whether Go refuses every signature by it.
    pub(super) has_huge_exponent: bool,
}

impl Key {
    /// Reads a DER SubjectPublicKeyInfo as Go's crypto/x509 does (parsePublicKey).
    ///
    /// # Errors
    /// What Go cannot read, as a relative clause.
    pub(super) fn parse(spki: &[u8]) -> Result<Self, String> {
        let malformed = |_error: der::Error| "is malformed".to_owned();
        let Spki { algorithm, key } = Spki::from_der(spki).map_err(malformed)?;
        let identifier: AlgorithmIdentifierRef<'_> = algorithm.decode_as().map_err(malformed)?;
        let bits = key.as_bytes().ok_or("is not a whole number of bytes")?;
        let kind = encoding::type_of(identifier);
        let mut has_huge_exponent = false;
        match identifier.oid {
            rfc5912::RSA_ENCRYPTION => {
                if !identifier.parameters.is_some_and(AnyRef::is_null) {
                    return Err("is RSA without the NULL that Go expects in its AlgorithmIdentifier".to_owned());
                }
                let RsaPublicKey { modulus, public_exponent } = RsaPublicKey::from_der(bits).map_err(malformed)?;
                has_huge_exponent = number(public_exponent).is_none_or(|exponent| exponent > EXPONENT_MAX);
                if modulus.is_empty() || number(public_exponent).is_none_or(|exponent| i64::try_from(exponent).is_err())
                {
                    return Err("is RSA with numbers that Go cannot read".to_owned());
                }
            }
            rfc5912::ID_EC_PUBLIC_KEY => {
                let curve = identifier.parameters.and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
                let (length, parser): (usize, Option<&'static dyn VerificationAlgorithm>) = match curve {
                    Some(rfc5912::SECP_224_R_1) => (57, None),
                    Some(rfc5912::SECP_256_R_1) => (65, Some(&ECDSA_P256_SHA256_ASN1)),
                    Some(rfc5912::SECP_384_R_1) => (97, Some(&ECDSA_P384_SHA384_ASN1)),
                    Some(rfc5912::SECP_521_R_1) => (133, Some(&ECDSA_P521_SHA512_ASN1)),
                    _ => return Err(format!("is {kind}, which Go cannot read")),
                };
                if bits.first() != Some(&4) || bits.len() != length {
                    return Err(format!("is {kind} with a point that is compressed or cut off, which Go cannot read"));
                }
                if parser.is_some_and(|parser| ParsedPublicKey::new(parser, bits).is_err()) {
                    return Err(format!("is {kind} with a point that is not on its curve"));
                }
            }
            rfc8410::ID_ED_25519 | rfc8410::ID_X_25519 if identifier.parameters.is_some() || bits.len() != 32 => {
                return Err(format!("is {kind} of another length or with parameters, which Go cannot read"));
            }
            _ => {}
        }
        Ok(Self { algorithm: algorithm.value().to_vec(), bits: bits.to_vec(), kind, has_huge_exponent })
    }
}

fn number(value: UintRef<'_>) -> Option<u64> {
    let mut bytes = [0; 8];
    let digits = value.as_bytes();
    bytes.get_mut(8_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
    Some(u64::from_be_bytes(bytes))
}
