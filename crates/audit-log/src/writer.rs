//! The log's only writer: a dedicated thread that serialises, writes, flushes, and then wakes the waiting requests.
//!
//! Group commit without a delay: entries that accumulate in the queue during a flush share the next one. Nothing is
//! acknowledged before it is durable. After a failed flush, the same file is not flushed again, since the kernel may
//! have dropped the pages it could not write: the segment ends at its last durable byte and the log continues in a new
//! file.

mod target;
mod upkeep;

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use target::{Ended, Segment, Staged, Waiting, begin, create, reserve, stage};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    LogError, LogHealth, Settings,
    checkpointer::Head,
    queue::{Entry, Queue},
    record::{Line, OutcomeLine},
    recover::{Open, Recovered},
    segment::{Counters, Directory, Part, Seal},
    stats::Counts,
    tree::Frontier,
};

/// Requests of a group that is durable, each with the index of its intent.
pub(super) type Durable = Vec<(oneshot::Sender<Result<u64, LogError>>, u64)>;

/// Interval at which the writer wakes up without intents: outcomes are at most this late, plus a flush.
const TICK: Duration = Duration::from_millis(250);
/// Initial and maximum delay between attempts to write to a failing disk.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Capacity in bytes that a group's buffer keeps for the next group.
const BUFFER_KEPT: usize = 1 << 20;

/// State of the file being written.
#[derive(Debug)]
enum Target {
    /// The disk failed; the next attempt is due at a given time.
    Broken {
        sealed: Option<Ended>,
        at: Instant,
        pause: Duration,
    },
    Open(Segment),
}

#[derive(Debug)]
pub(super) struct Writer {
    settings: Settings,
    directory: Directory,
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    health: watch::Sender<LogHealth>,
    heads: mpsc::UnboundedSender<Head>,
    durable: mpsc::UnboundedSender<Durable>,
    tree: Frontier,
    counters: Counters,
    target: Target,
    buffer: Vec<u8>,
    /// Outcomes received while the disk failed.
    backlog: Vec<OutcomeLine>,
    head: (u64, Instant),
    retention: Instant,
    /// Held for the lifetime of the writer.
    _lock: File,
}

/// State shared with the log's handle and the checkpointer.
pub(super) struct Links {
    pub(super) queue: Arc<Queue>,
    pub(super) counts: Arc<Counts>,
    pub(super) health: watch::Sender<LogHealth>,
    pub(super) heads: mpsc::UnboundedSender<Head>,
    pub(super) durable: mpsc::UnboundedSender<Durable>,
}

/// Notifies waiting requests that their intents are durable. It is a task of the runtime, because a thread outside of
/// the runtime would wake it once per request, and the requests of a group would no longer run together.
pub(super) async fn acknowledge(mut durable: mpsc::UnboundedReceiver<Durable>) {
    while let Some(group) = durable.recv().await {
        for (waiter, index) in group {
            // If the caller has gone, the intent stays without a signature, which is allowed.
            let _ = waiter.send(Ok(index));
        }
    }
}

impl Writer {
    /// Resumes a recovered log with a writable segment.
    pub(super) fn new(settings: Settings, recovered: Recovered, links: Links) -> io::Result<Self> {
        let Links { queue, counts, health, heads, durable } = links;
        let directory = Directory::new(&settings.directory);
        let open = match recovered.open {
            Some(open) => {
                let file = Directory::append(&directory.part(open.first, Part::Lines))?;
                reserve(&file, settings.segment_bytes);
                Segment { file, open, hashes: None }
            }
            None => create(&directory, recovered.tree.size(), settings.segment_bytes)?,
        };
        let now = Instant::now();
        Ok(Self {
            directory,
            queue,
            counts,
            health,
            heads,
            durable,
            tree: recovered.tree,
            counters: recovered.counters,
            target: Target::Open(open),
            buffer: Vec::new(),
            backlog: Vec::new(),
            head: (recovered.checkpoint.map_or(0, |c| c.size), now),
            retention: now,
            settings,
            _lock: recovered.lock,
        })
    }

    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        loop {
            let batch = self.queue.take(TICK);
            if !self.backlog.is_empty() || !batch.entries.is_empty() {
                self.entries(batch.entries);
            } else if let Target::Broken { .. } = self.target {
                // The error is in the health already.
                let _ = self.usable();
            }
            self.rotate();
            self.head(batch.closed);
            self.retire();
            if batch.closed {
                self.end();
                return;
            }
        }
    }

    /// Makes a batch durable, or reports the failure to the waiting requests.
    fn entries(&mut self, entries: Vec<Entry>) {
        let backlog = std::mem::take(&mut self.backlog);
        let usable = self.usable();
        let mut lines = Vec::with_capacity(backlog.len() + entries.len());
        lines.extend(backlog.into_iter().map(|outcome| (Line::Outcome(outcome), None)));
        let mut index = self.counters.intents;
        for entry in entries {
            match entry {
                // The caller has gone: nothing will be signed, so nothing is recorded.
                Entry::Awaited { waiter, .. } if waiter.is_closed() => {}
                Entry::Awaited { mut line, waiter } => {
                    index += u64::from(line.set_intent_index(index));
                    lines.push((line, Some(waiter)));
                }
                Entry::Outcome(outcome) => lines.push((Line::Outcome(outcome), None)),
            }
        }
        match usable {
            Ok(()) => {
                self.commit(lines);
            }
            Err(reason) => self.refuse(lines, &reason),
        }
    }

    /// Writes lines and flushes them once; `true` when they are durable.
    fn commit(&mut self, lines: Vec<Waiting>) -> bool {
        let Target::Open(segment) = &mut self.target else { return false };
        if lines.is_empty() {
            return true;
        }
        let staged = stage(self.tree.size(), lines, &mut self.buffer);
        self.counts.flush_began();
        let written = segment.file.write_all(&self.buffer).and_then(|()| segment.file.sync_data());
        self.counts.flush_ended(written.is_ok());
        match written {
            Ok(()) => {
                self.durable(staged);
                true
            }
            Err(error) => {
                let lines = staged.into_iter().map(|staged| (staged.line, staged.waiter)).collect();
                self.fail(&error);
                self.refuse(lines, &error.to_string());
                // The waiting requests have their answer; the log may continue at once.
                let _ = self.usable();
                false
            }
        }
    }

    /// Counts durable lines and wakes all requests that waited for them.
    fn durable(&mut self, staged: Vec<Staged>) {
        let Target::Open(segment) = &mut self.target else { return };
        segment.open.bytes += u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        let mut waiters = Vec::with_capacity(staged.len());
        for Staged { line, hash, waiter } in staged {
            self.tree.push(hash);
            segment.open.hashes.push(hash);
            segment.open.counters.count(&line);
            self.counters.count(&line);
            if let Some(waiter) = waiter {
                waiters.push((waiter, line.intent_index().unwrap_or_default()));
            }
        }
        self.counts.lines(self.tree.size(), &self.counters, self.buffer.len());
        match <[_; 1]>::try_from(waiters) {
            // Alone, it is woken without the task that keeps a group together.
            Ok([(waiter, index)]) => drop(waiter.send(Ok(index))),
            // Without a runtime nothing waits.
            Err(waiters) => drop(self.durable.send(waiters)),
        }
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT);
    }

    /// Fails the waiting requests; outcomes are kept for later.
    fn refuse(&mut self, lines: Vec<Waiting>, reason: &str) {
        for (line, waiter) in lines {
            if let Some(waiter) = waiter {
                let _ = waiter.send(Err(LogError::Unavailable(reason.to_owned())));
            }
            if let Line::Outcome(outcome) = line {
                self.backlog.push(outcome);
            }
        }
        let most = self.settings.queue.saturating_mul(4);
        if self.backlog.len() > most {
            let lost = self.backlog.len() - most;
            self.backlog.drain(..lost);
            self.counts.outcomes_lost(lost);
        }
    }

    /// Ends the segment at its last durable byte.
    fn fail(&mut self, error: &io::Error) {
        tracing::error!(%error, directory = %self.settings.directory.display(), "the issuance log cannot be written");
        let broken = Target::Broken { sealed: None, at: Instant::now(), pause: BACKOFF.0 };
        let Target::Open(segment) = std::mem::replace(&mut self.target, broken) else { return };
        // May fail, too: the next segment records where this one ended.
        let _ = segment.file.set_len(segment.open.bytes);
        let Open { first, bytes, hashes, counters } = segment.open;
        let seal = (!hashes.is_empty()).then(|| (Seal::new(first, bytes, &counters, &self.tree), hashes));
        let reason = error.to_string();
        self.unavailable(&reason);
        let ended = Ended { first, bytes, reason, seal };
        self.target = Target::Broken { sealed: Some(ended), at: Instant::now(), pause: BACKOFF.0 };
    }

    fn unavailable(&self, reason: &str) {
        let writable = Err(reason.to_owned());
        self.health.send_if_modified(|health| {
            let changed = health.writable != writable;
            health.writable.clone_from(&writable);
            changed
        });
    }

    /// Makes sure that a segment can be written, if an attempt is due.
    fn usable(&mut self) -> Result<(), String> {
        let Target::Broken { sealed, at, pause } = &mut self.target else { return Ok(()) };
        if Instant::now() < *at {
            let reason = self.health.borrow().writable.clone().err();
            return Err(reason.unwrap_or_else(|| "its disk refuses".to_owned()));
        }
        let first = self.tree.size();
        match begin(&self.directory, first, self.settings.segment_bytes, sealed.as_ref(), &mut self.buffer) {
            Ok((mut segment, line)) => {
                if let Some((line, hash)) = line {
                    self.tree.push(hash);
                    segment.open.hashes.push(hash);
                    segment.open.counters.count(&line);
                    self.counters.count(&line);
                }
                if let Some(Ended { first, seal: Some((seal, hashes)), .. }) = sealed
                    && let Err(error) = seal.write(&self.directory, hashes)
                {
                    tracing::warn!(%error, segment = *first, "a segment's seal could not be written; the next start will");
                }
                tracing::info!(segment = first, "the issuance log goes on in a new segment");
                self.target = Target::Open(segment);
                self.counts.segment();
                self.counts.lines(self.tree.size(), &self.counters, 0);
                self.health.send_modify(|health| health.writable = Ok(()));
                Ok(())
            }
            Err(error) => {
                // The file of the failed attempt contains no acknowledged line.
                let _ = std::fs::remove_file(self.directory.part(first, Part::Lines));
                *pause = (*pause * 2).min(BACKOFF.1);
                *at = Instant::now() + *pause;
                let reason = error.to_string();
                self.unavailable(&reason);
                Err(reason)
            }
        }
    }

    /// Releases reserved space; all lines are durable already.
    fn end(&mut self) {
        if let Target::Open(segment) = &mut self.target {
            let _ = segment.file.set_len(segment.open.bytes);
        }
        let lost = self.backlog.len();
        if lost > 0 {
            self.counts.outcomes_lost(lost);
            tracing::warn!(lost, "outcomes could not be written before the end, since the disk refused");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Also if a panic ends this thread: waiting and later requests fail because the log is closed.
        self.queue.close();
        self.queue.take(Duration::ZERO);
    }
}
