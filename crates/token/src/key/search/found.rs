//! The CA's private key in a token, and how it was found.

use cryptoki::{object::ObjectHandle, session::Session};
use serde::{Deserialize, Serialize};

use crate::{
    Pkcs11Error,
    key::{Flags, hex, public},
};

/// The step of the search that found the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// `id=` or `object=` in the token URI (RFC 7512).
    Uri,
    /// CKA_ID is the SHA-1 of the public key.
    KeyId,
    /// CKA_ID is that of a public key or certificate object that contains the CA's public key.
    PublicObject,
    /// CKA_MODULUS, CKA_EC_POINT or CKA_PUBLIC_KEY_INFO of the private key object.
    OwnValue,
    /// A trial signature with each remaining private key of the same type.
    TrialSignature,
}

impl FoundBy {
    pub(super) const ORDER: [Self; 5] =
        [Self::Uri, Self::KeyId, Self::PublicObject, Self::OwnValue, Self::TrialSignature];

    /// How the key was found, as the end of "found ...".
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Uri => "by id= or object= in the token URI",
            Self::KeyId => "by its CKA_ID, the SHA-1 of the public key",
            Self::PublicObject => "by the CKA_ID of a public key or certificate object",
            Self::OwnValue => "by the public key in its own attributes",
            Self::TrialSignature => "by a trial signature",
        }
    }
}

/// What names a private key object; several objects may share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Locator {
    /// CKA_ID, empty if it has none; hexadecimal in JSON.
    #[serde(with = "hexadecimal")]
    pub id: Vec<u8>,
    /// CKA_LABEL, empty if it has none.
    pub label: String,
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::hex;

    pub(super) fn serialize<S: Serializer>(id: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(id))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = (0..text.len()).step_by(2).map(|at| {
            let digits = text.get(at..at + 2).ok_or_else(|| D::Error::custom("not hexadecimal"))?;
            u8::from_str_radix(digits, 16).map_err(D::Error::custom)
        });
        bytes.collect()
    }
}

impl std::fmt::Display for Locator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = if self.id.is_empty() { "no CKA_ID".to_owned() } else { format!("CKA_ID {}", hex(&self.id)) };
        match self.label.as_str() {
            "" => write!(f, "{id} and no label"),
            label => write!(f, "{id} and the label `{label}`"),
        }
    }
}

impl Locator {
    pub(crate) fn read(session: &Session, handle: ObjectHandle) -> Result<Self, Pkcs11Error> {
        let id = public::id_of(session, handle)?.unwrap_or_default();
        Ok(Self { id, label: public::label_of(session, handle)?.unwrap_or_default() })
    }
}

/// A private key whose signature verified with the CA's public key.
#[derive(Clone, Debug)]
pub struct CaKey {
    /// Valid while the session that found it lives.
    pub handle: ObjectHandle,
    /// The step that found it.
    pub by: FoundBy,
    /// CKA_ID and CKA_LABEL.
    pub locator: Locator,
    /// Its attributes.
    pub flags: Flags,
    /// Further private key objects whose signatures verified: copies.
    pub copies: Vec<Locator>,
}

/// A key that was proven, in this process or in an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The step that found it.
    pub by: FoundBy,
    /// CKA_ID and CKA_LABEL.
    pub locator: Locator,
    /// Its copies.
    pub copies: Vec<Locator>,
    /// Of this process; absent where another one has proven the key.
    #[serde(skip)]
    pub(super) handle: Option<ObjectHandle>,
}

impl From<&CaKey> for Known {
    fn from(found: &CaKey) -> Self {
        let CaKey { handle, by, locator, copies, .. } = found;
        Self { by: *by, locator: locator.clone(), copies: copies.clone(), handle: Some(*handle) }
    }
}
