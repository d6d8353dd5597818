//! The issuance log, opened by a command for the few certificates and CRLs that it signs itself, and for ceremonies.

use std::{path::Path, sync::Arc, time::SystemTime};

use anyhow::Context;
use tokio::runtime::Runtime;

use crate::{auth::Caller, telemetry::RequestId};
use audit_log::{
    CrlIntent, Intent, Log, Outcome, Recorded,
    record::{CEREMONY_VERSION, CallerField, CeremonyLine, CeremonyPhase},
    timestamp,
};
use pki::{CrlTbs, Tbs};
use process::{clock, error::chain};

/// An open log and the runtime that it needs.
pub(in crate::cli) struct Books {
    runtime: Runtime,
    log: Log,
}

impl Books {
    /// Opens the log of a directory as its only writer; creates it if there is none.
    ///
    /// # Errors
    /// If another process has it open, or it is not as it was written.
    pub(in crate::cli) fn open(directory: &Path, origin: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let settings = audit_log::Settings::new(directory, origin);
        let (log, _opened) = {
            let _inside = runtime.enter();
            Log::open(settings, None)?
        };
        Ok(Self { runtime, log })
    }

    /// Records a certificate, then has it signed, and records the result. Returns also the index of the intent.
    ///
    /// # Errors
    /// If it cannot be recorded, and those of `sign`.
    pub(in crate::cli) fn sign<T>(
        &self,
        tbs: Tbs,
        token: &str,
        sign: impl FnOnce(&Recorded<Arc<Tbs>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, u64)> {
        let intent = Intent {
            request_id: RequestId::random().to_string(),
            time: clock::now(),
            caller: operator(),
            tbs: Arc::new(tbs),
        };
        let recorded = self.runtime.block_on(self.log.record(intent))?;
        self.finish(recorded.index(), token, sign(&recorded))
    }

    /// Records a CRL, then has it signed, and records the result. Returns also the index of the intent.
    ///
    /// # Errors
    /// If it cannot be recorded, and those of `sign`.
    pub(in crate::cli) fn sign_crl<T>(
        &self,
        tbs: CrlTbs,
        token: &str,
        sign: impl FnOnce(&Recorded<Arc<CrlTbs>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, u64)> {
        let intent = CrlIntent {
            request_id: RequestId::random().to_string(),
            time: clock::now(),
            caller: operator(),
            tbs: Arc::new(tbs),
        };
        let recorded = self.runtime.block_on(self.log.record_crl(intent))?;
        self.finish(recorded.index(), token, sign(&recorded))
    }

    /// Records the result of an intent.
    fn finish<T>(&self, index: u64, token: &str, signed: anyhow::Result<T>) -> anyhow::Result<(T, u64)> {
        let outcome = match &signed {
            Ok(_) => Outcome::Issued { token: token.to_owned() },
            Err(error) => Outcome::Failed { reason: chain(error.as_ref()) },
        };
        self.log.outcome(index, outcome);
        Ok((signed?, index))
    }

    /// The entries of a ceremony.
    pub(in crate::cli) fn ceremony(
        &self,
        act: String,
        file_sha256: String,
        participants: Vec<String>,
    ) -> CeremonyEntry<'_> {
        CeremonyEntry { books: self, act, file_sha256, participants }
    }

    /// Closes the log.
    pub(in crate::cli) fn close(self) {
        self.runtime.block_on(self.log.close());
    }
}

/// The user who runs the command.
fn operator() -> CallerField {
    (&Caller::operator(nix::unistd::getuid().as_raw())).into()
}

/// Records the phases of a ceremony.
pub(in crate::cli) struct CeremonyEntry<'a> {
    books: &'a Books,
    act: String,
    file_sha256: String,
    participants: Vec<String>,
}

impl CeremonyEntry<'_> {
    /// Records a phase durably.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub(in crate::cli) fn record(
        &self,
        phase: CeremonyPhase,
        transcript_sha256: Option<String>,
        reason: Option<String>,
    ) -> anyhow::Result<()> {
        let line = CeremonyLine {
            v: CEREMONY_VERSION,
            line: 0,
            time: timestamp::format(clock::now()),
            phase,
            act: self.act.clone(),
            file_sha256: self.file_sha256.clone(),
            participants: self.participants.clone(),
            transcript_sha256,
            reason,
        };
        Ok(self.books.runtime.block_on(self.books.log.record_ceremony(line))?)
    }
}

/// A time without its fraction of a second, as certificates have it.
///
/// # Errors
/// If the clock is before 1970.
pub(in crate::cli) fn whole_seconds(time: SystemTime) -> anyhow::Result<SystemTime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970; set it right")?;
    Ok(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs()))
}
