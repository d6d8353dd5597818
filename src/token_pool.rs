//! The daemon's client of the token hosts: a [`Pool`] of tokens that sign, whose hosts it starts and supervises.
//!
//! It implements [`Signer`] for `issue`. It never sees a PIN and never calls PKCS#11. A request waits in one of two
//! bounded queues and goes to the token with the least work in flight; when that host dies or fails, it is retried.
//! Signatures are not verified here: [`Signer::verdict`] reports the result.

mod breaker;
mod child;
mod connection;
mod counters;
mod health;
mod job;
mod queue;
mod router;
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
use router::Router;

use crate::signer::{BoxFuture, Context, Priority, SignError, Signed, Signer, Source, ToBeSigned};
use ::token::call_metrics::Calls;
use pki::{Profile, PublicKey};
use process::logging;
use token_host::{
    self,
    protocol::{Fingerprint, Kind},
};

/// Replaces this process with the token host's program. Returns only if that fails, with the error.
#[must_use]
pub fn exec_host(arguments: &[OsString]) -> io::Error {
    child::exec(arguments)
}

/// How the daemon reaches a token host.
#[derive(Clone, Debug)]
pub enum HostEndpoint {
    /// The daemon starts it as its child, connected by a socket pair.
    Child {
        /// The host's settings.
        settings: Box<token_host::Settings>,
        /// The executable; `None` means the daemon's own.
        program: Option<PathBuf>,
        /// Environment variables of the child, such as the path of a vendor module's configuration.
        environment: BTreeMap<String, String>,
    },
    /// It is supervised separately and listens on a Unix socket.
    Socket {
        /// The socket.
        path: PathBuf,
        /// The user ID that the host must have; `None` trusts the permissions of the socket's directory.
        uid: Option<u32>,
    },
}

/// One `[[token]]`.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// The name in logs, metrics and health.
    pub name: Arc<str>,
    /// How to reach its host.
    pub endpoint: HostEndpoint,
    /// Timeout of one PKCS#11 call. A host that does not answer for longer is replaced.
    pub call_timeout: Duration,
    /// Keep-alive interval.
    pub keep_alive: Duration,
    /// It signs the checkpoints of the issuance log and nothing else, and need not hold the CA's key. The other tokens
    /// then sign no checkpoints.
    pub log_only: bool,
}

/// The pool's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tokens.
    pub tokens: Vec<TokenSettings>,
    /// Maximum length of each of the two queues, in requests.
    pub queue: usize,
    /// How long a request waits for a token to recover, within its deadline.
    pub recovery_wait: Duration,
    /// The log settings of child hosts.
    pub logging: logging::Settings,
}

impl Settings {
    /// The default of `recovery_wait`.
    pub const RECOVERY_WAIT: Duration = Duration::from_secs(2);
    /// The default of `queue`: room for ten thousand agents that connect at once.
    pub const QUEUE: usize = 16_384;

    /// Settings with the defaults for everything but the tokens.
    #[must_use]
    pub fn new(tokens: Vec<TokenSettings>) -> Self {
        Self { tokens, queue: Self::QUEUE, recovery_wait: Self::RECOVERY_WAIT, logging: logging::Settings::default() }
    }
}

/// The pool cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No token is configured.
    #[error("no token is configured; add a [[token]] to the configuration")]
    NoToken,
    /// Two tokens have the same name.
    #[error("two tokens are named {0}; give each [[token]] a name of its own")]
    SameName(Arc<str>),
    /// The token host's program is not installed, or no thread can be started.
    #[error("token hosts cannot be started")]
    Spawner(#[source] io::Error),
}

/// A token is not proven to hold a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The host rejects the key, or the token does not hold it.
    #[error("{0}")]
    Refused(String),
    /// The token's host is not running.
    #[error("the token is not reachable: {0}")]
    Unreachable(String),
}

/// Whether one token holds a key.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The token.
    pub token: Arc<str>,
    /// Whether it holds the key.
    pub result: Result<(), ProveError>,
}

/// A checkpoint's signature and the key that made it; each token has its own log key.
#[derive(Clone, Debug)]
pub struct CheckpointSignature {
    /// The signature.
    pub signed: Signed,
    /// DER SubjectPublicKeyInfo of the log key.
    pub log_key: Vec<u8>,
}

/// The tokens. Dropping the pool ends the hosts that it started.
#[derive(Debug)]
pub struct Pool {
    router: Arc<Router>,
    supervisors: std::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Pool {
    /// Starts or connects to every token's host in the background; [`Pool::health`] reports their progress.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If there is no token or two have the same name, or no thread can be started.
    pub fn start(settings: Settings) -> Result<Self, PoolError> {
        if settings.tokens.is_empty() {
            return Err(PoolError::NoToken);
        }
        for (at, token) in settings.tokens.iter().enumerate() {
            if settings.tokens.iter().take(at).any(|other| other.name == token.name) {
                return Err(PoolError::SameName(Arc::clone(&token.name)));
            }
        }
        let sibling =
            settings.tokens.iter().any(|token| matches!(token.endpoint, HostEndpoint::Child { program: None, .. }));
        let spawner = child::Spawner::start(&settings.logging, sibling).map_err(PoolError::Spawner)?;
        let router = Arc::new(Router::new(&settings));
        let tokens = router.tokens().iter().cloned().zip(settings.tokens);
        let supervise = |(token, settings)| supervisor::run(Arc::clone(&router), token, settings, spawner.clone());
        let mut supervisors: Vec<_> = tokens.map(supervise).map(tokio::spawn).collect();
        supervisors.push(tokio::spawn(queue::sweep(Arc::clone(&router))));
        Ok(Self { router, supervisors: supervisors.into() })
    }

    /// The state of each token as it changes, for readiness and health.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PoolHealth> {
        self.router.health()
    }

    /// The counters of each token since the start, for the metrics.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        self.router.snapshot()
    }

    /// Durations and errors of the hosts' PKCS#11 calls as last reported, for the metrics.
    #[must_use]
    pub fn calls(&self) -> Vec<Calls> {
        self.router.calls()
    }

    /// The number of queued requests: normal, high priority.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        self.router.queued()
    }

    /// Looks a CA key up in every token, now and after each recovery, for start and reload: certificates are signed only
    /// by tokens that hold their issuer's key. Waits until `deadline` for hosts that are starting.
    pub async fn prove(&self, key: &PublicKey, deadline: Instant) -> Vec<Proof> {
        supervisor::prove(&self.router, key.fingerprint(), deadline).await
    }

    /// Stops looking for a key of an earlier [`Pool::prove`]. Requests that need it are still signed where it was
    /// found.
    pub fn forget(&self, key: &PublicKey) {
        self.router.forget(&key.fingerprint());
    }

    /// Signs a tree head with the log key of a token.
    ///
    /// # Errors
    /// As [`Signer::sign`]; [`SignError::Unavailable`] where no token has a log key.
    pub async fn sign_checkpoint(&self, message: &[u8], deadline: Instant) -> Result<CheckpointSignature, SignError> {
        let context =
            Context { request_id: Arc::from("checkpoint"), deadline, priority: Priority::High, avoid: Vec::new() };
        let signed = self.submit(Kind::Checkpoint, OWN_KEY, Message::Bytes(Arc::from(message)), &context).await?;
        let log_key = self.router.log_key(&signed.source.token);
        Ok(CheckpointSignature { signed, log_key })
    }

    /// DER SubjectPublicKeyInfo of the log key of each token that has reported one.
    #[must_use]
    pub fn log_keys(&self) -> Vec<(Arc<str>, Vec<u8>)> {
        self.router.log_keys()
    }

    /// Probes every token with its canary key, in addition to the breaker's probes.
    pub async fn canary(&self) -> Vec<Proof> {
        supervisor::canaries(&self.router).await
    }

    /// Rejects new requests, lets those in flight finish until `deadline`, and ends the hosts.
    pub async fn shutdown(&self, deadline: Instant) {
        self.router.close();
        while self.router.is_busy() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.router.end_hosts();
        let supervisors = self.supervisors.lock().map(|mut tasks| std::mem::take(&mut *tasks)).unwrap_or_default();
        for task in supervisors {
            // A supervisor ends once its child is reaped; otherwise it ends with the runtime.
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }

    /// Submits a request. This is the only place that enforces its deadline: dropping the receiver marks it as
    /// abandoned, which removes it from its queue or cancels it at its host.
    async fn submit(
        &self,
        kind: Kind,
        key: Fingerprint,
        message: Message,
        context: &Context,
    ) -> Result<Signed, SignError> {
        let (reply, answer) = oneshot::channel();
        self.router.submit(Job::new(kind, key, message, context, reply))?;
        match tokio::time::timeout_at(context.deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(SignError::Unavailable("the daemon is ending".to_owned())),
            Err(_) => Err(SignError::Deadline),
        }
    }
}

/// A placeholder: each host has only one log key and one canary key, which need no fingerprint.
const OWN_KEY: Fingerprint = [0; 32];

impl Signer for Pool {
    fn sign<'a>(&'a self, message: &'a ToBeSigned, context: &'a Context) -> BoxFuture<'a, Result<Signed, SignError>> {
        Box::pin(async move {
            let kind = match message {
                ToBeSigned::Certificate(recorded) => match recorded.value().template().profile {
                    Profile::Intermediate { .. } => Kind::Intermediate,
                    Profile::Leaf => Kind::Leaf,
                    Profile::Ca(_) | Profile::SelfSignedRoot { .. } => {
                        return Err(SignError::Refused(
                            "such a CA's certificate is signed by the command that makes it".to_owned(),
                        ));
                    }
                },
                ToBeSigned::Crl(_) => Kind::Crl,
            };
            self.submit(kind, message.key().fingerprint(), Message::Recorded(message.clone()), context).await
        })
    }

    fn verdict(&self, source: &Source, verified: bool) {
        self.router.verdict(source, verified);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.router.close();
        self.router.end_hosts();
    }
}
