//! Applies the store's document to this replica, now and at each change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Revocations, Store,
    state::{Change, Document},
    store::StoreError,
};
use audit_log::{
    Log,
    record::{REVOCATION_VERSION, RevocationLine},
    timestamp,
};
use pki::crl::SerialNumber;
use process::{clock, error::chain, files};

/// Delay before the store is read again after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// The file in the issuance log's directory that stores the last applied revision.
const APPLIED: &str = "applied-revocations";

/// Why this replica does not apply the store's document.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The document is older than one that was applied.
    #[error(
        "{place}: it has revision {found}, and this replica has applied revision {applied}; restore the newer document, or, \
         if it was replaced on purpose, remove {} and restart the daemon", file.display()
    )]
    Older {
        /// The store.
        place: String,
        /// Its revision.
        found: u64,
        /// The applied revision.
        applied: u64,
        /// The file that stores the applied revision.
        file: PathBuf,
    },
    /// The applied revision cannot be read or stored.
    #[error("{}: {source}; make it readable and writable for the daemon's user", file.display())]
    Applied {
        /// The file.
        file: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// Follows a store.
#[derive(Debug)]
pub struct Follower {
    store: Arc<dyn Store>,
    revocations: Revocations,
    log: Log,
    file: PathBuf,
    applied: Option<u64>,
}

impl Follower {
    /// Applies the documents of a store to `revocations`, and records each change in the log of this replica, whose
    /// directory keeps the last applied revision.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, revocations: Revocations, log: Log, directory: &Path) -> Self {
        Self { store, revocations, log, file: directory.join(APPLIED), applied: None }
    }

    /// Runs until dropped; `report` gets the result of each reading.
    pub async fn run(mut self, mut report: impl FnMut(Result<u64, String>) + Send) {
        loop {
            match self.apply().await {
                Ok(revision) => {
                    report(Ok(revision));
                    self.store.changed().await;
                }
                Err(error) => {
                    report(Err(chain(&error)));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Reads the document and applies it. Returns its revision.
    ///
    /// # Errors
    /// If it cannot be read, or is older than the last one; the last state stays in use.
    pub async fn apply(&mut self) -> Result<u64, FollowError> {
        let document = self.store.read().await?.document;
        let applied = match self.applied {
            Some(applied) => applied,
            None => self.read_applied()?,
        };
        if document.revision < applied {
            let (place, file) = (self.store.place(), self.file.clone());
            return Err(FollowError::Older { place, found: document.revision, applied, file });
        }
        // Before anything that may fail: a revocation takes effect at once.
        self.revocations.set(document.clone());
        if document.revision > applied || self.applied.is_none() {
            self.record(&document, applied).await;
            let text = format!("{}\n", document.revision);
            let failed = |source| FollowError::Applied { file: self.file.clone(), source };
            files::replace(&self.file, text.as_bytes()).map_err(failed)?;
        }
        self.applied = Some(document.revision);
        Ok(document.revision)
    }

    fn read_applied(&self) -> Result<u64, FollowError> {
        let failed = |source| FollowError::Applied { file: self.file.clone(), source };
        match std::fs::read_to_string(&self.file) {
            Ok(text) => text.trim().parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed(error)),
        }
    }

    /// Records the changes after a revision. They are in effect already, so a log that cannot be written does not undo
    /// them.
    async fn record(&self, document: &Document, after: u64) {
        for (change, serials) in document.changes_after(after) {
            tracing::warn!(
                revision = change.revision,
                by = change.by,
                action = ?change.action,
                selector = change.selector,
                reason = %change.reason,
                certificates = serials.len(),
                "revocations changed"
            );
            if let Err(error) = self.log.record_revocation(line(change, &serials)).await {
                tracing::error!(%error, revision = change.revision, "a revocation is not in the issuance log");
            }
        }
    }
}

fn line(change: &Change, serials: &[&SerialNumber]) -> RevocationLine {
    RevocationLine {
        v: REVOCATION_VERSION,
        line: 0,
        time: timestamp::format(clock::now()),
        revision: change.revision,
        changed: timestamp::format(super::state::time(change.at)),
        by: change.by.clone(),
        action: change.action,
        selector: change.selector.clone(),
        reason: change.reason.as_str().to_owned(),
        block: change.block,
        serials: serials.iter().map(ToString::to_string).collect(),
    }
}
