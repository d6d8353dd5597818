//! What the writer does between groups: a new segment, a tree head to be signed, lines that may go.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    super::{checkpoint::Checkpoint, checkpointer::Head, retention, segment::Seal},
    BACKOFF, Target, Writer,
    target::save_hashes,
};

/// How often retention looks for segments that are too old.
const RETENTION_EVERY: Duration = Duration::from_secs(600);

impl Writer {
    /// Seals a segment that is long enough and begins the next.
    pub(super) fn rotate(&mut self) {
        let Target::Open(segment) = &mut self.target else { return };
        if segment.open.bytes < self.settings.segment_bytes {
            return;
        }
        self.head(true);
        let Target::Open(segment) = &mut self.target else { return };
        let open = std::mem::take(&mut segment.open);
        // What was reserved beyond the last line goes back to the file system.
        let _ = segment.file.set_len(open.bytes);
        let seal = Seal::new(open.first, open.bytes, &open.counters, &self.tree);
        if let Err(error) = seal.write(&self.directory, &open.hashes) {
            tracing::warn!(%error, segment = open.first, "a segment's seal could not be written; the next start will");
        }
        self.target = Target::Broken { sealed: None, at: Instant::now(), pause: BACKOFF.0 };
        if self.usable().is_ok() {
            self.retention = Instant::now();
            self.retire_now();
        }
    }

    /// Has the tree's head signed when it is time, or in any case; the leaf hashes below it are durable before.
    pub(super) fn head(&mut self, now: bool) {
        let (size, at) = self.head;
        let more = self.tree.size() - size;
        let due = more >= self.settings.checkpoint_lines || at.elapsed() >= self.settings.checkpoint_interval;
        let Target::Open(segment) = &mut self.target else { return };
        if more == 0 || !(due || now) {
            return;
        }
        if let Err(error) = save_hashes(&self.directory, segment) {
            tracing::warn!(%error, segment = segment.open.first, "the leaf hashes could not be written");
            segment.hashes = None;
        }
        self.head = (self.tree.size(), Instant::now());
        let checkpoint =
            Checkpoint { origin: self.settings.origin.clone(), size: self.tree.size(), root: self.tree.root() };
        // Without a signer nobody listens.
        let full = segment.open.bytes >= self.settings.segment_bytes;
        let _ = self.heads.send(Head { checkpoint, segment: segment.open.first, closing: full });
    }

    pub(super) fn retire(&mut self) {
        if self.retention.elapsed() >= RETENTION_EVERY {
            self.retention = Instant::now();
            self.retire_now();
        }
    }

    /// Removes the lines of segments that are too old, after the log itself says so.
    fn retire_now(&mut self) {
        let Target::Open(segment) = &self.target else { return };
        let signed = self.counts.signed.load(Ordering::Relaxed);
        let now = process::clock::now();
        let line = match retention::due(&self.directory, &self.settings, segment.open.first, signed, now) {
            Ok(Some(before)) if before > self.counters.retired_before => retention::line(before, now),
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "retention could not read the log's segments");
                return;
            }
        };
        if self.commit(vec![(line, None)])
            && let Err(error) = retention::remove(&self.directory, self.counters.retired_before, &self.counts)
        {
            tracing::warn!(%error, "a retired segment could not be removed");
        }
    }
}
