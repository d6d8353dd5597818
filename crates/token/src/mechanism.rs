//! Signs with each type of key, with mechanisms that most tokens support.
//!
//! The message is hashed in software, and the token signs the hash: CKM_ECDSA and CKM_RSA_PKCS are supported nearly
//! everywhere, their hashing variants are not. The result is checked for its exact length and, for ECDSA, converted to
//! the encoding of certificates. The caller verifies the signature.

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism, MechanismType,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::ObjectHandle,
    session::Session,
};

use super::{Pkcs11Error, Recovery, calls};
use pki::{KeyAlgorithm, PublicKey};

/// DER of DigestInfo up to the hash, for SHA-256 (RFC 8017, section 9.2, note 1).
const SHA256_DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// No signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The call failed.
    #[error("the token did not sign")]
    Call(#[from] Pkcs11Error),
    /// The token returned a signature of a length that is impossible for the key.
    #[error("the token gave a signature of {actual} bytes where such a key makes {expected}")]
    Length {
        /// Expected length.
        expected: usize,
        /// Actual length.
        actual: usize,
    },
}

impl SignError {
    /// The recovery.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Call(fault) => fault.recovery(),
            Self::Length { .. } => Recovery::NewSession,
        }
    }
}

/// Signs a message (C_SignInit, C_Sign) with the algorithm of [`PublicKey::signature_algorithm`]; `key` is the public
/// key of the object. Returns the content of signatureValue: RSA and Ed25519 unchanged, ECDSA as DER ECDSA-Sig-Value
/// (RFC 3279, section 2.2.3).
///
/// # Errors
/// If the token fails, or returns a wrong length. Drop the session after any error.
pub fn sign(session: &Session, handle: ObjectHandle, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignError> {
    match key.algorithm() {
        KeyAlgorithm::P256 => {
            let raw = call(session, &Mechanism::Ecdsa, handle, digest(&SHA256, message).as_ref())?;
            ecdsa_der(&raw, 32)
        }
        KeyAlgorithm::P384 => {
            let raw = call(session, &Mechanism::Ecdsa, handle, digest(&SHA384, message).as_ref())?;
            ecdsa_der(&raw, 48)
        }
        KeyAlgorithm::Ed25519 => {
            let pure = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
            exactly(64, call(session, &pure, handle, message)?)
        }
        KeyAlgorithm::Rsa { bits } => {
            let mut info = SHA256_DIGEST_INFO.to_vec();
            info.extend_from_slice(digest(&SHA256, message).as_ref());
            let signature = match call(session, &Mechanism::RsaPkcs, handle, &info) {
                // The token lacks the bare mechanism, or the key is restricted to the hashing one.
                Err(fault) if fault.is(RvError::MechanismInvalid) => {
                    call(session, &Mechanism::Sha256RsaPkcs, handle, message)?
                }
                other => other?,
            };
            exactly(usize::from(bits).div_ceil(8), signature)
        }
    }
}

/// The mechanism that a key's objects are restricted to (CKA_ALLOWED_MECHANISMS): the bare one, or the hashing one if
/// the token lacks it. `None` if the token has neither.
#[must_use]
pub fn signing_mechanism(algorithm: KeyAlgorithm, token: &[MechanismType]) -> Option<MechanismType> {
    signing_mechanisms(algorithm, token).first().copied()
}

/// All mechanisms that [`sign`] uses with such a key and the token has, in the order in which they are tried.
#[must_use]
pub fn signing_mechanisms(algorithm: KeyAlgorithm, token: &[MechanismType]) -> Vec<MechanismType> {
    let wanted: &[MechanismType] = match algorithm {
        KeyAlgorithm::Ed25519 => &[MechanismType::EDDSA],
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => &[MechanismType::ECDSA],
        KeyAlgorithm::Rsa { .. } => &[MechanismType::RSA_PKCS, MechanismType::SHA256_RSA_PKCS],
    };
    wanted.iter().copied().filter(|mechanism| token.contains(mechanism)).collect()
}

fn call(
    session: &Session,
    mechanism: &Mechanism<'_>,
    handle: ObjectHandle,
    data: &[u8],
) -> Result<Vec<u8>, Pkcs11Error> {
    Ok(calls::call(calls::Function::Sign, || session.sign(mechanism, handle, data))?)
}

fn exactly(expected: usize, signature: Vec<u8>) -> Result<Vec<u8>, SignError> {
    if signature.len() == expected {
        return Ok(signature);
    }
    Err(SignError::Length { expected, actual: signature.len() })
}

/// Converts `r || s`, each with the size of the field, to a DER SEQUENCE of two INTEGERs.
fn ecdsa_der(raw: &[u8], field: usize) -> Result<Vec<u8>, SignError> {
    let wrong = SignError::Length { expected: 2 * field, actual: raw.len() };
    if raw.len() != 2 * field {
        return Err(wrong);
    }
    let (r, s) = raw.split_at_checked(field).ok_or_else(|| wrong.clone())?;
    let mut content = Vec::with_capacity(2 * field + 6);
    for number in [r, s] {
        let zeros = number.iter().take_while(|byte| **byte == 0).count().min(field.saturating_sub(1));
        let number = number.get(zeros..).unwrap_or_default();
        let sign = number.first().is_some_and(|byte| byte & 0x80 != 0);
        content.push(0x02);
        content.push(u8::try_from(number.len() + usize::from(sign)).map_err(|_| wrong.clone())?);
        if sign {
            content.push(0);
        }
        content.extend_from_slice(number);
    }
    // At most 2 x (48 + 3) bytes, so one length byte below 128 suffices.
    let length = u8::try_from(content.len()).ok().filter(|length| *length < 0x80).ok_or(wrong)?;
    let mut der = vec![0x30, length];
    der.append(&mut content);
    Ok(der)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ecdsa_numbers_are_minimal() {
        let mut raw = [0_u8; 64];
        raw[31] = 1;
        raw[32] = 0x80;
        let der = ecdsa_der(&raw, 32).unwrap();
        let mut expected = vec![0x30, 38, 0x02, 1, 1, 0x02, 33, 0, 0x80];
        expected.extend([0; 31]);
        assert_eq!(der, expected);
        assert_eq!(ecdsa_der(&[0; 64], 32).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
        assert_eq!(ecdsa_der(&[0xff; 96], 48).unwrap().len(), 104);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for length in [0, 1, 63, 65, 96, 128] {
            assert_eq!(ecdsa_der(&vec![1; length], 32), Err(SignError::Length { expected: 64, actual: length }),);
        }
        assert!(exactly(256, vec![0; 256]).is_ok());
        assert_eq!(exactly(256, vec![0; 255]), Err(SignError::Length { expected: 256, actual: 255 }));
    }

    #[test]
    fn the_bare_mechanism_goes_first() {
        let both = [MechanismType::SHA256_RSA_PKCS, MechanismType::RSA_PKCS];
        let rsa = KeyAlgorithm::Rsa { bits: 2048 };
        assert_eq!(signing_mechanism(rsa, &both), Some(MechanismType::RSA_PKCS));
        assert_eq!(signing_mechanism(rsa, &both[..1]), Some(MechanismType::SHA256_RSA_PKCS));
        assert_eq!(signing_mechanism(KeyAlgorithm::P256, &both), None);
    }

    proptest! {
        #[test]
        fn ecdsa_der_reads_back(raw in proptest::collection::vec(any::<u8>(), 64)) {
            use der::{Decode, asn1::UintRef};
            #[derive(der::Sequence)]
            struct Signature<'a> { r: UintRef<'a>, s: UintRef<'a> }
            let der = ecdsa_der(&raw, 32).unwrap();
            let read = Signature::from_der(&der).unwrap();
            for (half, number) in [(&raw[..32], read.r), (&raw[32..], read.s)] {
                let mut padded = vec![0; 32 - number.as_bytes().len()];
                padded.extend_from_slice(number.as_bytes());
                prop_assert_eq!(half, padded.as_slice());
            }
        }
    }
}
