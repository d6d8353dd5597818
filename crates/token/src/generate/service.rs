//! The two keys beside the CA's: the log's (Ed25519), which signs checkpoints, and the canary (P-256), which signs
//! probes. Made once a token, found by their labels. Where the token has no Ed25519 there is no log key, and
//! checkpoints are off.

use base64::{Engine, engine::general_purpose::STANDARD};
use cryptoki::{mechanism::MechanismType, object::ObjectClass, session::Session};
use serde::Serialize;

use super::{CallError, GenerateError, call, check_mechanisms, labelled, pair};
use crate::key::{
    CANARY_KEY_LABEL, KeyError, LOG_KEY_LABEL, find_by_label, hex,
    objects::Made,
    proof::{self, ProofError},
    public,
};
use pki::{KeyAlgorithm, PublicKey};

/// Both keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceKeys {
    /// The key that signs the log's checkpoints.
    pub log: ServiceKey,
    /// The key that probes sign with.
    pub canary: ServiceKey,
    /// What was found and cleared: public halves whose private half never came to be.
    pub cleared: Vec<String>,
}

impl ServiceKeys {
    /// The raw public half of the log key, where the token has one.
    #[must_use]
    pub fn log_public_key(&self) -> Option<[u8; 32]> {
        use base64::{Engine, prelude::BASE64_STANDARD};
        match &self.log {
            ServiceKey::Made(key) | ServiceKey::Present(key) => BASE64_STANDARD.decode(&key.raw).ok()?.try_into().ok(),
            ServiceKey::Unavailable { .. } => None,
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ServiceKey {
    /// Made now.
    Made(Verifier),
    /// There already.
    Present(Verifier),
    /// The token cannot have it.
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// What is needed to verify the key's signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verifier {
    /// CKA_LABEL.
    pub label: String,
    /// CKA_ID, hexadecimal.
    pub id: String,
    /// DER SubjectPublicKeyInfo, base64.
    pub spki: String,
    /// The raw public key, base64; 32 bytes for Ed25519, the key of a signed-note verifier.
    pub raw: String,
    /// SHA-256 of the SubjectPublicKeyInfo, hexadecimal.
    pub key_sha256: String,
}

impl Verifier {
    fn new(label: &str, key: &PublicKey) -> Self {
        Self {
            label: label.to_owned(),
            id: hex(&key.key_id()),
            spki: STANDARD.encode(key.spki_der()),
            raw: STANDARD.encode(key.subject_public_key()),
            key_sha256: hex(&key.fingerprint()),
        }
    }
}

impl ServiceKey {
    /// The key's verifier, if there is a key.
    #[must_use]
    pub fn verifier(&self) -> Option<&Verifier> {
        match self {
            Self::Made(verifier) | Self::Present(verifier) => Some(verifier),
            Self::Unavailable { .. } => None,
        }
    }
}

/// Makes the keys that are missing, and proves those that are there.
pub(crate) fn ensure(
    session: &Session,
    mechanisms: &[MechanismType],
    made: &mut Made<'_>,
) -> Result<ServiceKeys, GenerateError> {
    let mut cleared = Vec::new();
    let log = one(session, mechanisms, KeyAlgorithm::Ed25519, LOG_KEY_LABEL, made, &mut cleared)?;
    let canary = one(session, mechanisms, KeyAlgorithm::P256, CANARY_KEY_LABEL, made, &mut cleared)?;
    Ok(ServiceKeys { log, canary, cleared })
}

fn one(
    session: &Session,
    mechanisms: &[MechanismType],
    algorithm: KeyAlgorithm,
    label: &str,
    made: &mut Made<'_>,
    cleared: &mut Vec<String>,
) -> Result<ServiceKey, GenerateError> {
    match find_by_label(session, label) {
        Ok(found) => {
            if found.public_key.algorithm() != algorithm {
                return Err(GenerateError::LabelTaken(label.to_owned()));
            }
            proof::signs(session, found.handle, &found.public_key)?;
            return Ok(ServiceKey::Present(Verifier::new(label, &found.public_key)));
        }
        Err(KeyError::NotFound(_)) => clear_orphans(session, label, cleared)?,
        Err(error) => return Err(error.into()),
    }
    let outcome =
        check_mechanisms(algorithm, mechanisms).and_then(|()| pair(session, mechanisms, algorithm, label, made));
    match outcome {
        Ok((key, _flags)) => {
            // Two imports at once may both have made one; then nobody could tell which it is.
            find_by_label(session, label)?;
            Ok(ServiceKey::Made(Verifier::new(label, &key)))
        }
        Err(error) if error.is_inability() && algorithm == KeyAlgorithm::Ed25519 => {
            Ok(ServiceKey::Unavailable { reason: reason(&error) })
        }
        Err(error) => Err(error),
    }
}

/// A public half of our label without a private half is what an interrupted run left: the private half comes last.
fn clear_orphans(session: &Session, label: &str, cleared: &mut Vec<String>) -> Result<(), GenerateError> {
    for object in labelled(session, ObjectClass::PUBLIC_KEY, label)? {
        let id = public::id_of(session, object).map_err(|source| call("tell a public key's CKA_ID", source))?;
        session.destroy_object(object).map_err(|e| call("clear a leftover public key", e.into()))?;
        let id = hex(&id.unwrap_or_default());
        tracing::warn!(label, id, "cleared the public half that an interrupted run left");
        cleared.push(format!("public key object `{label}` (CKA_ID {id}), left by an interrupted run"));
    }
    Ok(())
}

fn reason(error: &GenerateError) -> String {
    match error {
        GenerateError::Call(CallError { source, .. }) => format!("{error}: {source}"),
        GenerateError::Certificate(_)
        | GenerateError::Key(_)
        | GenerateError::LabelTaken(_)
        | GenerateError::Mechanism { .. }
        | GenerateError::NotUndone { .. }
        | GenerateError::Proof(ProofError::Call(_) | ProofError::Sign(_))
        | GenerateError::Proof(_)
        | GenerateError::PublicHalf(_) => error.to_string(),
    }
}
