//! The two helper keys: the log's (Ed25519), which signs checkpoints, and the canary (P-256), which signs
//! probes. Made once a token, found by their labels. They are optional: where a token cannot have one, checkpoints are
//! off, or probes ask for the session and the CA's key instead, and nothing else changes.

use base64::{Engine, engine::general_purpose::STANDARD};
use cryptoki::{mechanism::MechanismType, object::ObjectClass, session::Session};
use serde::Serialize;

use super::{GenerateError, call, check_mechanisms, finish, labelled, pair};
use crate::key::{
    CANARY_KEY_LABEL, Found, KeyError, LOG_KEY_LABEL, Weakness, find_by_label, hex, objects::Made, proof, public,
};
use pki::KeyAlgorithm;
use process::error::chain;

/// Both keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceKeys {
    /// The key that signs the log's checkpoints.
    pub log: ServiceKey,
    /// The key that signs probes.
    pub canary: ServiceKey,
    /// Leftovers that were removed: public keys without a private key.
    pub cleared: Vec<String>,
}

impl ServiceKeys {
    /// What does not work without the keys that there are not.
    #[must_use]
    pub fn disabled(&self) -> Vec<String> {
        let mut disabled = Vec::new();
        if let ServiceKey::Unavailable { reason } = &self.log {
            disabled.push(format!(
                "this token has no log key, so that checkpoints of the issuance log are off unless another token signs \
                 them: {reason}"
            ));
        }
        if let ServiceKey::Unavailable { reason } = &self.canary {
            disabled.push(format!(
                "this token has no canary key, so that an idle token is probed by its session and the CA's key only: \
                 {reason}"
            ));
        }
        disabled
    }

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

/// State of one of the keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ServiceKey {
    /// Generated now.
    Made(Verifier),
    /// Existed already.
    Present(Verifier),
    /// The token cannot have it.
    Unavailable {
        /// The reason.
        reason: String,
    },
}

/// Data for verifying the key's signatures.
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
    fn new(session: &Session, label: &str, found: &Found) -> Self {
        let key = &found.public_key;
        Self {
            label: label.to_owned(),
            id: hex(&public::id_of(session, found.handle).ok().flatten().unwrap_or_default()),
            spki: STANDARD.encode(key.spki_der()),
            raw: STANDARD.encode(key.subject_public_key()),
            key_sha256: hex(&key.fingerprint()),
        }
    }
}

impl ServiceKey {
    /// The verifier, if there is a key.
    #[must_use]
    pub fn verifier(&self) -> Option<&Verifier> {
        match self {
            Self::Made(verifier) | Self::Present(verifier) => Some(verifier),
            Self::Unavailable { .. } => None,
        }
    }
}

/// Makes the keys that are missing, and proves those that are there. A key that cannot be had is no error.
pub(crate) fn ensure<'a>(session: &'a Session, mechanisms: &[MechanismType], made: &mut Made<'a>) -> ServiceKeys {
    let mut cleared = Vec::new();
    let mut one = |algorithm, label| {
        make(session, mechanisms, algorithm, label, made, &mut cleared)
            .unwrap_or_else(|error| ServiceKey::Unavailable { reason: chain(&error) })
    };
    let log = one(KeyAlgorithm::Ed25519, LOG_KEY_LABEL);
    let canary = one(KeyAlgorithm::P256, CANARY_KEY_LABEL);
    ServiceKeys { log, canary, cleared }
}

/// Makes one of the keys if it is missing, or else proves it.
pub(crate) fn make<'a>(
    session: &'a Session,
    mechanisms: &[MechanismType],
    algorithm: KeyAlgorithm,
    label: &str,
    made: &mut Made<'a>,
    cleared: &mut Vec<String>,
) -> Result<ServiceKey, GenerateError> {
    match find_by_label(session, label) {
        Ok(found) => {
            if found.public_key.algorithm() != algorithm {
                return Err(GenerateError::LabelTaken(label.to_owned()));
            }
            proof::signs(session, found.handle, &found.public_key)?;
            return Ok(ServiceKey::Present(Verifier::new(session, label, &found)));
        }
        Err(KeyError::NotFound(_)) => clear_orphans(session, label, cleared)?,
        Err(error) => return Err(error.into()),
    }
    check_mechanisms(algorithm, mechanisms)?;
    // Nothing secret depends on these keys: that one may decrypt as well is of no use to anybody.
    let accepted = [Weakness::Decrypt, Weakness::Derive, Weakness::Unwrap].into_iter().collect();
    let mut pair_made = Made::new(session);
    // Two imports at once may both have made one; then nobody could tell which it is.
    let outcome = pair(session, mechanisms, algorithm, label, &accepted, &mut pair_made)
        .and_then(|_| Ok(find_by_label(session, label)?));
    let found = match outcome {
        Ok(found) => found,
        Err(error) => return finish(pair_made, Err(error)),
    };
    made.absorb(pair_made);
    Ok(ServiceKey::Made(Verifier::new(session, label, &found)))
}

/// An interrupted run leaves a public key with our label but without a private key, which is written last.
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
