//! The attributes with which objects are made. Every flag is written out: what a token takes for an attribute that is
//! left out differs from token to token, and is sometimes "readable" (SoftHSM) or "may not sign" (Kryoptic).

use cryptoki::{
    mechanism::MechanismType,
    object::{Attribute, CertificateType, ObjectClass},
};
use der::{Encode, asn1::OctetStringRef};

use super::key_type;
use pki::{CertificateFields, KeyAlgorithm, PublicKey};

/// What names an object.
#[derive(Clone, Debug)]
pub struct Name<'a> {
    /// CKA_ID.
    pub id: &'a [u8],
    /// CKA_LABEL.
    pub label: &'a str,
}

/// A private key as a session object, for C_UnwrapKey and, with the key's numbers, C_CreateObject. `extractable` is
/// for the twin that proves that a refusal to wrap means something; `allowed` is CKA_ALLOWED_MECHANISMS.
#[must_use]
pub fn private(
    algorithm: KeyAlgorithm,
    name: &Name<'_>,
    allowed: Option<MechanismType>,
    extractable: bool,
) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(key_type(algorithm))];
    template.extend(private_flags(name, allowed, extractable));
    template
}

/// The same for C_GenerateKeyPair, which derives class and type from the mechanism.
#[must_use]
pub fn private_flags(name: &Name<'_>, allowed: Option<MechanismType>, extractable: bool) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Id(name.id.to_vec()),
        Attribute::Label(name.label.as_bytes().to_vec()),
    ];
    template.extend(allowed.map(|mechanism| Attribute::AllowedMechanisms(vec![mechanism])));
    template
}

/// What turns a session object into the token's: C_CopyObject keeps every other flag. CKA_MODIFIABLE goes last, since
/// SoftHSM takes attributes in order and refuses all that follows it.
#[must_use]
pub fn keep() -> [Attribute; 2] {
    [Attribute::Token(true), Attribute::Modifiable(false)]
}

/// A public key as a token object, readable by everybody.
#[must_use]
pub fn public(key: &PublicKey, name: &Name<'_>) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::KeyType(key_type(key.algorithm()))];
    template.extend(public_flags(true));
    template.push(Attribute::Id(name.id.to_vec()));
    template.push(Attribute::Label(name.label.as_bytes().to_vec()));
    if let Some((modulus, exponent)) = key.rsa_components() {
        template.push(Attribute::Modulus(modulus.to_vec()));
        template.push(Attribute::PublicExponent(exponent.to_vec()));
    }
    // The standard's form of the point, a DER OCTET STRING; Kryoptic takes no other.
    if let (Some(curve), Some(point)) = (key.ec_parameters_der(), key.ec_point().and_then(octet_string)) {
        template.push(Attribute::EcParams(curve.to_vec()));
        template.push(Attribute::EcPoint(point));
    }
    template
}

/// The flags of a public key that verifies and does nothing else.
#[must_use]
pub fn public_flags(token: bool) -> [Attribute; 6] {
    [
        Attribute::Token(token),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::VerifyRecover(false),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
    ]
}

/// A certificate as a token object. The names are DER Name, the serial number DER INTEGER (PKCS#11 v3.1, 4.6.3).
#[must_use]
pub fn certificate(certificate: &Certificate, name: &Name<'_>) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Id(name.id.to_vec()),
        Attribute::Label(name.label.as_bytes().to_vec()),
        Attribute::Subject(certificate.subject.clone()),
        Attribute::Issuer(certificate.issuer.clone()),
        Attribute::SerialNumber(certificate.serial.clone()),
        Attribute::Value(certificate.der.clone()),
    ]
}

/// What a token wants to know of a certificate; parsed, and for one key.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    serial: Vec<u8>,
}

/// Why a certificate cannot stand beside a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a DER certificate.
    #[error("the CA certificate is not a DER certificate")]
    Malformed,
    /// Of another key.
    #[error(
        "the CA certificate is not this key's: its public key is another; give the certificate that belongs to the key"
    )]
    OtherKey,
}

impl Certificate {
    /// Reads a DER certificate and compares its public key.
    ///
    /// # Errors
    /// When it is not a certificate, or is for another key.
    pub fn new(der: &[u8], key: &PublicKey) -> Result<Self, CertificateError> {
        let CertificateFields { serial, issuer, subject, spki, .. } =
            CertificateFields::parse(der).map_err(|_error| CertificateError::Malformed)?;
        if PublicKey::from_spki_der(&spki).as_ref() != Ok(key) {
            return Err(CertificateError::OtherKey);
        }
        Ok(Self { der: der.to_vec(), subject, issuer, serial })
    }

    /// The certificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

fn octet_string(bytes: &[u8]) -> Option<Vec<u8>> {
    OctetStringRef::new(bytes).ok()?.to_der().ok()
}
