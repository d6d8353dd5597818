//! The receipt of an import: what went in, how, and what the token was shown to refuse.

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

/// What was imported, when, how, and what was proven of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// When, in UTC (RFC 3339).
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
    /// How the private key came in.
    pub private_key: How,
    /// What became of the public key object.
    pub public_key: Placed,
    /// What became of the certificate object.
    pub certificate: Placed,
    /// Attributes of the private key that the token did not accept and chose itself.
    pub omitted_attributes: Vec<String>,
    /// What the key allows and the operator has accepted.
    pub accepted_weaknesses: Accepted,
    /// The private key's attributes as read back. CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE are false
    /// or absent: the key was outside a token before, and the token says so.
    pub attributes: Flags,
    /// Whether the token took CKA_ALLOWED_MECHANISMS; none for a key that was there already.
    pub restricted_to_mechanism: Option<bool>,
    /// The answer to the attempt to read the private value; there is no report if it could be read.
    pub read_attempt: &'static str,
    /// The attempt to wrap the private key out of the token.
    pub wrap_attempt: WrapAttempt,
    /// The log's and the probes' keys.
    pub service_keys: ServiceKeys,
    /// Leftovers of an interrupted import that were found and cleared.
    pub cleared: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// How a private key came into the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum How {
    /// It was there already and was not touched.
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

/// What the token answered to the attempt to wrap the key out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum WrapAttempt {
    /// Not tried, since the token cannot wrap.
    NotTried {
        /// Why.
        reason: String,
    },
    /// The key was wrapped, which the operator has accepted.
    Accepted,
    /// Refused, as it must be.
    Refused {
        /// The token's answer.
        answer: String,
        /// Whether an extractable twin of the key was wrapped by the same means, so that the refusal means something.
        control: Control,
    },
}

/// The control beside a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "twin", rename_all = "snake_case")]
pub enum Control {
    /// The twin could not be made or wrapped: the refusal proves little.
    Failed {
        /// The token's answer.
        answer: String,
    },
    /// The twin was wrapped.
    Wrapped,
}

/// The staged private key's story, for the report.
pub(super) fn how(staged: Option<&Staged>) -> How {
    staged.map_or(How::AlreadyThere, |staged| staged.how.clone())
}

/// The time of day as RFC 3339 has it.
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

/// Public objects of other keys' imports that were interrupted, to be told.
pub(super) fn other_interruptions(session: &Session, key: &PublicKey) -> Vec<String> {
    super::marker::others(session, key)
        .into_iter()
        .map(|id| {
            format!("an import of another key (CKA_ID {id}) was interrupted or is under way; import that key again to finish it")
        })
        .collect()
}
