//! The issuance log: what is about to be signed is durable before the token sees it.

use std::{sync::Arc, time::SystemTime};

use crate::{auth::Caller, pki::Tbs, policy::Grant};

/// What one line of the log says, before it has an index.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The request's id, as in the logs and in the client's error.
    pub request_id: String,
    /// When the request was decided on.
    pub time: SystemTime,
    /// Who asked; the operator's ceremonies too have a caller.
    pub caller: Caller,
    /// What was granted; none for a ceremony (a self-signed root), which policy does not decide on.
    pub grant: Option<Grant>,
    /// What is about to be signed.
    pub tbs: Arc<Tbs>,
}

/// A value whose intent is durable in the log. Only the log makes one.
#[derive(Clone, Debug)]
pub struct Recorded<T> {
    value: T,
    index: u64,
}

impl<T> Recorded<T> {
    /// What was recorded.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The line's index in the log, counted from 0.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }
}

/// What became of an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No certificate was released; the reason in words that hold no secret.
    Failed {
        /// Why.
        reason: String,
    },
    /// Signed, verified and released.
    Issued {
        /// The token that signed.
        token: String,
    },
}

/// Why an intent could not be made durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The disk refused; the request fails and may be tried again.
    #[error("the issuance log cannot be written: {0}")]
    Unavailable(String),
    /// The log is closed: the daemon is ending.
    #[error("the issuance log is closed")]
    Closed,
}

/// A handle on the log's writer; clones share it.
#[derive(Clone, Debug)]
pub struct Log {}

impl Log {
    /// Makes an intent durable; concurrent callers share a flush.
    ///
    /// # Errors
    /// When the line could not be made durable; it then is not signed.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn record(&self, _intent: Intent) -> Result<Recorded<Arc<Tbs>>, LogError> {
        todo!()
    }

    /// Notes what became of an intent; not waited for.
    pub fn outcome(&self, _index: u64, _outcome: Outcome) {
        todo!()
    }
}
