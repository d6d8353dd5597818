//! Figures about the log for metrics and the status page: atomics that are read without stopping the writer.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::segment::Counters;

/// Counters since the log was opened, unless stated otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines in the whole log.
    pub lines: u64,
    /// Intents in the whole log.
    pub intents: u64,
    /// Outcomes in the whole log.
    pub outcomes: u64,
    /// Outcomes that could not be recorded.
    pub outcomes_lost: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes of lines on disk, without those that retention removed.
    pub disk_bytes: u64,
    /// Segments, including those whose lines retention has removed.
    pub segments: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Writes or flushes that failed.
    pub flush_failures: u64,
    /// Total time of writing and flushing.
    pub flush_time: Duration,
    /// How long the current flush has been running; shows a hanging disk.
    pub flushing_for: Option<Duration>,
    /// Entries waiting for the writer.
    pub queued: usize,
    /// Lines covered by the newest signed checkpoint.
    pub checkpointed: u64,
    /// Checkpoints signed.
    pub checkpoints: u64,
    /// When the newest checkpoint was signed, or its file written if the log was opened later; `None` without one.
    pub checkpoint_time: Option<SystemTime>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    lines: AtomicU64,
    intents: AtomicU64,
    outcomes: AtomicU64,
    outcomes_lost: AtomicU64,
    bytes: AtomicU64,
    disk_bytes: AtomicU64,
    segments: AtomicU64,
    flushes: AtomicU64,
    flush_failures: AtomicU64,
    flush_nanos: AtomicU64,
    flushing: Mutex<Option<Instant>>,
    pub(super) signed: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    /// Seconds since the epoch; 0 means never.
    checkpoint_time: AtomicU64,
}

impl Counts {
    pub(super) fn new(lines: u64, counters: &Counters, segments: u64, signed: u64) -> Self {
        let counts = Self { segments: segments.into(), signed: signed.into(), ..Self::default() };
        counts.lines(lines, counters, 0);
        counts
    }

    /// Sets what was found when the log was opened: bytes of lines, and the time of the newest checkpoint.
    pub(super) fn found(&self, bytes: u64, checkpoint: Option<SystemTime>) {
        self.disk_bytes.store(bytes, Relaxed);
        if let Some(time) = checkpoint {
            self.checkpoint_at(time);
        }
    }

    /// Subtracts bytes of lines that were removed from disk.
    pub(super) fn removed(&self, bytes: u64) {
        // Relaxed and saturating: only the writer changes it.
        self.disk_bytes.store(self.disk_bytes.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// Records when the newest checkpoint was signed.
    pub(super) fn checkpoint_at(&self, time: SystemTime) {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.checkpoint_time.store(seconds, Relaxed);
    }

    pub(super) fn lines(&self, lines: u64, counters: &Counters, bytes: usize) {
        self.lines.store(lines, Relaxed);
        self.intents.store(counters.intents, Relaxed);
        self.outcomes.store(counters.outcomes, Relaxed);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes, Relaxed);
        self.disk_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn outcomes_lost(&self, lost: usize) {
        self.outcomes_lost.fetch_add(u64::try_from(lost).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn segment(&self) {
        self.segments.fetch_add(1, Relaxed);
    }

    pub(super) fn flush_began(&self) {
        *self.flushing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn flush_ended(&self, well: bool) {
        let began = self.flushing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let took = began.map(|began| began.elapsed()).unwrap_or_default();
        self.flush_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        let counter = if well { &self.flushes } else { &self.flush_failures };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self, queued: usize) -> Stats {
        Stats {
            lines: self.lines.load(Relaxed),
            intents: self.intents.load(Relaxed),
            outcomes: self.outcomes.load(Relaxed),
            outcomes_lost: self.outcomes_lost.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            disk_bytes: self.disk_bytes.load(Relaxed),
            segments: self.segments.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            flush_failures: self.flush_failures.load(Relaxed),
            flush_time: Duration::from_nanos(self.flush_nanos.load(Relaxed)),
            flushing_for: self.flushing.lock().unwrap_or_else(PoisonError::into_inner).map(|began| began.elapsed()),
            queued,
            checkpointed: self.signed.load(Relaxed),
            checkpoints: self.checkpoints.load(Relaxed),
            checkpoint_time: match self.checkpoint_time.load(Relaxed) {
                0 => None,
                seconds => Some(UNIX_EPOCH + Duration::from_secs(seconds)),
            },
        }
    }
}
