//! The attributes with which objects are made. Every flag is written out: what a token takes for an attribute that is
//! left out differs from token to token, and is sometimes "readable" (SoftHSM) or "may not sign" (Kryoptic). Only where
//! a token rejects an attribute is it left out ([`with_fallbacks`]); what the token chose is read back and judged.

use cryptoki::{
    mechanism::MechanismType,
    object::{Attribute, CertificateType, ObjectClass},
};
use der::{Encode, asn1::OctetStringRef};

use super::{Pkcs11Error, key_type};
use pki::{CertificateFields, KeyAlgorithm, PublicKey};

/// ID and label of an object.
#[derive(Clone, Debug)]
pub struct Name<'a> {
    /// CKA_ID.
    pub id: &'a [u8],
    /// CKA_LABEL.
    pub label: &'a str,
}

/// A private key as a session object, for C_UnwrapKey and, with the key's numbers, C_CreateObject. `extractable` is for
/// the copy that shows whether a refusal to wrap is significant; `allowed` is CKA_ALLOWED_MECHANISMS.
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

/// What is left out of a template: groups of attributes that a token may refuse, as a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Omission(u8);

impl Omission {
    /// Nothing is left out.
    pub const NONE: Self = Self(0);
    /// CKA_ALLOWED_MECHANISMS is left out.
    pub const RESTRICTION: Self = Self(1);
    /// CKA_MODIFIABLE is left out.
    pub const MODIFIABLE: Self = Self(1 << 1);

    /// What either of the two leaves out.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether this leaves out all that `other` does.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The attributes that are left out from a template, by name.
    #[must_use]
    pub fn names(self, template: &[Attribute]) -> Vec<String> {
        let omitted = template.iter().filter(|attribute| self.contains(attribute));
        omitted.map(|attribute| attribute.attribute_type().to_string()).collect()
    }

    /// The rest of a template.
    #[must_use]
    pub fn apply(self, template: &[Attribute]) -> Vec<Attribute> {
        template.iter().filter(|attribute| !self.contains(attribute)).cloned().collect()
    }

    fn contains(self, attribute: &Attribute) -> bool {
        self.0 & group(attribute) != 0
    }
}

/// The group of an attribute, as a bit: a higher one is of more importance. 0 for what an object needs.
fn group(attribute: &Attribute) -> u8 {
    match attribute {
        // Unknown to tokens older than PKCS#11 v2.20.
        Attribute::AllowedMechanisms(_) => Omission::RESTRICTION.0,
        Attribute::Modifiable(_) => Omission::MODIFIABLE.0,
        // AWS CloudHSM derives it from CKA_SIGN.
        Attribute::SignRecover(false) | Attribute::VerifyRecover(false) => 1 << 2,
        // Some vendors assign it themselves.
        Attribute::Id(_) => 1 << 3,
        // AWS CloudHSM has private objects only.
        Attribute::Private(false) => 1 << 4,
        Attribute::Decrypt(false)
        | Attribute::Derive(false)
        | Attribute::Encrypt(false)
        | Attribute::Sign(false)
        | Attribute::Unwrap(false)
        | Attribute::Verify(false)
        | Attribute::Wrap(false) => 1 << 5,
        Attribute::Extractable(false) | Attribute::Private(true) | Attribute::Sensitive(true) => 1 << 6,
        _ => 0,
    }
}

/// Makes an object with all attributes of the template, or else without those that the token rejects: it does not say
/// which, so that one group after the other is left out, then several, the least important first.
///
/// # Errors
/// The call's, when it is not about the template; the last one when nothing is left to omit.
pub fn with_fallbacks<T>(
    template: &[Attribute],
    mut make: impl FnMut(Omission) -> Result<T, Pkcs11Error>,
) -> Result<(T, Omission), Pkcs11Error> {
    let groups = template.iter().map(group).fold(0, |all, group| all | group);
    let sets = (0..groups).filter(|set| set & !groups == 0).map(Omission);
    for omission in sets {
        match make(omission) {
            Ok(made) => return Ok((made, omission)),
            Err(error) if rejects_template(&error) => {}
            Err(error) => return Err(error),
        }
    }
    make(Omission(groups)).map(|made| (made, Omission(groups)))
}

/// Whether the token rejects an attribute of a template.
#[must_use]
pub fn rejects_template(error: &Pkcs11Error) -> bool {
    use cryptoki::error::RvError::{
        AttributeReadOnly, AttributeTypeInvalid, AttributeValueInvalid, TemplateInconsistent,
    };
    [AttributeReadOnly, AttributeTypeInvalid, AttributeValueInvalid, TemplateInconsistent]
        .into_iter()
        .any(|rv| error.is(rv))
}

/// What turns a session object into the token's: C_CopyObject keeps every other flag. CKA_MODIFIABLE goes last, since
/// SoftHSM takes attributes in order and refuses all that follows it.
#[must_use]
pub fn keep() -> [Attribute; 2] {
    [Attribute::Token(true), Attribute::Modifiable(false)]
}

/// The same for a template, where the token has no C_CopyObject or no session objects.
#[must_use]
pub fn kept(template: &[Attribute]) -> Vec<Attribute> {
    let others = template.iter().filter(|attribute| !matches!(attribute, Attribute::Token(_)));
    others.cloned().chain(keep()).collect()
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
    // The standard's encoding of the point, a DER OCTET STRING, which Kryoptic requires.
    if let (Some(curve), Some(point)) = (key.ec_parameters_der(), key.ec_point().and_then(octet_string)) {
        template.push(Attribute::EcParams(curve.to_vec()));
        template.push(Attribute::EcPoint(point));
    }
    template
}

/// The flags of a public key that only verifies.
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

/// A certificate as a token object. The names are DER Name, the serial number is DER INTEGER (PKCS#11 v3.1, 4.6.3).
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

/// The parts of a certificate for a token object, parsed and matched with a key.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    serial: Vec<u8>,
}

/// A certificate cannot be stored with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is not a DER certificate.
    #[error("the CA certificate is not a DER certificate")]
    Malformed,
    /// It is for another key.
    #[error(
        "the CA certificate is not this key's: its public key is another; give the certificate that belongs to the key"
    )]
    OtherKey,
}

impl Certificate {
    /// Parses a DER certificate and compares its public key.
    ///
    /// # Errors
    /// If it is not a certificate, or is for another key.
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

pub(super) fn octet_string(bytes: &[u8]) -> Option<Vec<u8>> {
    OctetStringRef::new(bytes).ok()?.to_der().ok()
}

#[cfg(test)]
mod tests {
    use cryptoki::{
        context::Function,
        error::{Error, RvError},
    };

    use super::*;

    fn error(rv: RvError) -> Pkcs11Error {
        Error::Pkcs11(rv, Function::GenerateKeyPair).into()
    }

    /// What is left out for a token that rejects these attributes, and how often it was asked.
    fn omitted(rejected: fn(&Attribute) -> bool) -> (Vec<String>, usize) {
        let name = Name { id: b"id", label: "label" };
        let template =
            kept(&[&private_flags(&name, Some(MechanismType::ECDSA), false)[..], &public_flags(true)].concat());
        let mut asked = 0;
        let made = with_fallbacks(&template, |omission| {
            asked += 1;
            let left = omission.apply(&template);
            if left.iter().any(rejected) { Err(error(RvError::TemplateInconsistent)) } else { Ok(()) }
        });
        (made.unwrap().1.names(&template), asked)
    }

    #[test]
    fn only_what_a_token_rejects_is_left_out() {
        assert_eq!(omitted(|_| false), (vec![], 1));
        let (names, asked) = omitted(|attribute| matches!(attribute, Attribute::AllowedMechanisms(_)));
        assert_eq!((names, asked), (vec!["CKA_ALLOWED_MECHANISMS".to_owned()], 2));
        // A YubiHSM with its first firmware: neither a list of mechanisms nor a long ID.
        let (names, _) = omitted(|it| matches!(it, Attribute::AllowedMechanisms(_) | Attribute::Id(_)));
        assert_eq!(names, ["CKA_ID", "CKA_ALLOWED_MECHANISMS"]);
        let (names, asked) = omitted(|it| matches!(it, Attribute::Sensitive(true)));
        assert!(names.contains(&"CKA_SENSITIVE".to_owned()) && !names.contains(&"CKA_DECRYPT".to_owned()), "{names:?}");
        assert!(asked <= 128, "{asked}");
    }

    #[test]
    fn failure_that_is_not_about_the_template_ends_the_attempts() {
        let template = private_flags(&Name { id: b"id", label: "label" }, None, false);
        for rv in [RvError::DeviceError, RvError::MechanismInvalid, RvError::DeviceMemory] {
            let mut asked = 0;
            let made: Result<((), Omission), _> = with_fallbacks(&template, |_| {
                asked += 1;
                Err(error(rv))
            });
            assert!(made.unwrap_err().is(rv));
            assert_eq!(asked, 1, "{rv:?}");
        }
    }
}
