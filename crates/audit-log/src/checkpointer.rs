//! Requests signatures of tree heads, stores the checkpoints and ships copies; no request waits for any of this.
//!
//! Runs as a task of the async runtime. If signing a head fails, the next head supersedes it; heads that close a
//! segment are kept until they are signed.

use std::{
    io,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    CheckpointHealth, LogHealth,
    checkpoint::{Checkpoint, CheckpointError, CheckpointSignError, CheckpointSigner},
    segment::{CHECKPOINT, Directory, Part},
    stats::Counts,
};

/// Timeout for signing one checkpoint.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before signing is retried.
const RETRY: Duration = Duration::from_secs(5);
/// Maximum number of closing heads kept for retry; the oldest is dropped, since any later head covers its lines.
const PENDING_MOST: usize = 64;

/// `[log.ship]`: a command that receives each new checkpoint on its standard input and stores a copy elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ship {
    /// The executable, started without a shell.
    pub program: PathBuf,
    /// Its arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Time after which the command is killed.
    #[serde(default = "Ship::timeout", with = "humantime_serde")]
    pub timeout: Duration,
}

impl Ship {
    fn timeout() -> Duration {
        Duration::from_secs(10)
    }
}

/// A tree head to be signed.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) checkpoint: Checkpoint,
    /// The segment that holds the head's last line.
    pub(super) segment: u64,
    /// Whether the head closes that segment.
    pub(super) closing: bool,
}

/// A checkpoint could not be stored or shipped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the checkpoint could not be written: {0}")]
    Io(#[from] io::Error),
    #[error("the command that ships checkpoints failed: {0}")]
    Ship(String),
    #[error(transparent)]
    Sign(#[from] CheckpointSignError),
    #[error("no token signed the checkpoint within {} s", SIGN_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Wrong(#[from] CheckpointError),
}

pub(super) struct Checkpointer {
    pub(super) directory: Directory,
    pub(super) signer: Arc<dyn CheckpointSigner>,
    pub(super) ship: Option<Ship>,
    pub(super) counts: Arc<Counts>,
    pub(super) health: watch::Sender<LogHealth>,
}

impl Checkpointer {
    /// Runs until the writer has ended and its last head has been signed or attempted once.
    pub(super) async fn run(self, mut heads: mpsc::UnboundedReceiver<Head>) {
        let mut pending: Vec<Head> = Vec::new();
        let mut more = true;
        while more || !pending.is_empty() {
            if pending.is_empty() {
                match heads.recv().await {
                    Some(head) => pending.push(head),
                    None => return,
                }
            }
            loop {
                match heads.try_recv() {
                    Ok(head) => pending.push(head),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        more = false;
                        break;
                    }
                }
            }
            supersede(&mut pending);
            let failure = match self.sign_all(&mut pending).await {
                Ok(Some(note)) => self.shipped(&note).await.err(),
                Ok(None) => None,
                Err(failure) => Some(failure),
            };
            self.tell(failure.as_ref());
            if !pending.is_empty() {
                if !more {
                    return;
                }
                // A newer head ends the delay early.
                if let Ok(head) = timeout(RETRY, heads.recv()).await {
                    match head {
                        Some(head) => pending.push(head),
                        None => more = false,
                    }
                }
            }
        }
    }

    /// Signs and stores the pending heads in order and removes those that succeeded. Returns the newest note.
    async fn sign_all(&self, pending: &mut Vec<Head>) -> Result<Option<Vec<u8>>, Failure> {
        let mut newest = None;
        while let Some(head) = pending.first() {
            newest = Some(self.sign(head).await?);
            pending.remove(0);
        }
        Ok(newest)
    }

    async fn sign(&self, head: &Head) -> Result<Vec<u8>, Failure> {
        let text = head.checkpoint.text();
        let signing = self.signer.sign_checkpoint(text.as_bytes());
        let signature = timeout(SIGN_TIMEOUT, signing).await.map_err(|_| Failure::Timeout)??;
        let note = head.checkpoint.signed(&signature)?;
        let (directory, segment, content) = (self.directory.clone(), head.segment, note.clone());
        // The log's newest checkpoint is written first, so it is never older than a segment's unless it was rolled
        // back.
        let keep = move || {
            directory.replace(&directory.path(CHECKPOINT), &content)?;
            directory.replace(&directory.part(segment, Part::Checkpoint), &content)
        };
        tokio::task::spawn_blocking(keep).await.map_err(io::Error::other)??;
        self.counts.signed.fetch_max(head.checkpoint.size, Ordering::Relaxed);
        self.counts.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.counts.checkpoint_at(process::clock::now());
        Ok(note)
    }

    async fn shipped(&self, note: &[u8]) -> Result<(), Failure> {
        match &self.ship {
            Some(ship) => run(ship, note).await.map_err(Failure::Ship),
            None => Ok(()),
        }
    }

    fn tell(&self, failure: Option<&Failure>) {
        let state = match failure {
            None => CheckpointHealth::Current,
            Some(Failure::Sign(CheckpointSignError::NoKey)) => CheckpointHealth::Off,
            Some(failure) => {
                tracing::warn!(error = %failure, "a checkpoint of the issuance log");
                CheckpointHealth::Failing(failure.to_string())
            }
        };
        self.health.send_if_modified(|health| {
            let changed = health.checkpoints != state;
            health.checkpoints = state.clone();
            changed
        });
    }
}

/// Keeps the newest head and those that close a segment.
fn supersede(pending: &mut Vec<Head>) {
    let newest = pending.iter().map(|head| head.checkpoint.size).max();
    pending.retain(|head| head.closing || Some(head.checkpoint.size) == newest);
    pending.dedup_by_key(|head| head.checkpoint.size);
    let excess = pending.len().saturating_sub(PENDING_MOST);
    pending.drain(..excess);
}

/// Runs the shipping command with a note on its standard input.
async fn run(ship: &Ship, note: &[u8]) -> Result<(), String> {
    let name = ship.program.display();
    let mut child = tokio::process::Command::new(&ship.program)
        .args(&ship.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // If the command does not read its input, only its exit status decides.
            let _ = stdin.write_all(note).await;
        }
        child.wait_with_output().await
    };
    match timeout(ship.timeout, work).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let words: String = String::from_utf8_lossy(&output.stderr).chars().take(200).collect();
            Err(format!("{name}: {}: {:?}", output.status, words.trim()))
        }
        Ok(Err(error)) => Err(format!("{name}: {error}")),
        Err(_) => Err(format!("{name}: it took longer than {} s", ship.timeout.as_secs())),
    }
}
