//! Keys in the token. The CA's key is found by what it signs ([`search`]), the log key and the canary key by their labels.

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
pub mod search;
pub mod template;
pub mod weakness;

pub use search::{CaKey, FoundBy, Hints, Known, Locator, Search};
use template::octet_string;
pub use weakness::{Accepted, Weakness};

/// Label of the key that signs the log's checkpoints (Ed25519).
pub const LOG_KEY_LABEL: &str = "istio-hsm-ca log key";

/// Label of the key that signs probes (P-256).
pub const CANARY_KEY_LABEL: &str = "istio-hsm-ca canary key";

/// A private key in the token, with its public key.
#[derive(Clone, Debug)]
pub struct Found {
    /// The private key; valid for the lifetime of the session that found it.
    pub handle: ObjectHandle,
    /// The public key in the token's public key object; not yet verified by a signature.
    pub public_key: PublicKey,
}

/// No usable key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Several objects match.
    #[error("the token holds {count} private keys with {what}{advice}", advice = Advice(self))]
    Ambiguous {
        /// The search criterion.
        what: String,
        /// Number of matches.
        count: usize,
    },
    /// A call failed.
    #[error("the token failed while the key with {what} was looked up")]
    Call {
        /// The search criterion.
        what: String,
        /// The call's error.
        #[source]
        source: Pkcs11Error,
    },
    /// No private key of the type signs as the CA's.
    #[error(
        "the token holds no private key whose signature verifies with ca-cert.pem ({tried} of type {} were tried{}){advice}",
        search::kind(*algorithm), Untried(*untried), advice = Advice(self)
    )]
    NoneSigns {
        /// The algorithm of the CA's key.
        algorithm: KeyAlgorithm,
        /// How many keys were tried.
        tried: usize,
        /// How many keys were not, since there are too many.
        untried: usize,
    },
    /// No object matches.
    #[error("the token holds no private key with {0}{advice}", advice = Advice(self))]
    NotFound(String),
    /// The public key object is missing or cannot be read.
    #[error("the token's public key object with {what} cannot be used: {reason}{advice}", advice = Advice(self))]
    Public {
        /// The search criterion.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key's attributes are not suitable.
    #[error("the private key with {what} is refused: {reason}")]
    Unfit {
        /// The search criterion.
        what: String,
        /// The attribute.
        reason: Unfit,
    },
}

impl Remedy for KeyError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ambiguous { .. } => Some("delete all but one by the vendor's tool".into()),
            Self::NoneSigns { untried: 1.., .. } => {
                Some("name the key by id= or object= in the token URI, or check that this is the right token".into())
            }
            Self::NoneSigns { .. } | Self::NotFound(_) => {
                Some("import it, or check that this is the right token".into())
            }
            Self::Public { .. } => Some("import the key again".into()),
            Self::Unfit { reason, .. } => reason.remedy(),
            Self::Call { .. } => None,
        }
    }
}

/// The end of a list of keys that were tried.
struct Untried(usize);

impl std::fmt::Display for Untried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, ", {count} were not"),
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
    /// CKA_SIGN is false.
    #[error("it may not sign (CKA_SIGN is false){advice}", advice = Advice(self))]
    NotSigning,
    /// It allows what a CA's key should not, and nobody has accepted that.
    #[error("it {}{advice}", .0.in_words(), advice = Advice(self))]
    Weak(Weakness),
}

impl Remedy for Unfit {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::AlwaysAuthenticate => Some("make it without".into()),
            Self::NotSigning => Some("import it again".into()),
            Self::Weak(weakness) => {
                let attribute = match weakness {
                    Weakness::Extractable => "set the attribute to false, which cannot be undone; ",
                    Weakness::NotSensitive => "set the attribute to true, which cannot be undone; ",
                    Weakness::Decrypt | Weakness::Derive | Weakness::UnreadableAttributes | Weakness::Unwrap => "",
                };
                Some(format!("{attribute}or accept it with `istio-hsm-ca adopt {}`", weakness.flag()).into())
            }
        }
    }
}

/// A private key's attributes as reported by the token; `None` if it does not report one.
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
    /// Reads the attributes from the token.
    ///
    /// # Errors
    /// If the call fails; a missing attribute is not an error.
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
                // The binding returns only requested attributes.
                _ => {}
            }
        }
        Ok(flags)
    }

    /// Whether a daemon can sign with such a key at all.
    ///
    /// # Errors
    /// Names the attribute that forbids it.
    pub fn usable(&self) -> Result<(), Unfit> {
        match (self.sign, self.always_authenticate) {
            (Some(false), _) => Err(Unfit::NotSigning),
            (_, Some(true)) => Err(Unfit::AlwaysAuthenticate),
            // Tokens older than PKCS#11 v2.20 lack the second attribute, which then means false.
            (Some(true) | None, Some(false) | None) => Ok(()),
        }
    }

    /// What the key allows and a CA's key should not.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        let unreadable = [self.sensitive, self.extractable, self.sign].contains(&None);
        [
            (Weakness::NotSensitive, self.sensitive == Some(false)),
            (Weakness::Extractable, self.extractable == Some(true)),
            (Weakness::UnreadableAttributes, unreadable),
            (Weakness::Decrypt, self.decrypt == Some(true)),
            (Weakness::Unwrap, self.unwrap == Some(true)),
            (Weakness::Derive, self.derive == Some(true)),
        ]
        .into_iter()
        .filter_map(|(weakness, present)| present.then_some(weakness))
        .collect()
    }

    /// Whether a key with these attributes may be a CA's. A key that may also be used for other things than signing may,
    /// since it cannot be read.
    ///
    /// # Errors
    /// Names the first attribute that forbids it.
    pub fn check(&self, accepted: &Accepted) -> Result<(), Unfit> {
        self.usable()?;
        let refused = [Weakness::NotSensitive, Weakness::Extractable, Weakness::UnreadableAttributes];
        let refused = self.weaknesses().into_iter().filter(|weakness| refused.contains(weakness));
        match accepted.missing(&refused.collect::<Vec<_>>()).first() {
            Some(weakness) => Err(Unfit::Weak(*weakness)),
            None => Ok(()),
        }
    }
}

/// The CA's private key by the public key of its certificate, proven by a signature. Its attributes are not judged.
///
/// # Errors
/// When there is none.
pub fn find_private_key(session: &Session, key: &PublicKey) -> Result<ObjectHandle, KeyError> {
    Ok(Search::default().find_all(session, key)?.handle)
}

/// Whether the attributes of a key are those of a CA's.
///
/// # Errors
/// Names the first attribute that forbids it.
pub fn fit(flags: &Flags, locator: &Locator, accepted: &Accepted) -> Result<(), KeyError> {
    flags.check(accepted).map_err(|reason| KeyError::Unfit { what: locator.to_string(), reason })
}

/// All token objects of the key's type and CKA_ID.
///
/// # Errors
/// If the call fails.
pub fn private_keys(session: &Session, key: &PublicKey) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::KeyType(key_type(key.algorithm())),
        Attribute::Id(key.key_id().to_vec()),
    ];
    Ok(calls::call(calls::Function::FindObjects, || session.find_objects(&template))?)
}

/// One of our own keys in the token, by its label ([`LOG_KEY_LABEL`], [`CANARY_KEY_LABEL`]).
///
/// # Errors
/// If there is none, more than one, one with unsuitable attributes, or one whose public key cannot be read.
pub fn find_by_label(session: &Session, label: &str) -> Result<Found, KeyError> {
    let what = format!("the label `{label}`");
    let labelled = |class| {
        let template = [Attribute::Class(class), Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())];
        calls::call(calls::Function::FindObjects, || session.find_objects(&template)).map_err(Pkcs11Error::from)
    };
    let handle = only(what.clone(), labelled(ObjectClass::PRIVATE_KEY))?;
    let call = |source| KeyError::Call { what: what.clone(), source };
    let flags = Flags::read(session, handle).map_err(call)?;
    flags.check(&Accepted::default()).map_err(|reason| KeyError::Unfit { what: what.clone(), reason })?;
    let reason = |reason| KeyError::Public { what: what.clone(), reason };
    let mut halves = labelled(ObjectClass::PUBLIC_KEY).map_err(call)?;
    // An interrupted run may have left another half. The token may have given CKA_IDs of its own to both.
    if halves.len() > 1 {
        let id = public::id_of(session, handle).map_err(call)?;
        halves.retain(|half| public::id_of(session, *half).is_ok_and(|other| other == id));
    }
    let public_key = match halves.as_slice() {
        [] => return Err(reason("there is none")),
        [object] => public::read(session, *object).map_err(call)?.map_err(|e| reason(e.reason()))?,
        _ => return Err(reason("there are several")),
    };
    Ok(Found { handle, public_key })
}

/// PKCS#11 key type of an algorithm.
#[must_use]
pub fn key_type(algorithm: KeyAlgorithm) -> KeyType {
    match algorithm {
        KeyAlgorithm::Ed25519 => KeyType::EC_EDWARDS,
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => KeyType::EC,
        KeyAlgorithm::Rsa { .. } => KeyType::RSA,
    }
}

/// Lower-case hexadecimal, for CKA_ID and fingerprints.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const_hex::encode(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_decide() {
        let good = Flags { sensitive: Some(true), extractable: Some(false), sign: Some(true), ..Flags::default() };
        let weak = |weakness| Err(Unfit::Weak(weakness));
        let cases = [
            (good, Ok(())),
            (Flags { always_authenticate: Some(false), ..good }, Ok(())),
            (Flags { always_authenticate: Some(true), ..good }, Err(Unfit::AlwaysAuthenticate)),
            (Flags { sensitive: Some(false), ..good }, weak(Weakness::NotSensitive)),
            (Flags { extractable: Some(true), ..good }, weak(Weakness::Extractable)),
            (Flags { sign: Some(false), ..good }, Err(Unfit::NotSigning)),
            (Flags { sign: None, ..good }, weak(Weakness::UnreadableAttributes)),
            (Flags { extractable: None, ..good }, weak(Weakness::UnreadableAttributes)),
            (Flags { decrypt: Some(true), unwrap: Some(true), derive: Some(true), ..good }, Ok(())),
            (Flags::default(), weak(Weakness::UnreadableAttributes)),
        ];
        let all = [Weakness::NotSensitive, Weakness::Extractable, Weakness::UnreadableAttributes];
        for (flags, expected) in cases {
            assert_eq!(flags.check(&Accepted::default()), expected, "{flags:?}");
            let accepted = all.into_iter().collect();
            assert_eq!(
                flags.check(&accepted).is_ok(),
                !matches!(expected, Err(Unfit::AlwaysAuthenticate | Unfit::NotSigning))
            );
        }
    }
}
