//! The mark that an import is under way: a data object with a label of ours that names the key's CKA_ID.
//!
//! It is the first token object of an import and the last to go. What bears the same CKA_ID while it stands was made by
//! an import that was interrupted, or by one under way; without it, an object that does not work is somebody else's
//! and is never touched. A token that takes no data objects gets none, and nothing is ever cleared there.

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

/// Marks the import of a key.
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

/// The marks of a key.
pub(super) fn find(session: &Session, key: &PublicKey) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    Ok(session.find_objects(&[
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(label(key)),
    ])?)
}

/// The CKA_IDs of other keys that are marked. For a message only, so that a fault is no error.
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
