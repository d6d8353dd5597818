//! Queue of entries waiting for the writer.
//!
//! One lock is held for a push or for taking all entries at once. A group of intents accumulates while the runtime has
//! other runnable tasks, since those that need a record can share its flush. Then the writer's thread is woken once. No
//! group waits for a fixed time. If the last group had a single intent, requests come one at a time, and the writer is
//! woken at once.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, oneshot},
    task::yield_now,
};

use super::{
    LogError,
    record::{Line, OutcomeLine},
};

/// Maximum number of waiting outcomes per slot for an intent: outcomes are kept while the disk fails, but bounded.
const OUTCOMES_PER_INTENT: usize = 4;
/// Number of outcomes that wake the writer without an intent.
const OUTCOMES_WAKE: usize = 256;
/// Number of rounds of the runtime's tasks for which a group accumulates. The first collects what was ready together
/// with the first intent; the others what the network or the token host has delivered meanwhile. Eight or sixteen saved
/// no more.
const ROUNDS: usize = 4;

/// An entry to be written.
#[derive(Debug)]
pub(super) enum Entry {
    /// A line that a request waits for: a certificate, a CRL or a revocation.
    Awaited {
        line: Line,
        waiter: oneshot::Sender<Result<u64, LogError>>,
    },
    Outcome(OutcomeLine),
}

/// All entries taken at once by the writer.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// No batch follows this one.
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    intents: usize,
    /// The last group had more than one intent: the next one is worth waiting for. Also at the start.
    shared: bool,
    /// The group of intents is complete; intents that arrive before the writer takes it still join it.
    gathered: bool,
    closed: bool,
    asleep: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// A group has begun, or the queue was closed.
    begun: Notify,
    /// Maximum number of waiting intents.
    capacity: usize,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State { shared: true, ..State::default() }),
            wake: Condvar::new(),
            begun: Notify::new(),
            capacity,
        }
    }

    /// Queues a line that a request waits for.
    pub(super) fn intent(&self, line: Line, waiter: oneshot::Sender<Result<u64, LogError>>) -> Result<(), LogError> {
        let mut state = self.lock();
        if state.closed {
            return Err(LogError::Closed);
        }
        if state.intents >= self.capacity {
            return Err(LogError::Unavailable("its queue is full, since the disk does not keep up".to_owned()));
        }
        let first = state.intents == 0;
        state.intents += 1;
        state.entries.push(Entry::Awaited { line, waiter });
        if first && state.shared {
            drop(state);
            self.begun.notify_one();
        } else if first {
            state.gathered = true;
            self.wake(state);
        }
        Ok(())
    }

    /// Queues an outcome; `false` if it is lost because the log is closed or the disk has failed for too long.
    pub(super) fn outcome(&self, line: OutcomeLine) -> bool {
        let mut state = self.lock();
        let outcomes = state.entries.len() - state.intents;
        if state.closed || outcomes >= self.capacity.saturating_mul(OUTCOMES_PER_INTENT) {
            return false;
        }
        state.entries.push(Entry::Outcome(line));
        if outcomes >= OUTCOMES_WAKE {
            self.wake(state);
        }
        true
    }

    /// Wakes the writer for each group of intents, until the queue is closed. Runs as a task of the runtime that queues
    /// them.
    pub(super) async fn gather(&self) {
        loop {
            self.begun.notified().await;
            for _ in 0..ROUNDS {
                yield_now().await;
            }
            let mut state = self.lock();
            if state.closed {
                return;
            }
            // Unless the writer has taken them meanwhile for another reason.
            state.gathered = state.intents > 0;
            if state.gathered {
                self.wake(state);
            }
        }
    }

    /// Rejects further entries.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake(state);
        self.begun.notify_one();
    }

    /// Takes all entries once a group of intents is complete, there are many outcomes, the queue is closed, or time is
    /// up.
    pub(super) fn take(&self, patience: Duration) -> Batch {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while !state.gathered && !state.closed && state.entries.len() < OUTCOMES_WAKE {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.asleep = true;
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.asleep = false;
        }
        state.shared = state.intents > 1;
        state.intents = 0;
        state.gathered = false;
        Batch { entries: std::mem::take(&mut state.entries), closed: state.closed }
    }

    /// Number of waiting entries.
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic under this lock can leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
