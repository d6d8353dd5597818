//! Contents of a module and its tokens, for users and for `check`. Read-only.

use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use der::{AnyRef, Decode};
use serde::Serialize;

use super::{
    Module, Pkcs11Error,
    key::{Accepted, Flags, hex, objects, public},
    module::{Info, LibraryInfo, Slots, TokenError, UnreadableSlot},
};
use pki::{CertificateFields, PublicKey};

/// A token of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenView {
    /// Its slot, for display only.
    pub slot: u64,
    /// The slot's description from the library; `None` if it cannot be read.
    pub slot_description: Option<String>,
    /// Its CK_TOKEN_INFO.
    #[serde(flatten)]
    pub info: Info,
}

/// Contents of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The private keys; empty without a login.
    pub keys: Vec<KeyView>,
    /// The certificates.
    pub certificates: Vec<CertificateView>,
    /// Number of private objects that cannot be read, such as leftovers of a crash.
    pub unreadable: usize,
}

/// A private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyView {
    /// CKA_LABEL.
    pub label: String,
    /// CKA_ID, hexadecimal.
    pub id: String,
    /// CKA_KEY_TYPE, and the size or curve if the public key is available.
    pub kind: String,
    /// SHA-256 of the SubjectPublicKeyInfo, hexadecimal, from the token's public key object.
    pub key_sha256: Option<String>,
    /// Its handle in the session that it was read in.
    #[serde(skip)]
    pub handle: ObjectHandle,
    /// Its attributes.
    pub attributes: Flags,
    /// Why it is not suitable as a CA key.
    pub unfit: Option<String>,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateView {
    /// CKA_LABEL.
    pub label: String,
    /// CKA_ID, hexadecimal.
    pub id: String,
    /// SHA-256 of its DER, hexadecimal.
    pub sha256: String,
    /// Its content; `None` if it cannot be parsed.
    pub content: Option<CertificateContent>,
}

/// Content of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateContent {
    /// Subject (RFC 4514).
    pub subject: String,
    /// Issuer (RFC 4514).
    pub issuer: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// notBefore (RFC 3339).
    pub not_before: String,
    /// notAfter (RFC 3339).
    pub not_after: String,
    /// SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
    pub key_sha256: String,
    /// Whether a private key with this certificate's CKA_ID, or that of its public key, is in the token.
    pub key_present: bool,
}

/// A library and the tokens in its slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModuleView {
    /// The library's CK_INFO; `None` if it cannot be read.
    pub library: Option<LibraryInfo>,
    /// The initialised tokens.
    pub tokens: Vec<TokenView>,
    /// Slots that cannot be read.
    pub unreadable: Vec<SlotView>,
}

/// A slot that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotView {
    /// Number of the slot.
    pub slot: u64,
    /// The library's error.
    pub error: String,
}

/// A library and its tokens; needs no PIN.
///
/// # Errors
/// If the slots cannot be listed.
pub fn module(module: &Module) -> Result<ModuleView, TokenError> {
    let Slots { tokens, unreadable } = module.slots()?;
    let library =
        module.info().inspect_err(|error| tracing::warn!(%error, "the library does not describe itself")).ok();
    let tokens = tokens.iter().map(|token| TokenView {
        slot: token.slot(),
        slot_description: token.slot_description().ok(),
        info: token.info().clone(),
    });
    let unreadable =
        unreadable.into_iter().map(|UnreadableSlot { slot, source }| SlotView { slot, error: source.to_string() });
    Ok(ModuleView { library, tokens: tokens.collect(), unreadable: unreadable.collect() })
}

/// Contents of a token. Without a login, private keys are hidden.
///
/// # Errors
/// If a call fails.
pub fn contents(session: &Session) -> Result<Contents, Pkcs11Error> {
    let mut keys = Vec::new();
    let mut unreadable = 0;
    let private = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true)];
    for object in session.find_objects(&private)? {
        match key(session, object) {
            Ok(view) => keys.push(view),
            Err(error) => {
                tracing::warn!(%error, "a private key object cannot be read");
                unreadable += 1;
            }
        }
    }
    let mut certificates = Vec::new();
    for (object, label, der) in objects::certificates(session)? {
        let id = hex(&public::id_of(session, object)?.unwrap_or_default());
        let content = content(&der, &id, &keys);
        certificates.push(CertificateView { label, id, sha256: sha256(&der), content });
    }
    Ok(Contents { keys, certificates, unreadable })
}

fn key(session: &Session, object: ObjectHandle) -> Result<KeyView, Pkcs11Error> {
    let attributes = Flags::read(session, object)?;
    let id = public::id_of(session, object)?.unwrap_or_default();
    let mut public_key = None;
    if !id.is_empty() {
        for half in public::by_id(session, &id)? {
            public_key = public_key.or(public::read(session, half)?.ok());
        }
    }
    let kind = match &public_key {
        Some(key) => key.algorithm().to_string(),
        None => kind(session, object)?,
    };
    Ok(KeyView {
        label: public::label_of(session, object)?.unwrap_or_default(),
        id: hex(&id),
        kind,
        handle: object,
        key_sha256: public_key.as_ref().map(|key| hex(&key.fingerprint())),
        attributes,
        unfit: attributes.check(&Accepted::default()).err().map(|reason| reason.to_string()),
    })
}

fn kind(session: &Session, object: ObjectHandle) -> Result<String, Pkcs11Error> {
    let attributes = session.get_attributes(object, &[AttributeType::KeyType])?;
    Ok(match attributes.as_slice() {
        [Attribute::KeyType(kind)] if *kind == KeyType::RSA => "RSA".to_owned(),
        [Attribute::KeyType(kind)] if *kind == KeyType::EC => "EC".to_owned(),
        [Attribute::KeyType(kind)] if *kind == KeyType::EC_EDWARDS => "EC Edwards".to_owned(),
        [Attribute::KeyType(kind)] => kind.to_string(),
        _ => "unknown".to_owned(),
    })
}

fn content(der: &[u8], id: &str, keys: &[KeyView]) -> Option<CertificateContent> {
    let certificate = CertificateFields::parse(der).ok()?;
    let ids = [Some(id.to_owned()), PublicKey::from_spki_der(&certificate.spki).ok().map(|key| hex(&key.key_id()))];
    let names = |key: &KeyView| !key.id.is_empty() && ids.iter().flatten().any(|id| *id == key.id);
    Some(CertificateContent {
        subject: certificate.subject_text(),
        issuer: certificate.issuer_text(),
        serial: hex(AnyRef::from_der(&certificate.serial).ok()?.value()),
        not_before: certificate.validity.not_before.to_date_time().to_string(),
        not_after: certificate.validity.not_after.to_date_time().to_string(),
        key_sha256: sha256(&certificate.spki),
        key_present: keys.iter().any(names),
    })
}

fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}
