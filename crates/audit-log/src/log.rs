//! The writer's handle: opens the log, records intents and outcomes, closes it.

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
    confirmation,
    queue::Queue,
    record::{CallerField, IntentLine, OutcomeKind, OutcomeLine, VERSION},
    recover::{self, Examined, Lock, OpenError, SetAside},
    segment::Directory,
    stats::{Counts, Stats},
    timestamp,
    writer::{self, Links, Writer},
};
use pki::Tbs;
use serde::{Deserialize, Deserializer};

/// How long [`Log::close`] waits for the last checkpoint.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// What one line of the log says, before it has an index.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The request's id, as in the logs and in the client's error.
    pub request_id: String,
    /// When the request was decided on.
    pub time: SystemTime,
    /// Who asked; the operator's ceremonies too have a caller.
    pub caller: CallerField,
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

    /// The intent's index in the log, counted from 0 over intents, without gaps.
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

/// `[log]`: where the log is stored and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A directory of its own; created with mode 0750 if it is missing.
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
    /// A checkpoint is made after this number of lines...
    #[serde(default = "Settings::checkpoint_lines", deserialize_with = "non_zero")]
    pub checkpoint_lines: u64,
    /// ...or after this time, whichever comes first, if there are new lines.
    #[serde(default = "Settings::checkpoint_interval", with = "humantime_serde")]
    pub checkpoint_interval: Duration,
    /// How long a segment is kept after its newest line; `None` is for ever.
    #[serde(default, with = "humantime_serde")]
    pub keep_for: Option<Duration>,
    /// How many bytes of closed segments are kept; `None` is all.
    #[serde(default)]
    pub keep_bytes: Option<u64>,
    /// How many intents may wait for the disk; not configurable.
    #[serde(skip, default = "Settings::queue")]
    pub queue: usize,
    /// The command that checkpoints are shipped with.
    #[serde(default)]
    pub ship: Option<Ship>,
}

impl Settings {
    /// Settings with every default: segments of 64 MiB, a checkpoint every 10 s or 10,000 lines, everything kept.
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

/// What a log held when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The time of the newest line, for [`process::clock::Clock::start`].
    pub newest_record: Option<SystemTime>,
    /// When an operator confirmed the clock after that line was written.
    pub clock_confirmed: Option<SystemTime>,
    /// Lines.
    pub lines: u64,
    /// Intents: the index of the next.
    pub intents: u64,
    /// Intents by the SHA-256 of the CA's DER SubjectPublicKeyInfo, in hexadecimal digits: no token may have made
    /// more signatures of certificates with that key.
    pub intents_per_ca_key: BTreeMap<String, u64>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// An unterminated last line that a crash left, and where it is now; to be told to the operator.
    pub set_aside: Option<SetAside>,
}

/// Whether the log can be written, and whether its heads are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHealth {
    /// Why it cannot be written now, if it cannot: nothing may be signed.
    pub writable: Result<(), String>,
    /// How checkpoints fare; issuance goes on without them.
    pub checkpoints: CheckpointHealth,
}

/// How checkpoints fare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointHealth {
    /// The last one was signed, kept and shipped; or none was due yet.
    Current,
    /// The last one was not, and why.
    Failing(String),
    /// There is no log key: the tree is kept but nobody signs it.
    Off,
}

#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    health: watch::Receiver<LogHealth>,
    /// Tells that the writer has ended.
    ended: watch::Receiver<bool>,
    checkpointer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// A handle on the log's writer; clones share it.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Opens a log as its only writer, making it if it is not there; reads from disk and blocks meanwhile. The lock
    /// is held until [`Log::close`] has returned or the last handle is gone. Must be called within a runtime.
    ///
    /// # Errors
    /// When another process has it open, the disk refuses, or the log is not as it was written.
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
        let newest = recovered.counters.newest.as_deref();
        let opened = Opened {
            newest_record: newest.and_then(timestamp::parse),
            clock_confirmed: confirmation::read(&directory, newest).map_err(recover::io_error(&settings.directory))?,
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
                // Told last, after the writer has let the lock go.
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

    /// Looks at a log as [`Log::open`] would, and changes nothing: for `check`. `None` when there is no log yet.
    ///
    /// # Errors
    /// What [`Log::open`] would answer.
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
    /// When the line could not be made durable; it then is not signed.
    pub async fn record(&self, intent: Intent) -> Result<Recorded<Arc<Tbs>>, LogError> {
        let line = Box::new(IntentLine::new(&intent));
        let index = self.append(line).await?;
        Ok(Recorded { value: intent.tbs, index })
    }

    pub(super) async fn append(&self, line: Box<IntentLine>) -> Result<u64, LogError> {
        let (waiter, done) = oneshot::channel();
        self.shared.queue.intent(line, waiter)?;
        done.await.unwrap_or(Err(LogError::Closed))
    }

    /// Notes what became of an intent; not waited for.
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

    /// Whether the log can be written, now and when that changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<LogHealth> {
        self.shared.health.clone()
    }

    /// Numbers for metrics and the status page.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counts.read(self.shared.queue.len())
    }

    /// Ends the log: what has been queued is written, the last head is signed (within 15 s), the lock let go.
    pub async fn close(&self) {
        self.shared.queue.close();
        // An error means that the writer's thread has gone, which is what is waited for.
        let _ = self.shared.ended.clone().wait_for(|ended| *ended).await;
        let task = self.shared.checkpointer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && tokio::time::timeout(CLOSE_TIMEOUT, task).await.is_err()
        {
            tracing::warn!("the last checkpoint of the issuance log was not signed in time");
        }
    }
}
