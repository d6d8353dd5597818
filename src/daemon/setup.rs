//! Builds the issuance pipeline: bundle, tokens, log, rules. Also used by `issue` without a daemon.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, watch};

use super::{
    background::Background,
    last_good_bundle::LastGoodBundle,
    readiness::{Readiness, ReadinessHandle},
    reload::Reloader,
};
use crate::bundle_files::check_directory;
use crate::{
    auth::{Authenticator, DenylistCheck},
    config::Config,
    issue::{CertificateAuthority, Parts, limits::Limits},
    revocation::Revocations,
    telemetry::recent::Recent,
    token_pool::{Pool, PoolError, PoolHealth},
};
use audit_log::{
    CheckpointHealth, CheckpointSignError, CheckpointSignature, CheckpointSigner, Lock, Log, OpenError, Opened,
};
use pki::{
    Bundle, PublicKey,
    bundle::{BundleFiles, Problem},
};
use process::{
    clock::{self, Clock},
    error::{Advice, Remedy},
};

/// Timeout for signing a checkpoint.
const CHECKPOINT: Duration = Duration::from_secs(5);
/// How far the stored trusted time may be behind.
const TRUSTED_TIME: Duration = Duration::from_secs(10 * 60);
/// How long the tokens may take to find the CA key before the daemon reports it missing and retries.
const PROOF: Duration = Duration::from_secs(5);

/// The issuance pipeline cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The bundle is invalid.
    #[error(
        "the bundle in {} is refused, and no certificate can be issued:{}\nput the files back as `import` or `install` \
         wrote them, or run it again; `istio-hsm-ca check` reports what is wrong",
        directory.display(), list(problems)
    )]
    Bundle {
        /// The bundle's directory.
        directory: PathBuf,
        /// All problems of the bundle.
        problems: Vec<Problem>,
    },
    /// The issuance log cannot be opened.
    #[error("the issuance log: {0}")]
    Log(#[from] OpenError),
    /// The bundle lacks a root that was in use.
    #[error(
        "root-cert.pem in {} lacks a root that was in use ({}), and workloads that trust only that one would fail{}",
        directory.display(), kept.display(), Advice(self)
    )]
    RootDropped {
        /// The bundle's directory.
        directory: PathBuf,
        /// Where the roots in use are stored.
        kept: PathBuf,
    },
    /// The token hosts cannot be started.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl Remedy for SetupError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Log(error) => error.remedy(),
            Self::Bundle { .. } | Self::Pool(_) => None,
            Self::RootDropped { .. } => Some("add it again, or set [ca] allow_root_removal = true".into()),
        }
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}

/// The issuance pipeline and its parts.
#[derive(Debug)]
pub struct Core {
    /// The issuance pipeline.
    pub ca: Arc<CertificateAuthority>,
    /// The tokens.
    pub pool: Arc<Pool>,
    /// The log.
    pub log: Log,
    /// State of the log when it was opened.
    pub opened: Opened,
    /// Activity of the last hour.
    pub recent: Arc<Recent>,
    /// The bundle's files in use.
    files: BundleFiles,
}

/// Reads and checks the bundle; logs warnings.
///
/// # Errors
/// All problems of the bundle.
pub fn bundle(config: &Config) -> Result<Bundle, SetupError> {
    let refused = |problems| SetupError::Bundle { directory: config.ca.bundle.clone(), problems };
    let bundle = check_directory(&config.ca.bundle, clock::now()).map_err(refused)?;
    let kept = last_good_bundle(config);
    if !config.ca.allow_root_removal && kept.drops_a_root(bundle.issuer()) {
        return Err(SetupError::RootDropped { directory: config.ca.bundle.clone(), kept: kept.roots });
    }
    Ok(bundle)
}

/// Where the files in use are stored.
fn last_good_bundle(config: &Config) -> LastGoodBundle {
    LastGoodBundle { ca_cert: config.ca_in_use(), roots: config.roots_in_use() }
}

/// Builds the path. A token that is away does not fail it; a broken log does. Must be called within a runtime.
///
/// # Errors
/// When the log is not as it was written, or no host can be started.
pub async fn core(
    config: &Config,
    bundle: Bundle,
    denylist: DenylistCheck,
    revocations: &Revocations,
    readiness: &Readiness,
    background: &Background,
) -> Result<Core, SetupError> {
    // Before anything is written or a token is used: both may be those of a daemon that runs.
    let lock = Lock::take(&config.log.directory)?;
    for warning in bundle.warnings() {
        tracing::warn!(warning = warning.0, "bundle");
    }
    let issuer = Arc::clone(bundle.issuer());
    last_good_bundle(config).keep(bundle.files());
    let pool = Arc::new(Pool::start(config.pool_settings())?);
    // The hosts start while the log is opened, also where the runtime has a single thread.
    tokio::task::yield_now().await;
    let signer: Arc<dyn CheckpointSigner> = Arc::new(LogKey(Arc::clone(&pool)));
    let (log, opened) = Log::open_locked(lock, config.log.clone(), Some(signer))?;
    if let Some(aside) = &opened.set_aside {
        tracing::warn!(
            ?aside,
            "the issuance log ended in an incomplete line after a crash; the line was moved to a separate file"
        );
    }
    if opened.newest_record > opened.clock.newest_record {
        tracing::warn!(
            newest_record = opened.newest_record.map(audit_log::timestamp::format),
            compared_with = opened.clock.newest_record.map(audit_log::timestamp::format),
            "the newest record of the issuance log is not compared with the clock, which an operator confirmed"
        );
    }
    let recent = Arc::new(Recent::new());
    let ca = Arc::new(CertificateAuthority::new(Parts {
        issuer: Arc::clone(&issuer),
        rules: config.rules(),
        denylist,
        revocations: revocations.clone(),
        limits: Limits::new(config.rate_limits),
        first_class: config.ca.first_class.clone(),
        default_deadline: config.listen.limits.request_timeout,
        clock: Clock::start(opened.clock, Arc::clone(&config.confirm_clock)),
        log: log.clone(),
        signer: pool.clone(),
        recent: Arc::clone(&recent),
    }));
    background.spawn_until_end(tell_tokens(pool.health(), readiness.required("tokens")));
    background.follow(log.health(), readiness.required("issuance log"), |health| health.writable.clone().err());
    let (watched, clock) = (Arc::clone(&ca), readiness.required("clock"));
    let directory = config.log.directory.clone();
    let mut stored = None;
    background.every(Duration::from_secs(1), move || {
        clock.set(watched.now().err().map(|error| error.to_string()));
        store_trusted_time(&directory, watched.trusted_time(), &mut stored);
    });
    background.spawn_until_end(prove(Arc::clone(&pool), Arc::clone(&ca)));
    let checkpoints = readiness.informational("checkpoints of the issuance log");
    background.spawn_until_end(tell_checkpoints(log.clone(), pool.health(), checkpoints));
    Ok(Core { ca, pool, log, opened, recent, files: bundle.files().clone() })
}

/// Stores the clock's trusted time for the next start, if the stored one is old. A lost one is harmless: it is later than
/// the one before.
fn store_trusted_time(directory: &Path, trusted: Option<SystemTime>, stored: &mut Option<SystemTime>) {
    let Some(trusted) = trusted else { return };
    let is_current = |stored: SystemTime| trusted.duration_since(stored).is_ok_and(|age| age < TRUSTED_TIME);
    if stored.is_some_and(is_current) {
        return;
    }
    if let Err(error) = audit_log::store_trusted_time(directory, trusted) {
        tracing::warn!(%error, "the trusted time cannot be stored in the issuance log's directory");
    }
    *stored = Some(trusted);
}

impl Core {
    /// Keeps the bundle up to date.
    #[must_use]
    pub fn reloader(
        &self,
        config: &Config,
        authenticator: Arc<Authenticator>,
        reload_trigger: Arc<Notify>,
        readiness: &Readiness,
    ) -> Reloader {
        Reloader {
            directory: config.ca.bundle.clone(),
            in_use: self.files.clone(),
            last_good: last_good_bundle(config),
            allow_root_removal: config.ca.allow_root_removal,
            ca: Arc::clone(&self.ca),
            pool: Arc::clone(&self.pool),
            authenticator,
            watched: config.auth.client_certificate.files(),
            reload_trigger,
            handle: readiness.required("CA certificate"),
            bundle: readiness.informational("bundle"),
            callers: readiness.informational("authentication files"),
        }
    }

    /// Closes the log, then the tokens: a token signs the last checkpoint.
    pub async fn close(self, deadline: Instant) {
        let Self { ca, pool, log, .. } = self;
        log.close().await;
        drop(ca);
        pool.shutdown(deadline).await;
    }
}

/// Requests proof of the CA key from every token until all reachable ones have answered; after each recovery of a
/// token, the pool does so on its own.
async fn prove(pool: Arc<Pool>, ca: Arc<CertificateAuthority>) {
    let mut reported = Vec::new();
    loop {
        let proofs = pool.prove(ca.issuer().public_key(), Instant::now() + PROOF).await;
        let missing: Vec<String> = proofs
            .iter()
            .filter_map(|proof| proof.result.as_ref().err().map(|error| format!("{}: {error}", proof.token)))
            .collect();
        if missing.is_empty() {
            return;
        }
        if missing != reported {
            tracing::error!(tokens = ?missing, "the CA's key was not found in these tokens; run `istio-hsm-ca check`");
            reported = missing;
        }
        tokio::time::sleep(PROOF).await;
    }
}

/// Reports whether tokens sign, and how the CA's key was found in each.
async fn tell_tokens(mut watched: watch::Receiver<PoolHealth>, handle: ReadinessHandle) {
    loop {
        let health = watched.borrow_and_update().clone();
        handle.set((!health.is_ready()).then(|| format!("no token signs: {}", health.reason())));
        let found = health.tokens.iter().filter(|token| !token.found.is_empty());
        let notes: Vec<_> = found.map(|token| format!("{}: CA key {}", token.token, token.found.join(", "))).collect();
        handle.note((!notes.is_empty()).then(|| notes.join("; ")));
        if watched.changed().await.is_err() {
            return;
        }
    }
}

/// Why the log has no current checkpoint. Certificates are issued all the same.
#[must_use]
pub fn checkpoint_trouble(log: &CheckpointHealth, tokens: &PoolHealth) -> Option<String> {
    match (log, tokens.log_key) {
        (_, Some(false)) | (CheckpointHealth::Off, _) => {
            Some("off: no token has a log key (Ed25519); [log] token may name another token that has one".to_owned())
        }
        (CheckpointHealth::Failing(reason), _) => Some(reason.clone()),
        (CheckpointHealth::Current, _) => None,
    }
}

/// Reports when checkpoints are off, when they fail and when they are signed again.
async fn tell_checkpoints(log: Log, mut tokens: watch::Receiver<PoolHealth>, handle: ReadinessHandle) {
    let mut log = log.health();
    loop {
        let trouble = checkpoint_trouble(&log.borrow_and_update().checkpoints, &tokens.borrow_and_update());
        handle.set(trouble);
        let changed = tokio::select! {
            changed = log.changed() => changed,
            changed = tokens.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Logs the issuers whose keys have not been fetched.
pub async fn watch_issuers(authenticator: Arc<Authenticator>) {
    let mut reported = String::new();
    loop {
        let missing = authenticator.not_ready().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if missing != reported {
            if missing.is_empty() {
                tracing::info!("the keys of all JWT issuers are available");
            } else {
                tracing::warn!(issuers = missing, "JWTs of these issuers cannot be verified yet");
            }
            reported = missing;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The log key in the tokens, as the log's signer.
#[derive(Debug)]
struct LogKey(Arc<Pool>);

impl CheckpointSigner for LogKey {
    fn sign_checkpoint<'a>(
        &'a self,
        text: &'a [u8],
    ) -> crate::signer::BoxFuture<'a, Result<CheckpointSignature, CheckpointSignError>> {
        Box::pin(async move {
            let signed = self.0.sign_checkpoint(text, Instant::now() + CHECKPOINT).await;
            let signed = signed.map_err(|error| match self.0.health().borrow().log_key {
                Some(false) => CheckpointSignError::NoKey,
                Some(true) | None => CheckpointSignError::Failed(error.to_string()),
            })?;
            let wrong =
                |what: &str| CheckpointSignError::Failed(format!("token {} gave {what}", signed.signed.source.token));
            let key = PublicKey::from_spki_der(&signed.log_key).map_err(|_| wrong("a log key that is none"))?;
            let public_key = key.subject_public_key().try_into().map_err(|_| wrong("a log key that is not Ed25519"))?;
            let signature = signed.signed.signature.as_slice();
            let signature = signature.try_into().map_err(|_| wrong("a signature that is not Ed25519"))?;
            Ok(CheckpointSignature { public_key, signature })
        })
    }
}
