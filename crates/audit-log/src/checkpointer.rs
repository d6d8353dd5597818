//! Has the tree's heads signed, keeps them, and ships them elsewhere; no request waits for any of it.
//!
//! A task of the runtime. A head that could not be signed is superseded by the next; those that close a segment are
//! kept until they are signed.

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

/// How long a token may take for a checkpoint.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a head that was not signed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How many closing heads wait at most; the oldest goes, since any later head covers its lines as well.
const PENDING_MOST: usize = 64;

/// `[log.ship]`: a command that receives each new checkpoint on its standard input, to store a copy elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ship {
    /// The executable, started without a shell.
    pub program: PathBuf,
    /// The arguments that it is started with.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// The command is killed after this time.
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
    /// The segment that holds its last line.
    pub(super) segment: u64,
    /// It closes that segment.
    pub(super) closing: bool,
}

/// Why a checkpoint is not kept or not shipped.
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
    /// Works until the writer has gone and its last head is signed, or has been tried.
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
                // A newer head ends the pause early: it is as good a reason to try again.
                if let Ok(head) = timeout(RETRY, heads.recv()).await {
                    match head {
                        Some(head) => pending.push(head),
                        None => more = false,
                    }
                }
            }
        }
    }

    /// Signs and keeps what is pending, in order; what is done leaves the list. Returns the newest note.
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
        // The log's newest checkpoint goes first: it is never older than a segment's, unless it was rolled back.
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
            // A command that does not read its input says so by its exit status.
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
