//! Handle of the writer: opens the log, records intents and outcomes, closes the log.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    checkpoint::{Checkpoint, CheckpointSigner},
    checkpointer::{Checkpointer, Ship},
    confirmation::store_trusted_time,
    queue::Queue,
    record::{CallerField, CeremonyLine, CrlLine, IntentLine, Line, OutcomeKind, OutcomeLine, RevocationLine, VERSION},
    recover::{self, Examined, Lock, OpenError, SetAside},
    segment::Directory,
    stats::{Counts, Stats},
    timestamp,
    writer::{self, Links, Writer},
};
use pki::{CrlTbs, Tbs};
use process::clock::Known;
use serde::{Deserialize, Deserializer};

/// Maximum time that [`Log::close`] waits for the last checkpoint.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Content of an intent line before it has an index.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The request ID, as in the daemon's log and in the client's error.
    pub request_id: String,
    /// Time of the policy decision.
    pub time: SystemTime,
    /// The authenticated caller. The operator's ceremonies have one, too.
    pub caller: CallerField,
    /// The certificate about to be signed.
    pub tbs: Arc<Tbs>,
}

/// Content of a CRL's line before it has an index.
#[derive(Clone, Debug)]
pub struct CrlIntent {
    /// The request ID, as in the daemon's log.
    pub request_id: String,
    /// Time of the decision.
    pub time: SystemTime,
    /// The part of the daemon that publishes the CRL.
    pub caller: CallerField,
    /// The CRL about to be signed.
    pub tbs: Arc<CrlTbs>,
}

/// A value whose intent is durable in the log. Only the log can construct it.
#[derive(Clone, Debug)]
pub struct Recorded<T> {
    value: T,
    index: u64,
}

impl<T> Recorded<T> {
    /// The recorded value.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Index of the intent in the log: counted from 0 over intents, without gaps.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }
}

/// Result of an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No certificate was released.
    Failed {
        /// The reason; contains no secrets.
        reason: String,
    },
    /// Signed, verified and released.
    Issued {
        /// Label of the token that signed.
        token: String,
    },
}

/// An intent could not be made durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Writing to the disk failed. The request fails and may be retried.
    #[error("the issuance log cannot be written: {0}")]
    Unavailable(String),
    /// The log is closed because the daemon is shutting down.
    #[error("the issuance log is closed")]
    Closed,
}

/// `[log]`: location, checkpoints and retention of the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A directory used by this log only; created with mode 0750 if missing.
    pub directory: PathBuf,
    /// The origin of the checkpoints (C2SP tlog-checkpoint), unique for each replica: a schemeless URL, such as a host
    /// name with a path.
    #[serde(default = "process::default_log_origin")]
    pub origin: String,
    /// The name of the token whose log key signs the checkpoints, and which signs nothing else. `None` is any token that
    /// has a log key. The log itself has no use for it.
    #[serde(default)]
    pub token: Option<String>,
    /// The size in bytes at which a segment is closed.
    #[serde(default = "Settings::segment_bytes", deserialize_with = "non_zero")]
    pub segment_bytes: u64,
    /// Number of new lines after which a checkpoint is made...
    #[serde(default = "Settings::checkpoint_lines", deserialize_with = "non_zero")]
    pub checkpoint_lines: u64,
    /// ...or the time after which one is made if there are new lines, whichever comes first.
    #[serde(default = "Settings::checkpoint_interval", with = "humantime_serde")]
    pub checkpoint_interval: Duration,
    /// How long a segment is kept after its newest line; `None` keeps segments forever.
    #[serde(default, with = "humantime_serde")]
    pub keep_for: Option<Duration>,
    /// How many bytes of closed segments are kept; `None` keeps all.
    #[serde(default)]
    pub keep_bytes: Option<u64>,
    /// Maximum number of intents waiting for the disk; not configurable.
    #[serde(skip, default = "Settings::queue")]
    pub queue: usize,
    /// The command that ships checkpoints.
    #[serde(default)]
    pub ship: Option<Ship>,
}

impl Settings {
    /// Settings with all defaults: segments of 64 MiB, a checkpoint every 10 s or 10,000 lines, everything kept.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, origin: impl Into<String>) -> Self {
        Self {
            directory: directory.into(),
            origin: origin.into(),
            token: None,
            segment_bytes: Self::segment_bytes(),
            checkpoint_lines: Self::checkpoint_lines(),
            checkpoint_interval: Self::checkpoint_interval(),
            keep_for: None,
            keep_bytes: None,
            queue: Self::queue(),
            ship: None,
        }
    }

    fn segment_bytes() -> u64 {
        64 << 20
    }

    fn checkpoint_lines() -> u64 {
        10_000
    }

    fn checkpoint_interval() -> Duration {
        Duration::from_secs(10)
    }

    fn queue() -> usize {
        4096
    }
}

fn non_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    NonZeroU64::deserialize(deserializer).map(NonZeroU64::get)
}

/// State of a log when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Time of the newest line.
    pub newest_record: Option<SystemTime>,
    /// What the directory says about the time, for [`process::clock::Clock::start`].
    pub clock: Known,
    /// Lines.
    pub lines: u64,
    /// Number of intents, which is the index of the next one.
    pub intents: u64,
    /// Intents by the SHA-256 of the CA's DER SubjectPublicKeyInfo, in hexadecimal: an upper bound for the number of
    /// certificates that a token has signed with that key.
    pub intents_per_ca_key: BTreeMap<String, u64>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// An unterminated last line left by a crash, and the file it was moved to; the operator must be informed.
    pub set_aside: Option<SetAside>,
}

/// Whether the log can be written and its heads are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHealth {
    /// The error while the log cannot be written; nothing may be signed then.
    pub writable: Result<(), String>,
    /// State of the checkpoints; issuance continues without them.
    pub checkpoints: CheckpointHealth,
}

/// State of the checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointHealth {
    /// The last one was signed, stored and shipped, or none was due yet.
    Current,
    /// The last one failed with this error.
    Failing(String),
    /// There is no log key: the tree is maintained but its heads are not signed.
    Off,
}

#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    health: watch::Receiver<LogHealth>,
    /// Becomes `true` when the writer has ended.
    ended: watch::Receiver<bool>,
    checkpointer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Handle of the log's writer; clones share the writer.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Opens a log as its only writer and creates it if it does not exist. Reads from disk and blocks meanwhile. The
    /// lock is held until [`Log::close`] has returned or the last handle is dropped. Must be called within a runtime.
    ///
    /// # Errors
    /// If another process has the log open, on I/O errors, or if the log was modified.
    pub fn open(settings: Settings, signer: Option<Arc<dyn CheckpointSigner>>) -> Result<(Self, Opened), OpenError> {
        let lock = Lock::take(&settings.directory)?;
        Self::open_locked(lock, settings, signer)
    }

    /// The same with the lock of the settings' directory.
    ///
    /// # Errors
    /// When the disk refuses, or the log is not as it was written.
    pub fn open_locked(
        lock: Lock,
        settings: Settings,
        signer: Option<Arc<dyn CheckpointSigner>>,
    ) -> Result<(Self, Opened), OpenError> {
        Checkpoint::check_origin(&settings.origin).map_err(|error| OpenError::Settings(error.to_string()))?;
        let runtime = Handle::try_current()
            .map_err(|error| OpenError::Settings(format!("BUG: the log is opened outside of a runtime: {error}")))?;
        let directory = Directory::new(&settings.directory);
        let recovered = recover::recover(lock, &directory, &settings.directory, &settings.origin)?;
        // Before anything moves the newest record, which is the trusted time of a log that has none yet.
        if let Known { newest_record: Some(newest), trusted: None } = recovered.clock {
            // Not the reason to refuse a full disk; the daemon tries again.
            if let Err(error) = store_trusted_time(&settings.directory, newest) {
                tracing::warn!(%error, "the trusted time cannot be stored in the issuance log's directory");
            }
        }
        let opened = Opened {
            newest_record: recovered.counters.newest.as_deref().and_then(timestamp::parse),
            clock: recovered.clock,
            lines: recovered.tree.size(),
            intents: recovered.counters.intents,
            intents_per_ca_key: recovered.counters.intents_per_ca_key.clone(),
            checkpoint: recovered.checkpoint.clone(),
            set_aside: recovered.set_aside.clone(),
        };
        let signed = recovered.checkpoint.as_ref().map_or(0, |c| c.size);
        let new_segment = u64::from(recovered.open.is_none());
        let counts = Counts::new(opened.lines, &recovered.counters, recovered.segments + new_segment, signed);
        counts.found(recovered.bytes, recovered.checkpoint_time);
        let counts = Arc::new(counts);
        let checkpoints = if signer.is_some() { CheckpointHealth::Current } else { CheckpointHealth::Off };
        let (health, health_seen) = watch::channel(LogHealth { writable: Ok(()), checkpoints });
        let (heads, heads_seen) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(false);
        let queue = Arc::new(Queue::new(settings.queue));

        let path = settings.directory.clone();
        let io_error = |source| OpenError::Io { path, source };
        let ship = settings.ship.clone();
        let (durable, acknowledged) = mpsc::unbounded_channel();
        runtime.spawn(writer::acknowledge(acknowledged));
        let links =
            Links { queue: Arc::clone(&queue), counts: Arc::clone(&counts), health: health.clone(), heads, durable };
        let started = Writer::new(settings, recovered, links).and_then(|writer| {
            std::thread::Builder::new().name("issuance-log".to_owned()).spawn(move || {
                writer.run();
                // Sent last, after the writer has released the lock.
                end.send_replace(true);
            })
        });
        started.map_err(io_error)?;
        let gatherer = Arc::clone(&queue);
        runtime.spawn(async move { gatherer.gather().await });
        let checkpointer = signer.map(|signer| {
            let task = Checkpointer { directory, signer, ship, counts: Arc::clone(&counts), health };
            runtime.spawn(task.run(heads_seen))
        });
        let shared = Shared { queue, counts, health: health_seen, ended, checkpointer: Mutex::new(checkpointer) };
        Ok((Self { shared: Arc::new(shared) }, opened))
    }

    /// Examines a log as [`Log::open`] would, without changing anything; used by `check`. `None` if there is no log
    /// yet.
    ///
    /// # Errors
    /// Those of [`Log::open`].
    pub fn examine(settings: &Settings) -> Result<Option<Examined>, OpenError> {
        Checkpoint::check_origin(&settings.origin).map_err(|error| OpenError::Settings(error.to_string()))?;
        match std::fs::metadata(&settings.directory) {
            Ok(_) => {
                let directory = Directory::new(&settings.directory);
                recover::examine(&directory, &settings.directory, &settings.origin).map(Some)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenError::Io { path: settings.directory.clone(), source }),
        }
    }

    /// Whether [`Log::open`] would be refused because another process has the log open: at once, and changes nothing.
    ///
    /// # Errors
    /// When it has, or the lock cannot be read.
    pub fn examine_lock(settings: &Settings) -> Result<(), OpenError> {
        recover::examine_lock(&Directory::new(&settings.directory))
    }

    /// Makes an intent durable; concurrent callers share a flush.
    ///
    /// # Errors
    /// If the line could not be made durable; nothing must be signed for it then.
    pub async fn record(&self, intent: Intent) -> Result<Recorded<Arc<Tbs>>, LogError> {
        let line = Line::Intent(Box::new(IntentLine::new(&intent)));
        let index = self.append(line).await?;
        Ok(Recorded { value: intent.tbs, index })
    }

    /// Makes the intent of a CRL durable.
    ///
    /// # Errors
    /// Those of [`Log::record`].
    pub async fn record_crl(&self, intent: CrlIntent) -> Result<Recorded<Arc<CrlTbs>>, LogError> {
        let line = Line::Crl(Box::new(CrlLine::new(&intent)));
        let index = self.append(line).await?;
        Ok(Recorded { value: intent.tbs, index })
    }

    /// Records durably that this replica applies a revocation from now on. The writer sets the number of the line.
    ///
    /// # Errors
    /// Those of [`Log::record`].
    pub async fn record_revocation(&self, line: RevocationLine) -> Result<(), LogError> {
        self.append(Line::Revocation(Box::new(line))).await.map(|_index| ())
    }

    /// Records durably that a ceremony has begun or ended. The writer sets the number of the line.
    ///
    /// # Errors
    /// Those of [`Log::record`].
    pub async fn record_ceremony(&self, line: CeremonyLine) -> Result<(), LogError> {
        self.append(Line::Ceremony(Box::new(line))).await.map(|_index| ())
    }

    pub(super) async fn append(&self, line: Line) -> Result<u64, LogError> {
        let (waiter, done) = oneshot::channel();
        self.shared.queue.intent(line, waiter)?;
        done.await.unwrap_or(Err(LogError::Closed))
    }

    /// Records the outcome of an intent without waiting for durability.
    pub fn outcome(&self, index: u64, outcome: Outcome) {
        let (outcome, token, reason) = match outcome {
            Outcome::Failed { reason } => (OutcomeKind::Failed, None, Some(reason)),
            Outcome::Issued { token } => (OutcomeKind::Issued, Some(token), None),
        };
        let time = timestamp::format(process::clock::now());
        let line = OutcomeLine { v: VERSION, line: 0, index, time, outcome, token, reason };
        if !self.shared.queue.outcome(line) {
            self.shared.counts.outcomes_lost(1);
            tracing::warn!(
                index,
                kind = "outcome",
                "an outcome is not in the issuance log: it is closed, or its disk has refused for long"
            );
        }
    }

    /// Whether the log can be written; the receiver is notified of changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<LogHealth> {
        self.shared.health.clone()
    }

    /// Figures for metrics and the status page.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counts.read(self.shared.queue.len())
    }

    /// Closes the log: writes what is queued, signs the last head (within 15 s) and releases the lock.
    pub async fn close(&self) {
        self.shared.queue.close();
        // An error means that the writer's thread has ended, which is what this waits for.
        let _ = self.shared.ended.clone().wait_for(|ended| *ended).await;
        let task = self.shared.checkpointer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && tokio::time::timeout(CLOSE_TIMEOUT, task).await.is_err()
        {
            tracing::warn!("the last checkpoint of the issuance log was not signed in time");
        }
    }
}
