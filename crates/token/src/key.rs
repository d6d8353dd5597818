//! Keys in the token: found by the public key, never by a name that anybody can give.
//!
//! The three objects of a key (private, public, certificate) share one CKA_ID, the SHA-1 of the public key's bits.
//! None and several matches are errors, and so is a key that may be read, or must be unlocked for each signature.
//! The log's and the probes' keys are made in the token by us, and found by their label.

use std::borrow::Cow;

use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use serde::Serialize;

use super::{Pkcs11Error, calls};
use pki::{KeyAlgorithm, PublicKey};
use process::error::{Advice, Remedy};

pub mod objects;
pub mod proof;
pub mod public;
pub mod template;

/// The label of the key that signs the log's checkpoints (Ed25519).
pub const LOG_KEY_LABEL: &str = "istio-hsm-ca log key";

/// The label of the key that probes sign with (P-256).
pub const CANARY_KEY_LABEL: &str = "istio-hsm-ca canary key";

/// A private key in the token, with its public half.
#[derive(Clone, Debug)]
pub struct Found {
    /// The private key, valid while the session that found it lives.
    pub handle: ObjectHandle,
    /// Its public half, as the token's public key object tells it: not proven by a signature yet.
    pub public_key: PublicKey,
}

/// Why there is no usable key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Several objects match.
    #[error("the token holds {count} private keys with {what}{advice}", advice = Advice(self))]
    Ambiguous {
        /// How the key was looked for.
        what: String,
        /// How many there are.
        count: usize,
    },
    /// A call failed.
    #[error("the token failed while the key with {what} was looked up")]
    Call {
        /// How the key was looked for.
        what: String,
        /// What the token answered.
        #[source]
        source: Pkcs11Error,
    },
    /// No object matches.
    #[error("the token holds no private key with {0}{advice}", advice = Advice(self))]
    NotFound(String),
    /// The public key object is missing or cannot be read.
    #[error("the token's public key object with {what} cannot be used: {reason}{advice}", advice = Advice(self))]
    Public {
        /// How the key was looked for.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key's attributes make it unfit.
    #[error("the private key with {what} is refused: {reason}")]
    Unfit {
        /// How the key was looked for.
        what: String,
        /// Which attribute, and why.
        reason: Unfit,
    },
}

impl Remedy for KeyError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ambiguous { .. } => Some("delete all but one by the vendor's tool".into()),
            Self::NotFound(_) => Some("import it, or check that this is the right token".into()),
            Self::Public { .. } => Some("import the key again".into()),
            Self::Unfit { reason, .. } => reason.remedy(),
            Self::Call { .. } => None,
        }
    }
}

/// The attributes that make a key unfit for a CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// CKA_ALWAYS_AUTHENTICATE is true.
    #[error(
        "it wants the PIN before every signature (CKA_ALWAYS_AUTHENTICATE), which no daemon can give{advice}", advice = Advice(self)
    )]
    AlwaysAuthenticate,
    /// CKA_EXTRACTABLE is true.
    #[error("it may leave the token (CKA_EXTRACTABLE){advice}", advice = Advice(self))]
    Extractable,
    /// CKA_SENSITIVE is false.
    #[error("it may be read in the clear (CKA_SENSITIVE is false){advice}", advice = Advice(self))]
    NotSensitive,
    /// CKA_SIGN is false.
    #[error("it may not sign (CKA_SIGN is false){advice}", advice = Advice(self))]
    NotSigning,
    /// A flag cannot be read.
    #[error("the token does not tell whether it may be read, extracted or used to sign")]
    Untold,
}

impl Remedy for Unfit {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::AlwaysAuthenticate => Some("make it without".into()),
            Self::Extractable => Some("set the attribute to false, which cannot be undone".into()),
            Self::NotSensitive => Some("set the attribute to true, which cannot be undone".into()),
            Self::NotSigning => Some("import it again".into()),
            Self::Untold => None,
        }
    }
}

/// A private key's attributes as the token tells them; none where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each field is the attribute of its name (PKCS#11 v3.1, section 4.9)")]
pub struct Flags {
    pub token: Option<bool>,
    pub private: Option<bool>,
    pub sensitive: Option<bool>,
    pub extractable: Option<bool>,
    pub sign: Option<bool>,
    pub sign_recover: Option<bool>,
    pub decrypt: Option<bool>,
    pub unwrap: Option<bool>,
    pub derive: Option<bool>,
    pub modifiable: Option<bool>,
    pub always_authenticate: Option<bool>,
    pub local: Option<bool>,
    pub always_sensitive: Option<bool>,
    pub never_extractable: Option<bool>,
}

impl Flags {
    /// Reads them back from the token.
    ///
    /// # Errors
    /// When the call fails; an attribute that the token does not have is no failure.
    pub fn read(session: &Session, handle: ObjectHandle) -> Result<Self, Pkcs11Error> {
        let wanted = [
            AttributeType::Token,
            AttributeType::Private,
            AttributeType::Sensitive,
            AttributeType::Extractable,
            AttributeType::Sign,
            AttributeType::SignRecover,
            AttributeType::Decrypt,
            AttributeType::Unwrap,
            AttributeType::Derive,
            AttributeType::Modifiable,
            AttributeType::AlwaysAuthenticate,
            AttributeType::Local,
            AttributeType::AlwaysSensitive,
            AttributeType::NeverExtractable,
        ];
        let mut flags = Self::default();
        for attribute in calls::call(calls::Function::GetAttributeValue, || session.get_attributes(handle, &wanted))? {
            match attribute {
                Attribute::Token(value) => flags.token = Some(value),
                Attribute::Private(value) => flags.private = Some(value),
                Attribute::Sensitive(value) => flags.sensitive = Some(value),
                Attribute::Extractable(value) => flags.extractable = Some(value),
                Attribute::Sign(value) => flags.sign = Some(value),
                Attribute::SignRecover(value) => flags.sign_recover = Some(value),
                Attribute::Decrypt(value) => flags.decrypt = Some(value),
                Attribute::Unwrap(value) => flags.unwrap = Some(value),
                Attribute::Derive(value) => flags.derive = Some(value),
                Attribute::Modifiable(value) => flags.modifiable = Some(value),
                Attribute::AlwaysAuthenticate(value) => flags.always_authenticate = Some(value),
                Attribute::Local(value) => flags.local = Some(value),
                Attribute::AlwaysSensitive(value) => flags.always_sensitive = Some(value),
                Attribute::NeverExtractable(value) => flags.never_extractable = Some(value),
                // The binding returns nothing that was not asked for.
                _ => {}
            }
        }
        Ok(flags)
    }

    /// Whether a key with these attributes may be a CA's.
    ///
    /// # Errors
    /// Names the first attribute that forbids it.
    pub fn check(&self) -> Result<(), Unfit> {
        match (self.sensitive, self.extractable, self.sign) {
            (None, _, _) | (_, None, _) | (_, _, None) => Err(Unfit::Untold),
            (Some(false), _, _) => Err(Unfit::NotSensitive),
            (_, Some(true), _) => Err(Unfit::Extractable),
            (_, _, Some(false)) => Err(Unfit::NotSigning),
            // Tokens of before v2.20 lack the attribute, which then means false.
            (Some(true), Some(false), Some(true)) if self.always_authenticate == Some(true) => {
                Err(Unfit::AlwaysAuthenticate)
            }
            (Some(true), Some(false), Some(true)) => Ok(()),
        }
    }
}

/// The CA's private key, by the public key of its certificate.
///
/// # Errors
/// When there is none, more than one, or one whose attributes are refused.
pub fn find_private_key(session: &Session, key: &PublicKey) -> Result<ObjectHandle, KeyError> {
    let what = format!("CKA_ID {}", hex(&key.key_id()));
    let handle = only(what.clone(), private_keys(session, key))?;
    check(session, handle, what)?;
    Ok(handle)
}

/// All token objects that could be that key's private half.
///
/// # Errors
/// When the call fails.
pub fn private_keys(session: &Session, key: &PublicKey) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::KeyType(key_type(key.algorithm())),
        Attribute::Id(key.key_id().to_vec()),
    ];
    Ok(calls::call(calls::Function::FindObjects, || session.find_objects(&template))?)
}

/// A key that we made in the token ourselves, by its label ([`LOG_KEY_LABEL`], [`CANARY_KEY_LABEL`]).
///
/// # Errors
/// When there is none, more than one, one whose attributes are refused, or one whose public half cannot be read.
pub fn find_by_label(session: &Session, label: &str) -> Result<Found, KeyError> {
    let what = format!("the label `{label}`");
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    let found = calls::call(calls::Function::FindObjects, || session.find_objects(&template));
    let handle = only(what.clone(), found.map_err(Pkcs11Error::from))?;
    check(session, handle, what.clone())?;
    let call = |source| KeyError::Call { what: what.clone(), source };
    let id = public::id_of(session, handle).map_err(call)?;
    let reason = |reason| KeyError::Public { what: what.clone(), reason };
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| reason("the private key has no CKA_ID to find it by"))?;
    let public_key = match public::by_id(session, &id).map_err(call)?.as_slice() {
        [] => return Err(reason("there is none of the same CKA_ID")),
        [object] => public::read(session, *object).map_err(call)?.map_err(|e| reason(e.reason()))?,
        _ => return Err(reason("there are several of the same CKA_ID")),
    };
    if public_key.key_id().as_slice() != id.as_slice() {
        return Err(reason("its CKA_ID is not the SHA-1 of its bits"));
    }
    Ok(Found { handle, public_key })
}

/// The key type of PKCS#11 for an algorithm.
#[must_use]
pub fn key_type(algorithm: KeyAlgorithm) -> KeyType {
    match algorithm {
        KeyAlgorithm::Ed25519 => KeyType::EC_EDWARDS,
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => KeyType::EC,
        KeyAlgorithm::Rsa { .. } => KeyType::RSA,
    }
}

/// Lower-case hexadecimal, as CKA_ID and fingerprints are told.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn only(what: String, found: Result<Vec<ObjectHandle>, Pkcs11Error>) -> Result<ObjectHandle, KeyError> {
    match found {
        Err(source) => Err(KeyError::Call { what, source }),
        Ok(handles) => match handles.as_slice() {
            [] => Err(KeyError::NotFound(what)),
            [handle] => Ok(*handle),
            several => Err(KeyError::Ambiguous { what, count: several.len() }),
        },
    }
}

fn check(session: &Session, handle: ObjectHandle, what: String) -> Result<(), KeyError> {
    match Flags::read(session, handle) {
        Err(source) => Err(KeyError::Call { what, source }),
        Ok(flags) => flags.check().map_err(|reason| KeyError::Unfit { what, reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_decide() {
        let good = Flags { sensitive: Some(true), extractable: Some(false), sign: Some(true), ..Flags::default() };
        let cases = [
            (good, Ok(())),
            (Flags { always_authenticate: Some(false), ..good }, Ok(())),
            (Flags { always_authenticate: Some(true), ..good }, Err(Unfit::AlwaysAuthenticate)),
            (Flags { sensitive: Some(false), ..good }, Err(Unfit::NotSensitive)),
            (Flags { extractable: Some(true), ..good }, Err(Unfit::Extractable)),
            (Flags { sign: Some(false), ..good }, Err(Unfit::NotSigning)),
            (Flags { sign: None, ..good }, Err(Unfit::Untold)),
            (Flags { extractable: None, ..good }, Err(Unfit::Untold)),
            (Flags::default(), Err(Unfit::Untold)),
        ];
        for (flags, expected) in cases {
            assert_eq!(flags.check(), expected, "{flags:?}");
        }
    }

    #[test]
    fn hex_is_lower_case() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }
}
