//! What a host tells about itself. Rare, so JSON: fields may be added without a new protocol version.

use serde::{Deserialize, Serialize};

use super::{Kind, ProtocolError};
use token::calls::{FunctionCalls, FunctionErrors};

/// A host's state and what it has signed since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The protocol version that the host speaks.
    pub version: u16,
    /// The token's label.
    pub token: String,
    /// The token's serial number.
    pub serial: String,
    /// The token's model.
    pub model: String,
    /// The host's process id, as the host sees it.
    pub pid: u32,
    /// Sessions that are open and used.
    pub sessions: u32,
    /// SHA-256 of the SubjectPublicKeyInfo of the CA keys that were found, in hexadecimal digits.
    pub ca_keys: Vec<String>,
    /// DER SubjectPublicKeyInfo of the log key; empty when the token holds none.
    pub log_key: Vec<u8>,
    /// DER SubjectPublicKeyInfo of the canary key; empty when the token holds none.
    pub canary_key: Vec<u8>,
    /// What each key has signed.
    pub signed: Vec<KeyCount>,
    /// Messages that the host's own rules refused.
    pub refused: u64,
    /// Messages whose deadline had passed, or that were cancelled, before the token was asked.
    pub expired: u64,
    /// Signatures that the token failed to make.
    pub failed: u64,
    /// Sessions that were opened again after a failure.
    pub sessions_reopened: u64,
    /// Logins, the first one included.
    pub logins: u64,
    /// Whether it takes [`Request::Cancel`](super::Request::Cancel).
    pub cancels: bool,
    /// A number that each host's process makes up for itself: what it counts began with it.
    pub instance: u64,
    /// How long its calls of PKCS#11 functions took.
    pub calls: Vec<FunctionCalls>,
    /// Which of them failed.
    pub call_errors: Vec<FunctionErrors>,
}

/// How many messages of one kind a key has signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCount {
    /// SHA-256 of the key's SubjectPublicKeyInfo in hexadecimal digits.
    pub key: String,
    /// What was signed.
    pub kind: Kind,
    /// How often.
    pub count: u64,
}

impl Status {
    pub(super) fn to_json(&self) -> Vec<u8> {
        // A struct of texts and numbers always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, ProtocolError> {
        serde_json::from_slice(bytes).map_err(|_| ProtocolError::Malformed("status"))
    }
}
