//! Public keys as the token tells them, turned into SubjectPublicKeyInfo.
//!
//! A public key object proves nothing by itself; whoever needs proof verifies a signature with it.

use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use der::{
    Encode, Sequence,
    asn1::{AnyRef, BitStringRef, ObjectIdentifier, OctetStringRef, UintRef},
};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::Fault;
use crate::pki::PublicKey;

/// rsaEncryption (RFC 3279), id-ecPublicKey and the curves (RFC 5480), Ed25519 (RFC 8410).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Why a public key object cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum Unreadable {
    /// An attribute is missing.
    Incomplete,
    /// The attributes are not those of a key that we take.
    Unsupported,
}

impl Unreadable {
    /// Why, as part of a sentence.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Incomplete => "it lacks an attribute",
            Self::Unsupported => "it is of a kind that this CA does not take",
        }
    }
}

/// RFC 8017's RSAPublicKey.
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    public_exponent: UintRef<'a>,
}

/// An object's CKA_ID.
///
/// # Errors
/// When the call fails.
pub fn id_of(session: &Session, object: ObjectHandle) -> Result<Option<Vec<u8>>, Fault> {
    let attributes = session.get_attributes(object, &[AttributeType::Id])?;
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::Id(id) => Some(id),
        _ => None,
    }))
}

/// The token's public key objects of a CKA_ID.
///
/// # Errors
/// When the call fails.
pub fn by_id(session: &Session, id: &[u8]) -> Result<Vec<ObjectHandle>, Fault> {
    Ok(session.find_objects(&[
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(true),
        Attribute::Id(id.to_vec()),
    ])?)
}

/// Reads a public key object.
///
/// # Errors
/// The outer error is a failed call, the inner one a key that cannot be used.
pub fn read(session: &Session, object: ObjectHandle) -> Result<Result<PublicKey, Unreadable>, Fault> {
    let spki = match spki_der(session, object)? {
        Ok(spki) => spki,
        Err(error) => return Ok(Err(error)),
    };
    Ok(PublicKey::from_spki_der(&spki).map_err(|_| Unreadable::Unsupported))
}

/// Reads a public key object as DER SubjectPublicKeyInfo, without asking whether this CA would take the key.
///
/// # Errors
/// As [`read`].
pub fn spki_der(session: &Session, object: ObjectHandle) -> Result<Result<Vec<u8>, Unreadable>, Fault> {
    let kind = session.get_attributes(object, &[AttributeType::KeyType])?;
    let attributes = match kind.as_slice() {
        [Attribute::KeyType(kind)] if *kind == KeyType::RSA => {
            session.get_attributes(object, &[AttributeType::Modulus, AttributeType::PublicExponent])?
        }
        [Attribute::KeyType(kind)] if *kind == KeyType::EC || *kind == KeyType::EC_EDWARDS => {
            session.get_attributes(object, &[AttributeType::EcParams, AttributeType::EcPoint])?
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
    Ok(match (modulus, exponent, params, point) {
        (Some(modulus), Some(exponent), _, _) => rsa(&modulus, &exponent).ok_or(Unreadable::Unsupported),
        (_, _, Some(params), Some(point)) if kind.contains(&Attribute::KeyType(KeyType::EC_EDWARDS)) => {
            edwards(&params, &point).ok_or(Unreadable::Unsupported)
        }
        (_, _, Some(params), Some(point)) => weierstrass(&params, &point).ok_or(Unreadable::Unsupported),
        _ => Err(Unreadable::Incomplete),
    })
}

/// DER SubjectPublicKeyInfo of an RSA key, from big-endian numbers with or without leading zeros.
#[must_use]
pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let key = RsaPublicKey { modulus: UintRef::new(modulus).ok()?, public_exponent: UintRef::new(exponent).ok()? };
    encode(RSA, Some(AnyRef::NULL), &key.to_der().ok()?)
}

/// CKA_EC_POINT is a DER OCTET STRING by the standard, and the bare point with some tokens.
fn weierstrass(params: &[u8], point: &[u8]) -> Option<Vec<u8>> {
    let bare = <&OctetStringRef as der::Decode>::from_der(point).map_or(point, OctetStringRef::as_bytes);
    encode(EC, Some(<AnyRef<'_> as der::Decode>::from_der(params).ok()?), bare)
}

/// CKA_EC_PARAMS names the curve by its OID, or by the PrintableString `edwards25519` (PKCS#11 v3.0, section 2.3.5).
fn edwards(params: &[u8], point: &[u8]) -> Option<Vec<u8>> {
    let by_name = b"\x13\x0cedwards25519";
    if params != by_name && params != ED25519.to_der().ok()? {
        return None;
    }
    let bare = match <[u8; 32]>::try_from(point) {
        Ok(_) => point,
        Err(_) => <&OctetStringRef as der::Decode>::from_der(point).ok()?.as_bytes(),
    };
    encode(ED25519, None, bare)
}

fn encode(oid: ObjectIdentifier, parameters: Option<AnyRef<'_>>, bits: &[u8]) -> Option<Vec<u8>> {
    let algorithm = AlgorithmIdentifierRef { oid, parameters };
    SubjectPublicKeyInfoRef { algorithm, subject_public_key: BitStringRef::from_bytes(bits).ok()? }.to_der().ok()
}
