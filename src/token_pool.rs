//! The daemon's side of the token hosts: a [`Pool`] that has any number of tokens sign, and keeps each host alive.
//!
//! It implements [`Signer`] for `issue`. It never sees a PIN and never speaks PKCS#11. A request waits in one of two
//! bounded queues, goes to the token with the least work in flight, and comes back from a host that dies on the way.
//! What the hosts sign is not checked here: [`Signer::verdict`] tells whether it was right.

mod child;
mod counters;
mod health;
mod job;
mod link;
mod queue;
mod state;
mod supervisor;
mod token;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

pub use counters::{Counters, Snapshot};
pub use health::{Phase, PoolHealth, TokenHealth};
use job::{Job, Message};
use state::Shared;

use crate::signer::{BoxFuture, Class, Context, SignError, Signed, Signer, Source};
use ::token::call_metrics::Calls;
use audit_log::Recorded;
use pki::{Profile, PublicKey, Tbs};
use process::logging;
use token_host::{
    self,
    protocol::{Fingerprint, Kind},
};

/// Replaces this process by the token host's program. Returns only if that fails, with the reason.
#[must_use]
pub fn exec_host(arguments: &[OsString]) -> io::Error {
    child::exec(arguments)
}

/// How to reach a token's host.
#[derive(Clone, Debug)]
pub enum Link {
    /// The daemon starts it as its child, over a socket pair.
    Child {
        /// The host's settings.
        settings: Box<token_host::Settings>,
        /// The executable; `None` is the daemon's own.
        program: Option<PathBuf>,
        /// Variables added to the child's environment: where a vendor's module looks for its own configuration.
        environment: BTreeMap<String, String>,
    },
    /// Somebody else runs it; it listens on a Unix socket.
    Socket {
        /// The socket.
        path: PathBuf,
        /// The user who must be at the other end; `None` believes the socket's directory.
        uid: Option<u32>,
    },
}

/// One `[[token]]`.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// The name in logs, metrics and health.
    pub name: Arc<str>,
    /// How to reach its host.
    pub link: Link,
    /// How long one PKCS#11 call may take; a host that answers nothing for longer is replaced.
    pub call_timeout: Duration,
    /// How long a host is left without a word before it is asked whether it lives.
    pub keep_alive: Duration,
}

/// The pool's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tokens.
    pub tokens: Vec<TokenSettings>,
    /// How many requests may wait in each of the two queues.
    pub queue: usize,
    /// How long a request waits for a token to recover, within its deadline.
    pub recovery_wait: Duration,
    /// How the hosts that are started log.
    pub logging: logging::Settings,
}

impl Settings {
    /// The longest wait for recovery that DESIGN.md allows.
    pub const RECOVERY_WAIT: Duration = Duration::from_secs(2);
    /// Requests in each queue: ten thousand agents that connect at once find room.
    pub const QUEUE: usize = 16_384;

    /// Settings with the defaults for everything but the tokens.
    #[must_use]
    pub fn new(tokens: Vec<TokenSettings>) -> Self {
        Self { tokens, queue: Self::QUEUE, recovery_wait: Self::RECOVERY_WAIT, logging: logging::Settings::default() }
    }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Not one token.
    #[error("no token is configured; add a [[token]] to the configuration")]
    NoToken,
    /// Two tokens of one name.
    #[error("two tokens are named {0}; give each [[token]] a name of its own")]
    SameName(Arc<str>),
    /// The program of the token host is not installed, or the operating system refuses a thread.
    #[error("token hosts cannot be started")]
    Spawner(#[source] io::Error),
}

/// Why a token does not hold a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The host refuses the key or the token lacks it.
    #[error("{0}")]
    Refused(String),
    /// The token's host is not up.
    #[error("the token is not reachable: {0}")]
    Unreachable(String),
}

/// What one token says about a key.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The token.
    pub token: Arc<str>,
    /// Whether it holds the key.
    pub result: Result<(), ProveError>,
}

/// A checkpoint's signature and the key that made it; each token has a log key of its own.
#[derive(Clone, Debug)]
pub struct CheckpointSignature {
    /// The signature.
    pub signed: Signed,
    /// DER SubjectPublicKeyInfo of the log key.
    pub log_key: Vec<u8>,
}

/// The tokens at work. Dropping it ends the hosts that it started.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    supervisors: std::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Pool {
    /// Starts or connects every token's host, in the background: [`Pool::health`] tells how far they are.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the settings hold no token or two of one name, or no thread can be started.
    pub fn start(settings: Settings) -> Result<Self, PoolError> {
        if settings.tokens.is_empty() {
            return Err(PoolError::NoToken);
        }
        for (at, token) in settings.tokens.iter().enumerate() {
            if settings.tokens.iter().take(at).any(|other| other.name == token.name) {
                return Err(PoolError::SameName(Arc::clone(&token.name)));
            }
        }
        let sibling = settings.tokens.iter().any(|token| matches!(token.link, Link::Child { program: None, .. }));
        let spawner = child::Spawner::start(&settings.logging, sibling).map_err(PoolError::Spawner)?;
        let shared = Arc::new(Shared::new(&settings));
        let mut supervisors: Vec<_> = (0..)
            .zip(settings.tokens)
            .map(|(at, token)| tokio::spawn(supervisor::run(Arc::clone(&shared), at, token, spawner.clone())))
            .collect();
        supervisors.push(tokio::spawn(queue::sweep(Arc::clone(&shared))));
        Ok(Self { shared, supervisors: supervisors.into() })
    }

    /// The state of each token, as it changes; for readiness and health.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PoolHealth> {
        self.shared.health()
    }

    /// What each token has done since the start, for the metrics.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        self.shared.snapshot()
    }

    /// How long the hosts' calls of PKCS#11 functions took and which failed, as the hosts last told, for the metrics.
    #[must_use]
    pub fn calls(&self) -> Vec<Calls> {
        self.shared.calls()
    }

    /// How many requests wait in the queues: bulk, first.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        self.shared.queued()
    }

    /// Has every token look a CA key up, now and after each recovery from now on. For the start and for a reload:
    /// certificates are signed only by tokens that hold their issuer's key. A host that is just starting is waited
    /// for until `deadline`.
    pub async fn prove(&self, key: &PublicKey, deadline: Instant) -> Vec<Proof> {
        supervisor::prove(&self.shared, key.fingerprint(), deadline).await
    }

    /// Stops looking for a key that [`Pool::prove`] was asked for: it is not in use, or not any more. Requests that
    /// need it are still signed where it was found.
    pub fn forget(&self, key: &PublicKey) {
        self.shared.forget(&key.fingerprint());
    }

    /// Has a tree head signed by the log key of a token.
    ///
    /// # Errors
    /// As [`Signer::sign`]; [`SignError::Refused`] where the token has no log key.
    pub async fn sign_checkpoint(&self, message: &[u8], deadline: Instant) -> Result<CheckpointSignature, SignError> {
        let context = Context { request_id: Arc::from("checkpoint"), deadline, class: Class::First, avoid: Vec::new() };
        let signed = self.submit(Kind::Checkpoint, OWN_KEY, Message::Bytes(Arc::from(message)), &context).await?;
        let log_key = self.shared.log_key(&signed.source.token);
        Ok(CheckpointSignature { signed, log_key })
    }

    /// DER SubjectPublicKeyInfo of the log key of each token that has told of one.
    #[must_use]
    pub fn log_keys(&self) -> Vec<(Arc<str>, Vec<u8>)> {
        self.shared.log_keys()
    }

    /// Probes every token with its canary key, besides the probes that go on by themselves.
    pub async fn canary(&self) -> Vec<Proof> {
        supervisor::canaries(&self.shared).await
    }

    /// Refuses what comes from now on, lets what is in flight end until `deadline`, and ends the hosts.
    pub async fn shutdown(&self, deadline: Instant) {
        self.shared.close();
        while self.shared.in_flight() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shared.end_hosts();
        let supervisors = self.supervisors.lock().map(|mut tasks| std::mem::take(&mut *tasks)).unwrap_or_default();
        for task in supervisors {
            // A supervisor ends once its child is reaped; one that does not is cut off with the runtime.
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }

    async fn submit(
        &self,
        kind: Kind,
        key: Fingerprint,
        message: Message,
        context: &Context,
    ) -> Result<Signed, SignError> {
        let (reply, answer) = oneshot::channel();
        self.shared.submit(Job::new(kind, key, message, context, reply))?;
        match tokio::time::timeout_at(context.deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(SignError::Unavailable("the daemon is ending".to_owned())),
            Err(_) => Err(SignError::Deadline),
        }
    }
}

/// Stands for the one log or canary key that each host has.
const OWN_KEY: Fingerprint = [0; 32];

impl Signer for Pool {
    fn sign<'a>(
        &'a self,
        tbs: &'a Recorded<Arc<Tbs>>,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Signed, SignError>> {
        Box::pin(async move {
            let tbs = Arc::clone(tbs.value());
            let kind = match tbs.template().profile {
                Profile::Intermediate { .. } => Kind::Intermediate,
                Profile::Leaf => Kind::Leaf,
                Profile::SelfSignedRoot { .. } => {
                    return Err(SignError::Refused("a root is signed by the command that makes it".to_owned()));
                }
            };
            let key = tbs.issuer().public_key().fingerprint();
            self.submit(kind, key, Message::Tbs(tbs), context).await
        })
    }

    fn verdict(&self, source: &Source, verified: bool) {
        self.shared.verdict(source, verified);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.end_hosts();
    }
}
