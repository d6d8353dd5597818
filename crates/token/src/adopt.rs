//! Takes a key into service that is in the token already, made by any program: proves it by a signature, judges its
//! attributes, and stores with it what the token allows: certificate and public key object, log key and canary.
//!
//! For `adopt`, and for `install`, which brings the certificate of a key that `generate` made.

use cryptoki::session::Session;
use serde::Serialize;

use super::{
    CallError, Pkcs11Error, Token,
    generate::{GenerateError, ServiceKey, ServiceKeys, call, finish, service},
    key::{
        Accepted, CaKey, Flags, FoundBy, Hints, Locator, Search, Weakness, fit, hex,
        objects::{Made, Placed, place_certificate, place_public},
        proof::{self, ProofError},
        template::{Certificate, Name},
    },
};
use pki::PublicKey;

/// What the operator says about the key.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// Where the key is looked for first.
    pub hints: Hints,
    /// The weaknesses that are accepted.
    pub accepted: Accepted,
    /// Where the key comes from.
    pub origin: Origin,
}

/// Where a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Origin {
    /// `generate` made it, and judged it then.
    #[serde(rename = "generated in the token")]
    Generated,
    /// Every weakness of it must be accepted.
    #[serde(rename = "made or imported by other tools")]
    OtherTools,
}

/// A key that was taken into service.
#[derive(Clone, Debug, Serialize)]
pub struct Adopted {
    /// Where the key comes from.
    pub origin: Origin,
    /// CKA_LABEL of the private key.
    pub label: String,
    /// CKA_ID of the private key, hexadecimal.
    pub id: String,
    /// How it was found.
    pub found_by: FoundBy,
    /// Further private key objects of the same key.
    pub copies: Vec<Locator>,
    /// The private key's attributes.
    pub attributes: Flags,
    /// What the key allows and the operator has accepted.
    pub accepted_weaknesses: Accepted,
    /// The answer to the attempt to read the private value.
    pub read_attempt: String,
    /// The certificate object.
    pub certificate: Placed,
    /// The public key object.
    pub public_key: Placed,
    /// The log's and the probes' keys.
    pub service_keys: ServiceKeys,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Adopted {
    /// What does not work without the keys that the token cannot have.
    #[must_use]
    pub fn disabled(&self) -> Vec<String> {
        self.service_keys.disabled()
    }
}

/// A session, logged in, and whether objects can be created in it.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The session.
    pub session: &'a Session,
    /// Why it is read-only; `None` for a read-write session.
    pub read_only: Option<&'a str>,
}

/// Takes a key into service.
///
/// # Errors
/// When the certificate is not the key's, no private key signs as it, its weaknesses are not accepted, or the token
/// fails; then everything that was made is removed again.
pub fn run(
    token: &Token,
    access: Access<'_>,
    key: &PublicKey,
    certificate: &[u8],
    adoption: &Adoption,
) -> Result<Adopted, GenerateError> {
    let session = access.session;
    let certificate = Certificate::new(certificate, key)?;
    let found = Search::new(adoption.hints.clone()).find_all(session, key)?;
    let (weaknesses, read_attempt) = judge(session, &found, key, adoption)?;
    let mut notes: Vec<String> =
        found.copies.iter().map(|copy| format!("the token holds a copy of the key, with {copy}")).collect();
    for attribute in proof::surplus(&found.flags, true) {
        notes.push(format!("the key allows more than it needs: {attribute}"));
    }
    let (public_key, placed, service_keys) = match access.read_only {
        Some(reason) => {
            notes.push(format!("nothing was stored in the token: {reason}"));
            let unavailable = || ServiceKey::Unavailable { reason: reason.to_owned() };
            let service_keys = ServiceKeys { log: unavailable(), canary: unavailable(), cleared: Vec::new() };
            (Placed::NotStored, Placed::NotStored, service_keys)
        }
        None => {
            let (public_key, placed) = store(session, key, &certificate, &found, &mut notes)?;
            let mechanisms = token.mechanisms().map_err(|source| call("list its mechanisms", source))?;
            let mut made = Made::new(session);
            let service_keys = service::ensure(session, &mechanisms, &mut made);
            made.keep();
            (public_key, placed, service_keys)
        }
    };
    Ok(Adopted {
        origin: adoption.origin,
        label: found.locator.label.clone(),
        id: hex(&found.locator.id),
        found_by: found.by,
        copies: found.copies,
        attributes: found.flags,
        accepted_weaknesses: adoption.accepted.of(&weaknesses),
        read_attempt,
        certificate: placed,
        public_key,
        service_keys,
        notes,
    })
}

/// The key's weaknesses, all of them accepted, and the answer to the attempt to read its value.
fn judge(
    session: &Session,
    found: &CaKey,
    key: &PublicKey,
    adoption: &Adoption,
) -> Result<(Vec<Weakness>, String), GenerateError> {
    let mut weaknesses = found.flags.weaknesses();
    let read_attempt = match proof::unreadable(session, found.handle, key.algorithm()) {
        Ok(answer) => answer.to_owned(),
        Err(ProofError::Readable(attribute)) => {
            if !weaknesses.contains(&Weakness::NotSensitive) {
                weaknesses.push(Weakness::NotSensitive);
            }
            format!("{attribute} was revealed")
        }
        Err(ProofError::Call(error)) => error.to_string(),
        Err(error) => return Err(error.into()),
    };
    match adoption.origin {
        Origin::Generated => fit(&found.flags, &found.locator, &adoption.accepted)?,
        Origin::OtherTools => {
            let missing = adoption.accepted.missing(&weaknesses);
            if !missing.is_empty() {
                return Err(GenerateError::Weak { locator: found.locator.clone(), weaknesses: missing });
            }
        }
    }
    Ok((weaknesses, read_attempt))
}

/// Stores the public objects, as far as the token takes them.
fn store(
    session: &Session,
    key: &PublicKey,
    certificate: &Certificate,
    found: &CaKey,
    notes: &mut Vec<String>,
) -> Result<(Placed, Placed), GenerateError> {
    let own_id = key.key_id();
    let id = if found.locator.id.is_empty() { &own_id[..] } else { &found.locator.id };
    let name = Name { id, label: &found.locator.label };
    let mut made = Made::new(session);
    let outcome = Placed::or_not(place_public(session, key, &name, &mut made), Placed::NotStored, "public key", notes)
        .and_then(|public_key| {
            let placed = place_certificate(session, certificate, &name, &mut made);
            Ok((public_key, Placed::or_not(placed, (Placed::NotStored, Vec::new()), "certificate", notes)?))
        })
        .map_err(|source| call("store the certificate", source));
    let (public_key, (placed, old)) = finish(made, outcome)?;
    for object in old {
        let removed = session.destroy_object(object).map_err(Pkcs11Error::from);
        removed.map_err(|source| CallError { step: "remove the certificate that was replaced", source })?;
    }
    Ok((public_key, placed))
}

/// The list of weaknesses that nobody has accepted, for an error.
pub(crate) fn listed(weaknesses: &[Weakness]) -> String {
    let words: Vec<_> = weaknesses.iter().map(|weakness| weakness.in_words()).collect();
    words.join(", ")
}

/// The flags that accept weaknesses.
pub(crate) fn flags(weaknesses: &[Weakness]) -> String {
    let flags: Vec<_> = weaknesses.iter().map(|weakness| weakness.flag()).collect();
    flags.join(" ")
}
