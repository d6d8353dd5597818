//! Public keys in the token.
//!
//! A public key object does not prove that there is a private key; only a signature that verifies does.

use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use der::{Decode, Encode};

use super::{Pkcs11Error, key_type};
use crate::calls;
use pki::PublicKey;

/// A public key object cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum Unreadable {
    /// An attribute is missing.
    Incomplete,
    /// The attributes are not those of a supported key.
    Unsupported,
}

impl Unreadable {
    /// The reason as part of a sentence.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Incomplete => "it lacks an attribute",
            Self::Unsupported => "it is of a kind that this CA does not take",
        }
    }
}

/// An object's CKA_ID.
///
/// # Errors
/// If the call fails.
pub fn id_of(session: &Session, object: ObjectHandle) -> Result<Option<Vec<u8>>, Pkcs11Error> {
    let attributes = read_attributes(session, object, &[AttributeType::Id])?;
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::Id(id) => Some(id),
        _ => None,
    }))
}

/// An object's CKA_LABEL.
///
/// # Errors
/// If the call fails.
pub fn label_of(session: &Session, object: ObjectHandle) -> Result<Option<String>, Pkcs11Error> {
    let attributes = read_attributes(session, object, &[AttributeType::Label])?;
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::Label(label) => Some(String::from_utf8_lossy(&label).into_owned()),
        _ => None,
    }))
}

/// The token's public key objects with a CKA_ID.
///
/// # Errors
/// If the call fails.
pub fn by_id(session: &Session, id: &[u8]) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Token(true), Attribute::Id(id.to_vec())];
    Ok(calls::call(calls::Function::FindObjects, || session.find_objects(&template))?)
}

/// Most public key objects that are looked through for one key.
const MOST: usize = 256;

/// The token's public key objects of a key's type, among which may be its own.
///
/// # Errors
/// When the call fails.
pub fn all(session: &Session, key: &PublicKey) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let kind = Attribute::KeyType(key_type(key.algorithm()));
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Token(true), kind];
    let mut found = calls::call(calls::Function::FindObjects, || session.find_objects(&template))?;
    found.truncate(MOST);
    Ok(found)
}

/// Reads a public key object.
///
/// # Errors
/// The outer error is a failed call, the inner one a key that cannot be used.
pub fn read(session: &Session, object: ObjectHandle) -> Result<Result<PublicKey, Unreadable>, Pkcs11Error> {
    let kind = read_attributes(session, object, &[AttributeType::KeyType])?;
    let attributes = match kind.as_slice() {
        [Attribute::KeyType(kind)] if *kind == KeyType::RSA => {
            read_attributes(session, object, &[AttributeType::Modulus, AttributeType::PublicExponent])?
        }
        [Attribute::KeyType(kind)] if *kind == KeyType::EC || *kind == KeyType::EC_EDWARDS => {
            read_attributes(session, object, &[AttributeType::EcParams, AttributeType::EcPoint])?
        }
        _ => return Ok(Err(Unreadable::Unsupported)),
    };
    let (mut modulus, mut exponent, mut params, mut point) = (None, None, None, None);
    for attribute in attributes {
        match attribute {
            Attribute::Modulus(bytes) => modulus = Some(bytes),
            Attribute::PublicExponent(bytes) => exponent = Some(bytes),
            Attribute::EcParams(bytes) => params = Some(bytes),
            Attribute::EcPoint(bytes) => point = Some(bytes),
            _ => {}
        }
    }
    let key = match (modulus, exponent, params, point) {
        (Some(modulus), Some(exponent), _, _) => PublicKey::from_rsa(&modulus, &exponent),
        (_, _, Some(params), Some(point)) => PublicKey::from_ec_point(&params, &point),
        _ => return Ok(Err(Unreadable::Incomplete)),
    };
    Ok(key.map_err(|_| Unreadable::Unsupported))
}

/// The public key in a DER certificate, if it is of a kind that we take.
#[must_use]
pub fn of_certificate(der: &[u8]) -> Option<PublicKey> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let spki = certificate.tbs_certificate().subject_public_key_info().to_der().ok()?;
    PublicKey::from_spki_der(&spki).ok()
}

fn read_attributes(
    session: &Session,
    object: ObjectHandle,
    wanted: &[AttributeType],
) -> Result<Vec<Attribute>, Pkcs11Error> {
    Ok(calls::call(calls::Function::GetAttributeValue, || session.get_attributes(object, wanted))?)
}
