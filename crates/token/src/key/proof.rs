//! Verifies what a private key in the token can and cannot do before it is used.
//!
//! Only a signature that verifies proves that an object is the key: tokens do not check a public key, an ID or even a
//! scalar of another curve that they store.

use std::borrow::Cow;

use cryptoki::{
    object::{Attribute, AttributeInfo, AttributeType, ObjectHandle},
    session::Session,
};

use super::{Accepted, Flags, Pkcs11Error, Unfit, Weakness};
use crate::{
    adopt,
    mechanism::{self, SignError},
};
use pki::{KeyAlgorithm, PublicKey};
use process::error::{Advice, Remedy};

/// A key in the token is not as expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// A call failed.
    #[error("the token failed while its private key was examined")]
    Call(#[from] Pkcs11Error),
    /// An attribute differs from what was written.
    #[error("the token did not keep the attribute {0} as it was written; this token is not fit for the key")]
    Attribute(&'static str),
    /// The private value can be read.
    #[error("the private value could be read ({0}); this token is not fit for the key")]
    Readable(&'static str),
    /// The key does not sign.
    #[error("the private key does not sign")]
    Sign(#[from] SignError),
    /// Its attributes are not suitable.
    #[error("the private key is refused: {0}")]
    Unfit(#[from] Unfit),
    /// The token made a key that allows what nobody has accepted.
    #[error("the key that the token made {}{advice}", adopt::listed(.0), advice = Advice(self))]
    Weak(Vec<Weakness>),
    /// The key can be wrapped out of the token.
    #[error(
        "the private key could be wrapped out of the token although it is not extractable; use another token, or accept \
         that with --allow-extractable"
    )]
    Wrappable,
    /// The signature does not verify with the public key.
    #[error("the private key's signature does not verify with the public key: the object is damaged or another key")]
    WrongSignature,
}

impl Remedy for ProofError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Unfit(unfit) => unfit.remedy(),
            Self::Weak(weaknesses) => {
                Some(format!("use another token, or accept that with {}", adopt::flags(weaknesses)).into())
            }
            Self::Attribute(_)
            | Self::Call(_)
            | Self::Readable(_)
            | Self::Sign(_)
            | Self::Wrappable
            | Self::WrongSignature => None,
        }
    }
}

/// What a key signs to prove that it is the CA's. A text, so that it cannot be taken for a certificate or a checkpoint, and
/// always the same, so that an auditor recognizes its hash among the token's signatures.
pub const PROOF_MESSAGE: &[u8] = b"istio-hsm-ca: proof of possession, no certificate\n";

/// Signs [`PROOF_MESSAGE`], and verifies the signature.
///
/// # Errors
/// If it does not sign, or the signature does not verify.
pub fn signs(session: &Session, handle: ObjectHandle, key: &PublicKey) -> Result<(), ProofError> {
    let signature = mechanism::sign(session, handle, key, PROOF_MESSAGE)?;
    key.verify(key.signature_algorithm(), PROOF_MESSAGE, &signature).map_err(|_| ProofError::WrongSignature)
}

/// Reads the attributes of a key that we made back, and judges what the token made of them.
///
/// # Errors
/// When the key may be read, extracted or used for anything but signing, unless that is accepted; `kept` for a token
/// object.
pub fn attributes(
    session: &Session,
    handle: ObjectHandle,
    kept: bool,
    accepted: &Accepted,
) -> Result<Flags, ProofError> {
    let flags = Flags::read(session, handle)?;
    flags.usable()?;
    if kept && flags.token != Some(true) {
        return Err(ProofError::Attribute("CKA_TOKEN"));
    }
    if flags.private == Some(false) {
        return Err(ProofError::Attribute("CKA_PRIVATE"));
    }
    let missing = accepted.missing(&flags.weaknesses());
    if missing.is_empty() { Ok(flags) } else { Err(ProofError::Weak(missing)) }
}

/// Attributes that permit more than a CA key needs.
#[must_use]
pub fn surplus(flags: &Flags, kept: bool) -> Vec<&'static str> {
    // A missing attribute does not exist for this key type and is harmless.
    [
        ("CKA_DECRYPT", flags.decrypt == Some(true)),
        ("CKA_UNWRAP", flags.unwrap == Some(true)),
        ("CKA_DERIVE", flags.derive == Some(true)),
        ("CKA_SIGN_RECOVER", flags.sign_recover == Some(true)),
        ("CKA_MODIFIABLE", kept && flags.modifiable == Some(true)),
        ("CKA_PRIVATE", flags.private == Some(false)),
    ]
    .into_iter()
    .filter_map(|(name, wrong)| wrong.then_some(name))
    .collect()
}

/// Has the token protect a key that it has unwrapped without the protection of the template, as PKCS#11 v2.20 described
/// it (openCryptoki 3.8). What a token then still allows, [`attributes`] finds.
pub fn protect(session: &Session, handle: ObjectHandle) {
    let Ok(flags) = Flags::read(session, handle) else { return };
    let sensitive = (flags.sensitive == Some(false)).then_some(Attribute::Sensitive(true));
    let extractable = (flags.extractable == Some(true)).then_some(Attribute::Extractable(false));
    for attribute in sensitive.into_iter().chain(extractable) {
        if let Err(error) = session.update_attributes(handle, &[attribute]) {
            tracing::debug!(error = %Pkcs11Error::from(error), "the token does not protect the key that it unwrapped");
        }
    }
}

/// Tries to read the private value, which must fail. Returns the token's answer for the receipt.
///
/// # Errors
/// When the value can be read.
pub fn unreadable(
    session: &Session,
    handle: ObjectHandle,
    algorithm: KeyAlgorithm,
) -> Result<&'static str, ProofError> {
    // By type: a token answers CKR_ATTRIBUTE_TYPE_INVALID for an attribute that such a key does not have.
    let values: &[(AttributeType, &str)] = match algorithm {
        KeyAlgorithm::Ed25519 | KeyAlgorithm::P256 | KeyAlgorithm::P384 => &[(AttributeType::Value, "CKA_VALUE")],
        KeyAlgorithm::Rsa { .. } => &[
            (AttributeType::PrivateExponent, "CKA_PRIVATE_EXPONENT"),
            (AttributeType::Prime1, "CKA_PRIME_1"),
            (AttributeType::Prime2, "CKA_PRIME_2"),
        ],
    };
    let mut answer = "CKR_ATTRIBUTE_SENSITIVE";
    for (attribute, name) in values {
        match session.get_attribute_info(handle, &[*attribute]).map_err(Pkcs11Error::from)?.as_slice() {
            [AttributeInfo::Sensitive] => {}
            // An empty value reveals nothing: tokens whose keys are elsewhere have such attributes.
            [AttributeInfo::Available(0) | AttributeInfo::TypeInvalid | AttributeInfo::Unavailable] => {
                answer = "no value";
            }
            _ => return Err(ProofError::Readable(name)),
        }
    }
    Ok(answer)
}
