//! The marker of an import in progress: a data object with our label that contains the key's CKA_ID.
//!
//! It is the first token object that an import creates and the last that it removes. While it exists, objects with this
//! CKA_ID are from an interrupted import or from one in progress; without it, an object that does not work is foreign
//! and never modified. Tokens without data objects get no marker, and nothing is ever removed there.

use cryptoki::{
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};

use crate::{
    Pkcs11Error,
    key::{hex, public},
};
use pki::PublicKey;

const APPLICATION: &str = "istio-hsm-ca";
const PREFIX: &str = "istio-hsm-ca import under way: ";

/// Creates the marker for a key.
pub(super) fn write(session: &Session, key: &PublicKey) -> Result<ObjectHandle, Pkcs11Error> {
    Ok(session.create_object(&[
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Application(APPLICATION.as_bytes().to_vec()),
        Attribute::Label(label(key)),
        Attribute::Value(key.key_id().to_vec()),
    ])?)
}

/// The markers of a key.
pub(super) fn find(session: &Session, key: &PublicKey) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    Ok(session.find_objects(&[
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(label(key)),
    ])?)
}

/// CKA_IDs of other keys with markers. Used in a message only, so errors are ignored.
pub(super) fn others(session: &Session, key: &PublicKey) -> Vec<String> {
    let template = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Application(APPLICATION.as_bytes().to_vec()),
    ];
    let own = hex(&key.key_id());
    let objects = session.find_objects(&template).unwrap_or_default();
    let labels = objects.into_iter().filter_map(|object| public::label_of(session, object).ok().flatten());
    labels.filter_map(|label| label.strip_prefix(PREFIX).map(str::to_owned)).filter(|id| *id != own).collect()
}

fn label(key: &PublicKey) -> Vec<u8> {
    format!("{PREFIX}{}", hex(&key.key_id())).into_bytes()
}
