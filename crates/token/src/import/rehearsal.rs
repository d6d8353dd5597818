//! Random keys of a CA key's type, to see what a token does with such a key before the CA's own is at stake. Mechanism
//! lists do not show it.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::{self, KeySize},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use cryptoki::{
    mechanism::MechanismType,
    object::{Attribute, ObjectHandle},
    session::Session,
};
use zeroize::Zeroizing;

use super::ClearTemplate;
use crate::{
    Pkcs11Error,
    key::{
        objects::Made,
        template::{self, Name, Omission},
    },
};
use pki::{KeyAlgorithm, pem, private_key::PrivateKey};

const LABEL: &str = "istio-hsm-ca rehearsal";

/// A random key as PKCS#8; none if the process has no random numbers.
pub(super) fn random_pkcs8(algorithm: KeyAlgorithm) -> Option<Zeroizing<Vec<u8>>> {
    let random = SystemRandom::new();
    let key = match algorithm {
        KeyAlgorithm::Ed25519 => Ed25519KeyPair::generate_pkcs8v1(&random).ok()?.as_ref().to_vec(),
        KeyAlgorithm::P256 => {
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).ok()?.as_ref().to_vec()
        }
        KeyAlgorithm::P384 => {
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &random).ok()?.as_ref().to_vec()
        }
        // The size makes no difference, and a larger key takes seconds.
        KeyAlgorithm::Rsa { .. } => {
            let key = rsa::KeyPair::generate(KeySize::Rsa2048).ok()?;
            AsDer::<Pkcs8V1Der<'_>>::as_der(&key).ok()?.as_ref().to_vec()
        }
    };
    Some(Zeroizing::new(key))
}

/// The template of the CA's key, under another name.
pub(super) fn template(algorithm: KeyAlgorithm, signing: Option<MechanismType>) -> Vec<Attribute> {
    template::private(algorithm, &Name { id: b"rehearsal", label: LABEL }, signing, false)
}

/// How a token takes a key in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clear {
    /// As a session object, with this left out from its template.
    Session(Omission),
    /// As a token object, if at all: it has no private keys that are session objects. It was not tried out, which would
    /// write to the token.
    Token,
}

/// How the token takes such a key in the clear.
///
/// # Errors
/// When the token does not take it.
pub(super) fn in_the_clear(
    session: &Session,
    algorithm: KeyAlgorithm,
    signing: Option<MechanismType>,
) -> Result<Clear, Pkcs11Error> {
    let pkcs8 = random_pkcs8(algorithm).ok_or_else(internal)?;
    let text = pem::encode_secret("PRIVATE KEY", &pkcs8);
    let key = PrivateKey::from_pem(text.as_bytes(), None).map_err(|_| internal())?;
    let attributes = template(algorithm, signing);
    match create(session, &key, &attributes) {
        Ok((object, omission)) => {
            Made::new(session).scratch(object);
            Ok(Clear::Session(omission))
        }
        Err(error) if template::rejects_template(&error) => Ok(Clear::Token),
        Err(error) => Err(error),
    }
}

/// Creates a key in the clear, without the attributes that the token rejects.
pub(super) fn create(
    session: &Session,
    key: &PrivateKey,
    attributes: &[Attribute],
) -> Result<(ObjectHandle, Omission), Pkcs11Error> {
    template::with_fallbacks(attributes, |omission| {
        let template = ClearTemplate::new(key, omission.apply(attributes)).map_err(|_| internal())?;
        Ok(session.create_object(template.attributes())?)
    })
}

/// Stands for a failure of this process.
fn internal() -> Pkcs11Error {
    cryptoki::error::Error::InvalidValue.into()
}
