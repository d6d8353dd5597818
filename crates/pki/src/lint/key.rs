//! Type and strength of a public key by its encoding, without any arithmetic.

use aws_lc_rs::digest;
use const_oid::db::{rfc5912, rfc8410};
use der::Tag;

use super::Finding;
use crate::{
    KeyAlgorithm,
    lint::reader::{DerReader, Malformed},
};

/// Permitted lengths of RSA moduli in bits.
const RSA_BITS: std::ops::RangeInclusive<u16> = 2048..=4096;

/// Checks that a key may be certified.
pub(super) fn strength(spki: &[u8]) -> Result<(), Finding> {
    algorithm(spki).map(|_| ())
}

/// The type of a key that may be certified.
pub(super) fn algorithm(spki: &[u8]) -> Result<KeyAlgorithm, Finding> {
    match parts(spki) {
        Ok((identifier, bits)) => of_form(identifier, bits),
        Err(Malformed) => Err(Finding("the public key is malformed")),
    }
}

/// The subjectPublicKey bits.
pub(super) fn bits(spki: &[u8]) -> Result<&[u8], Finding> {
    parts(spki).map(|(_, bits)| bits).map_err(|Malformed| Finding("the public key is malformed"))
}

/// SHA-1 of the subjectPublicKey bits (RFC 5280, section 4.2.1.2, method 1).
pub(super) fn id(spki: &[u8]) -> Result<Vec<u8>, Finding> {
    Ok(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bits(spki)?).as_ref().to_vec())
}

/// SubjectPublicKeyInfo: the content of its AlgorithmIdentifier, and the bits of the key.
fn parts(spki: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut reader = DerReader::inside(spki, Tag::Sequence)?;
    let identifier = reader.content(Tag::Sequence)?;
    let bits = reader.bytes_in_bits()?;
    reader.finish()?;
    Ok((identifier, bits))
}

fn of_form(identifier: &[u8], bits: &[u8]) -> Result<KeyAlgorithm, Finding> {
    let unknown = |Malformed| Finding("the public key's algorithm is malformed");
    let mut reader = DerReader::over(identifier).map_err(unknown)?;
    let oid = reader.content(Tag::ObjectIdentifier).map_err(unknown)?;
    let parameters = if reader.at_end() { None } else { Some(reader.any().map_err(unknown)?) };
    reader.finish().map_err(unknown)?;
    if oid == rfc5912::RSA_ENCRYPTION.as_bytes() && parameters == Some((Tag::Null, &[])) {
        return rsa(bits).map_err(|Malformed| Finding("the RSA key is malformed, or not of 2048 to 4096 bits"));
    }
    if oid == rfc8410::ID_ED_25519.as_bytes() && parameters.is_none() && bits.len() == 32 {
        return Ok(KeyAlgorithm::Ed25519);
    }
    if oid == rfc5912::ID_EC_PUBLIC_KEY.as_bytes()
        && let Some((Tag::ObjectIdentifier, curve)) = parameters
    {
        let uncompressed = bits.first() == Some(&4);
        if curve == rfc5912::SECP_256_R_1.as_bytes() && uncompressed && bits.len() == 65 {
            return Ok(KeyAlgorithm::P256);
        }
        if curve == rfc5912::SECP_384_R_1.as_bytes() && uncompressed && bits.len() == 97 {
            return Ok(KeyAlgorithm::P384);
        }
    }
    Err(Finding("the public key is not one that may be certified (RSA 2048 to 4096, P-256, P-384, Ed25519)"))
}

/// RSAPublicKey (RFC 8017, appendix A.1.1): an odd modulus of 2048 to 4096 bits, an odd exponent of at least 3.
fn rsa(bits: &[u8]) -> Result<KeyAlgorithm, Malformed> {
    let mut reader = DerReader::inside(bits, Tag::Sequence)?;
    let (modulus, exponent) = (reader.positive_integer()?, reader.positive_integer()?);
    reader.finish()?;
    let magnitude = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let leading_zeros = magnitude.first().map_or(0, |byte| byte.leading_zeros());
    let length = u32::try_from(magnitude.len()).map_err(|_| Malformed)?;
    let size = length.saturating_mul(8).saturating_sub(leading_zeros);
    let size = u16::try_from(size).map_err(|_| Malformed)?;
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
    if RSA_BITS.contains(&size) && odd(modulus) && odd(exponent) && exponent != [1] {
        Ok(KeyAlgorithm::Rsa { bits: size })
    } else {
        Err(Malformed)
    }
}
