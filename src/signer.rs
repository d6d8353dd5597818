//! The pipeline's interface to the tokens, which sign what the log has recorded.

use std::{
    fmt::{self, Debug},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use audit_log::Recorded;
use pki::{CrlTbs, PublicKey, Tbs};

/// A boxed future, since [`Signer`] is used as a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the CA's key signs: only messages that the log has recorded. Clones share the message.
#[derive(Clone, Debug)]
pub enum ToBeSigned {
    /// A certificate.
    Certificate(Recorded<Arc<Tbs>>),
    /// A CRL.
    Crl(Recorded<Arc<CrlTbs>>),
}

impl ToBeSigned {
    /// The DER message.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        match self {
            Self::Certificate(recorded) => recorded.value().der(),
            Self::Crl(recorded) => recorded.value().der(),
        }
    }

    /// The key in the CA certificate.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        match self {
            Self::Certificate(recorded) => recorded.value().issuer().public_key(),
            Self::Crl(recorded) => recorded.value().issuer().public_key(),
        }
    }

    /// Index of the intent in the log.
    #[must_use]
    pub fn index(&self) -> u64 {
        match self {
            Self::Certificate(recorded) => recorded.index(),
            Self::Crl(recorded) => recorded.index(),
        }
    }
}

/// The queue priority of a request; never chosen by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Workloads. Waiting requests age, so they never starve.
    #[default]
    Normal,
    /// istiod, gateways and the daemon itself, as configured.
    High,
}

/// Parameters of a signing request.
#[derive(Clone, Debug)]
pub struct Context {
    /// The request ID, for the token host's log.
    pub request_id: Arc<str>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Priority in the queue.
    pub priority: Priority,
    /// Names of tokens that returned a wrong signature for this request and are not used again.
    pub avoid: Vec<Arc<str>>,
}

/// A signature as returned by the token, not yet verified.
#[derive(Clone)]
pub struct Signed {
    /// The content of signatureValue: RSA unchanged, ECDSA as DER ECDSA-Sig-Value.
    pub signature: Vec<u8>,
    /// The session that made it, for the verdict.
    pub source: Source,
}

impl Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The session that made a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The token's configured name.
    pub token: Arc<str>,
    /// Generation of its token host.
    pub host: u64,
    /// Session within the token host.
    pub session: u32,
}

/// No signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The deadline passed in a queue or in the token.
    #[error("the deadline passed before the token had signed")]
    Deadline,
    /// A limit of the token host on the number of certificates is reached.
    #[error("the token host signs no further certificate: {0}")]
    Limit(String),
    /// The queue is full.
    #[error("the token's queue is full")]
    QueueFull,
    /// The token host's own rules forbid this certificate.
    #[error("the token host refuses to sign: {0}")]
    Refused(String),
    /// No token can sign now.
    #[error("no token can sign: {0}")]
    Unavailable(String),
}

/// Signs certificates and CRLs. Owned by `issue` only.
pub trait Signer: Debug + Send + Sync {
    /// Signs a recorded message with its issuer's key.
    fn sign<'a>(&'a self, message: &'a ToBeSigned, context: &'a Context) -> BoxFuture<'a, Result<Signed, SignError>>;

    /// Reports whether a signature verified with the CA certificate's key: a wrong one costs the session, repeated ones
    /// the token; a correct one closes a half-open breaker.
    fn verdict(&self, source: &Source, verified: bool);
}
