//! Destroys the CA's key in a token, by `ceremony run` with the act `retire_key`: the only place where a key that works is
//! ever destroyed.
//!
//! The key is named by its public key and proven by a signature, so that no other key can be meant. Its copies, the public
//! key objects and the certificates of the same key go with it; the private keys first, so that a failure leaves objects
//! that anybody may read.

use cryptoki::{
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};
use serde::Serialize;

use super::{
    CallError, Pkcs11Error,
    calls::{Function, call},
    key::{CaKey, Flags, KeyError, Search, hex, objects::certificates, public},
};
use pki::PublicKey;

/// Most private key objects of one key that are destroyed: a token with more of them is not as anybody left it.
const COPIES_MAX: usize = 16;

/// A key in a token that is about to be destroyed, with its objects.
#[derive(Debug)]
pub struct Retirement<'a> {
    session: &'a Session,
    key: PublicKey,
    found: CaKey,
    public: Vec<ObjectHandle>,
    certificates: Vec<ObjectHandle>,
}

/// The objects of a key that are destroyed with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retired {
    /// SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal.
    pub key_sha256: String,
    /// The private key objects: CKA_ID and CKA_LABEL.
    pub private_keys: Vec<String>,
    /// The attributes of the first of them.
    pub attributes: Flags,
    /// Number of public key objects.
    pub public_keys: usize,
    /// Number of certificates.
    pub certificates: usize,
}

/// A key was not destroyed, or not as a whole.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// A call failed; objects that were destroyed before it stay destroyed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The key is not in the token, or cannot be looked up.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The token still signs with the key.
    #[error(
        "the token still signs with the key after {destroyed} private key objects were destroyed; destroy the rest with \
         the vendor's tool"
    )]
    StillThere {
        /// Number of private key objects that were destroyed.
        destroyed: usize,
    },
}

/// The public key with a SHA-256 of its SubjectPublicKeyInfo (hexadecimal, lower case) among the token's public key objects
/// and certificates. `None` if the token holds neither.
///
/// # Errors
/// If a call fails.
pub fn public_key(session: &Session, key_sha256: &str) -> Result<Option<PublicKey>, RetireError> {
    let is_named = |key: &PublicKey| hex(&key.fingerprint()) == key_sha256;
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Token(true)];
    let found = call(Function::FindObjects, || session.find_objects(&template));
    for object in found.map_err(|error| failed("look for public keys", error.into()))? {
        let read = public::read(session, object).map_err(|source| failed("read a public key", source))?;
        if let Some(key) = read.ok().filter(is_named) {
            return Ok(Some(key));
        }
    }
    let stored = certificates(session).map_err(|source| failed("look for certificates", source))?;
    Ok(stored.iter().filter_map(|(_, _, der)| public::of_certificate(der)).find(is_named))
}

impl<'a> Retirement<'a> {
    /// Finds a key by a signature that verifies with it, and its objects. The session is a read-write one, logged in.
    ///
    /// # Errors
    /// If the key is not in the token, or a call fails.
    pub fn find(session: &'a Session, key: &PublicKey) -> Result<Self, RetireError> {
        let found = Search::default().find_all(session, key)?;
        let mut public = Vec::new();
        for object in public::all(session, key).map_err(|source| failed("look for the public key", source))? {
            let read = public::read(session, object).map_err(|source| failed("read a public key", source))?;
            public.extend((read.ok().as_ref() == Some(key)).then_some(object));
        }
        let stored = certificates(session).map_err(|source| failed("look for certificates", source))?;
        let of_key = stored.into_iter().filter(|(_, _, der)| public::of_certificate(der).as_ref() == Some(key));
        let certificates = of_key.map(|(object, _, _)| object).collect();
        Ok(Self { session, key: key.clone(), found, public, certificates })
    }

    /// What would be destroyed.
    #[must_use]
    pub fn preview(&self) -> Retired {
        let locators = std::iter::once(&self.found.locator).chain(&self.found.copies);
        Retired {
            key_sha256: hex(&self.key.fingerprint()),
            private_keys: locators.map(ToString::to_string).collect(),
            attributes: self.found.flags,
            public_keys: self.public.len(),
            certificates: self.certificates.len(),
        }
    }

    /// Destroys the objects (C_DestroyObject) until the token does not sign with the key any more.
    ///
    /// # Errors
    /// If a call fails, or the token still signs with the key.
    pub fn destroy(self) -> Result<Retired, RetireError> {
        let retired = self.preview();
        let destroy =
            |object, step| self.session.destroy_object(object).map_err(|error| failed(step, Pkcs11Error::from(error)));
        let mut next = self.found.handle;
        let mut destroyed = 0;
        loop {
            destroy(next, "destroy the private key")?;
            destroyed += 1;
            // Each copy is proven by a signature of its own before it is destroyed.
            match Search::default().find_all(self.session, &self.key) {
                Err(KeyError::NoneSigns { .. } | KeyError::NotFound(_)) => break,
                Err(error) => return Err(error.into()),
                Ok(_) if destroyed == COPIES_MAX => return Err(RetireError::StillThere { destroyed }),
                Ok(copy) => next = copy.handle,
            }
        }
        for object in self.public {
            destroy(object, "destroy the public key")?;
        }
        for object in self.certificates {
            destroy(object, "destroy the certificate")?;
        }
        Ok(retired)
    }
}

fn failed(step: &'static str, source: Pkcs11Error) -> RetireError {
    CallError { step, source }.into()
}
