//! A host's status report.

use super::{Kind, ProtocolError, proto};
use token::calls::{FunctionCalls, FunctionErrors};

/// A host's state and what it has signed since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The protocol version that the host speaks.
    pub version: u32,
    /// The token's label.
    pub token: String,
    /// The token's serial number.
    pub serial: String,
    /// The token's model.
    pub model: String,
    /// The host's process ID in its own namespace.
    pub pid: u32,
    /// Number of open sessions.
    pub sessions: u32,
    /// SHA-256 of the SubjectPublicKeyInfo of the CA keys that were found, in hexadecimal.
    pub ca_keys: Vec<String>,
    /// DER SubjectPublicKeyInfo of the log key; empty if the token has none.
    pub log_key: Vec<u8>,
    /// DER SubjectPublicKeyInfo of the canary key; empty if the token has none.
    pub canary_key: Vec<u8>,
    /// Number of signatures by key.
    pub signed: Vec<KeyCount>,
    /// Messages that the host's own limits forbade.
    pub refused: u64,
    /// Messages whose deadline had passed, or that were cancelled, before the token was called.
    pub expired: u64,
    /// Signatures that failed.
    pub failed: u64,
    /// Sessions reopened after a failure.
    pub sessions_reopened: u64,
    /// Logins, including the first one.
    pub logins: u64,
    /// Whether it supports [`Request::Cancel`](super::Request::Cancel).
    pub cancels: bool,
    /// A number unique to the host's process; its counters started with it.
    pub instance: u64,
    /// Durations of its PKCS#11 calls.
    pub calls: Vec<FunctionCalls>,
    /// Failures of its PKCS#11 calls.
    pub call_errors: Vec<FunctionErrors>,
}

/// Number of messages of one kind signed by a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCount {
    /// SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal.
    pub key: String,
    /// Kind of the messages.
    pub kind: Kind,
    /// Number of signatures.
    pub count: u64,
}

impl Status {
    pub(super) fn to_proto(&self) -> proto::Status {
        proto::Status {
            version: self.version,
            token: self.token.clone(),
            serial: self.serial.clone(),
            model: self.model.clone(),
            pid: self.pid,
            sessions: self.sessions,
            ca_keys: self.ca_keys.clone(),
            log_key: self.log_key.clone(),
            canary_key: self.canary_key.clone(),
            signed: self.signed.iter().map(KeyCount::to_proto).collect(),
            refused: self.refused,
            expired: self.expired,
            failed: self.failed,
            sessions_reopened: self.sessions_reopened,
            logins: self.logins,
            cancels: self.cancels,
            instance: self.instance,
            calls: self.calls.iter().map(calls_to_proto).collect(),
            call_errors: self.call_errors.iter().map(errors_to_proto).collect(),
        }
    }

    pub(super) fn from_proto(status: proto::Status) -> Result<Self, ProtocolError> {
        Ok(Self {
            version: status.version,
            token: status.token,
            serial: status.serial,
            model: status.model,
            pid: status.pid,
            sessions: status.sessions,
            ca_keys: status.ca_keys,
            log_key: status.log_key,
            canary_key: status.canary_key,
            signed: status.signed.into_iter().map(KeyCount::from_proto).collect::<Result<_, _>>()?,
            refused: status.refused,
            expired: status.expired,
            failed: status.failed,
            sessions_reopened: status.sessions_reopened,
            logins: status.logins,
            cancels: status.cancels,
            instance: status.instance,
            calls: status.calls.into_iter().map(calls_from_proto).collect(),
            call_errors: status.call_errors.into_iter().map(errors_from_proto).collect(),
        })
    }
}

impl KeyCount {
    fn to_proto(&self) -> proto::KeyCount {
        proto::KeyCount { key: self.key.clone(), kind: proto::Kind::from(self.kind).into(), count: self.count }
    }

    fn from_proto(count: proto::KeyCount) -> Result<Self, ProtocolError> {
        Ok(Self { kind: count.kind().try_into()?, key: count.key, count: count.count })
    }
}

fn calls_to_proto(calls: &FunctionCalls) -> proto::FunctionCalls {
    let FunctionCalls { function, buckets, nanoseconds } = calls.clone();
    proto::FunctionCalls { function, buckets, nanoseconds }
}

fn calls_from_proto(calls: proto::FunctionCalls) -> FunctionCalls {
    let proto::FunctionCalls { function, buckets, nanoseconds } = calls;
    FunctionCalls { function, buckets, nanoseconds }
}

fn errors_to_proto(errors: &FunctionErrors) -> proto::FunctionErrors {
    let FunctionErrors { function, code, count } = errors.clone();
    proto::FunctionErrors { function, code, count }
}

fn errors_from_proto(errors: proto::FunctionErrors) -> FunctionErrors {
    let proto::FunctionErrors { function, code, count } = errors;
    FunctionErrors { function, code, count }
}
