//! From a refusal to a gRPC status: one exhaustive match for each kind.
//!
//! The code decides whether Istio's agent tries again (`pkg/security/retry.go`): Canceled, DeadlineExceeded,
//! ResourceExhausted, Aborted, Internal and Unavailable are tried again, all others are not. So what time can mend
//! gets one of these, and what only a person can mend never does. The client reads a short fixed text and the id of
//! its request; the log has the rest under that id.

use tonic::{Code, Status};

use crate::{
    auth::AuthError,
    issue::{IssueError, limits::Limited},
    log::LogError,
    pki::{tbs::TbsError, verify::VerifyError},
    policy::Denied,
    signer::SignError,
    telemetry::RequestId,
};

/// Why the service answers with an error.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Nobody is known.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The deadline passed before there was an answer.
    #[error("the deadline passed")]
    Deadline,
    /// The path gave no certificate.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The request's metadata cannot be understood.
    #[error("the metadata's {field} {reason}")]
    Metadata {
        /// The key of the Struct.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// As many requests are under way as may be.
    #[error("too many requests are under way")]
    Overload,
}

/// A code and what the client may read.
pub type Answer = (Code, &'static str);
