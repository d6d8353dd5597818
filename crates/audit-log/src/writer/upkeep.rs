//! The writer's work between groups: new segments, tree heads to be signed, retention.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    super::{checkpoint::Checkpoint, checkpointer::Head, retention, segment::Seal},
    BACKOFF, Target, Writer,
    target::save_hashes,
};

/// Interval at which retention checks for old segments.
const RETENTION_EVERY: Duration = Duration::from_secs(600);

impl Writer {
    /// Seals a segment that is large enough and begins the next one.
    pub(super) fn rotate(&mut self) {
        let Target::Open(segment) = &mut self.target else { return };
        if segment.open.bytes < self.settings.segment_bytes {
            return;
        }
        self.head(true);
        let Target::Open(segment) = &mut self.target else { return };
        let open = std::mem::take(&mut segment.open);
        // Release the space reserved after the last line.
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

    /// Requests a signature of the tree head if it is due or forced. The leaf hashes below it are made durable first.
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
        // Without a signer, the channel has no receiver.
        let full = segment.open.bytes >= self.settings.segment_bytes;
        let _ = self.heads.send(Head { checkpoint, segment: segment.open.first, closing: full });
    }

    pub(super) fn retire(&mut self) {
        if self.retention.elapsed() >= RETENTION_EVERY {
            self.retention = Instant::now();
            self.retire_now();
        }
    }

    /// Removes the lines of segments that are too old, after recording that in the log.
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
