//! The receipt of an import: what was imported, how, and what the token refused.

use cryptoki::session::Session;
use serde::Serialize;

use super::{
    Staged,
    wrap::{KeyWrap, Level, OaepHash},
};
use crate::{
    generate::ServiceKeys,
    key::{Accepted, Flags, objects::Placed},
    module::Info,
};
use pki::PublicKey;

/// What was imported, when and how, and the results of all checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Time of the import, in UTC (RFC 3339).
    pub at: String,
    /// The private key's type.
    pub algorithm: String,
    /// CKA_LABEL of the key's objects.
    pub label: String,
    /// CKA_ID of the key's objects, hexadecimal: SHA-1 of the public key's bits.
    pub id: String,
    /// SHA-256 of the SubjectPublicKeyInfo, hexadecimal.
    pub key_sha256: String,
    /// SHA-256 of the CA certificate, hexadecimal.
    pub certificate_sha256: String,
    /// The token.
    pub token: Info,
    /// How the private key was imported.
    pub private_key: How,
    /// What was done with the public key object.
    pub public_key: Placed,
    /// What was done with the certificate object.
    pub certificate: Placed,
    /// Attributes of the private key that the token did not accept and chose itself.
    pub omitted_attributes: Vec<String>,
    /// What the key allows and the operator has accepted.
    pub accepted_weaknesses: Accepted,
    /// The private key's attributes as read back. CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE are false
    /// or absent, since the key was outside a token before.
    pub attributes: Flags,
    /// Whether the token accepted CKA_ALLOWED_MECHANISMS; `None` for a key that existed already.
    pub restricted_to_mechanism: Option<bool>,
    /// The answer to the attempt to read the private value; there is no report if it could be read.
    pub read_attempt: &'static str,
    /// Result of the attempt to wrap the private key out of the token.
    pub wrap_attempt: WrapAttempt,
    /// The log key and the canary key.
    pub service_keys: ServiceKeys,
    /// Leftovers of an interrupted import that were removed.
    pub cleared: Vec<String>,
    /// Remarks for the operator.
    pub notes: Vec<String>,
}

/// How a private key was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum How {
    /// It existed already and was not modified.
    AlreadyThere,
    /// In the clear, by C_CreateObject.
    Clear,
    /// Wrapped under an AES-256 key.
    Wrapped {
        /// How strictly.
        level: Level,
        /// The hash of RSA-OAEP, if it was used.
        oaep_hash: Option<OaepHash>,
        /// The mechanism that unwrapped the private key.
        key_wrap: KeyWrap,
        /// Bits of the RSA pair, if there was one.
        pair_bits: Option<u32>,
    },
}

/// Result of the attempt to wrap the key out of the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum WrapAttempt {
    /// Not attempted, since the token cannot wrap.
    NotTried {
        /// The reason.
        reason: String,
    },
    /// The key was wrapped, which the operator has accepted.
    Accepted,
    /// Refused, as it must be.
    Refused {
        /// The token's error.
        answer: String,
        /// Whether an extractable copy of the key could be wrapped in the same way, without which the refusal proves
        /// little.
        control: Control,
    },
}

/// The control experiment for a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "twin", rename_all = "snake_case")]
pub enum Control {
    /// The copy could not be created or wrapped: the refusal proves little.
    Failed {
        /// The token's error.
        answer: String,
    },
    /// The copy was wrapped.
    Wrapped,
}

/// How the staged private key was imported.
pub(super) fn how(staged: Option<&Staged>) -> How {
    staged.map_or(How::AlreadyThere, |staged| staged.how.clone())
}

/// The current time (RFC 3339).
pub(super) fn now() -> String {
    der::DateTime::from_system_time(process::clock::now())
        .map_or_else(|_| "unknown".to_owned(), |time| time.to_string())
}

/// Notes on what is allowed beyond need.
pub(super) fn surplus_notes(flags: &Flags) -> Vec<String> {
    crate::key::proof::surplus(flags, true)
        .into_iter()
        .map(|name| format!("the key in the token allows more than it needs: {name}"))
        .collect()
}

/// Interrupted imports of other keys, to be reported.
pub(super) fn other_interruptions(session: &Session, key: &PublicKey) -> Vec<String> {
    super::marker::others(session, key)
        .into_iter()
        .map(|id| {
            format!("an import of another key (CKA_ID {id}) was interrupted or is under way; import that key again to finish it")
        })
        .collect()
}
