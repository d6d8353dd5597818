//! The token as the pipeline sees it: it signs what the log has recorded, or says why not.

use std::{
    fmt::{self, Debug},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use audit_log::Recorded;
use pki::Tbs;

/// A boxed future, since [`Signer`] is used as a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The queue priority of a request; never chosen by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Workloads. The queue ages, so they never starve.
    #[default]
    Normal,
    /// istiod, gateways and the daemon itself, as configured.
    High,
}

/// How a signature is wanted.
#[derive(Clone, Debug)]
pub struct Context {
    /// The request's id, for the host's log.
    pub request_id: Arc<str>,
    /// When nobody waits for it any more.
    pub deadline: Instant,
    /// Its queue.
    pub priority: Priority,
    /// Tokens by name that have answered this request wrongly and are not asked again.
    pub avoid: Vec<Arc<str>>,
}

/// A signature as the token gave it, not yet verified.
#[derive(Clone)]
pub struct Signed {
    /// The content of signatureValue: RSA as it is, ECDSA as DER ECDSA-Sig-Value.
    pub signature: Vec<u8>,
    /// Who made it, for the verdict.
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
    /// The generation of its host.
    pub host: u64,
    /// The session within the host.
    pub session: u32,
}

/// Why there is no signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The deadline passed in a queue or at the token.
    #[error("the deadline passed before the token had signed")]
    Deadline,
    /// The token host signs no further certificate for now.
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

/// What signs certificates. Owned by `issue` alone.
pub trait Signer: Debug + Send + Sync {
    /// Has a recorded certificate signed with its issuer's key.
    fn sign<'a>(
        &'a self,
        tbs: &'a Recorded<Arc<Tbs>>,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Signed, SignError>>;

    /// Tells whether a signature verified with the CA certificate's key: a wrong one costs its session, and
    /// repeated ones its token; a right one closes a half-open breaker.
    fn verdict(&self, source: &Source, verified: bool);
}
