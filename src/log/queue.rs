//! What waits for the writer.
//!
//! One lock, held for a push or for taking everything at once; the writer's thread is woken only when it sleeps and
//! only for what somebody waits for, so that under load a group of records costs no wake-up of its own.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    LogError,
    record::{IntentLine, OutcomeLine},
};

/// How many outcomes may wait for each intent that may: outcomes are kept while the disk refuses, but not without end.
const OUTCOMES_PER_INTENT: usize = 4;
/// How many outcomes wake the writer although nobody waits for them.
const OUTCOMES_WAKE: usize = 256;

/// Something to be written.
#[derive(Debug)]
pub(super) enum Entry {
    Intent { line: Box<IntentLine>, waiter: oneshot::Sender<Result<u64, LogError>> },
    Outcome(OutcomeLine),
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// Nothing comes after this batch.
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    intents: usize,
    closed: bool,
    asleep: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// How many intents may wait.
    capacity: usize,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), capacity }
    }

    /// Queues an intent.
    pub(super) fn intent(
        &self,
        line: Box<IntentLine>,
        waiter: oneshot::Sender<Result<u64, LogError>>,
    ) -> Result<(), LogError> {
        let mut state = self.lock();
        if state.closed {
            return Err(LogError::Closed);
        }
        if state.intents >= self.capacity {
            return Err(LogError::Unavailable("its queue is full, since the disk does not keep up".to_owned()));
        }
        state.intents += 1;
        state.entries.push(Entry::Intent { line, waiter });
        self.wake(state);
        Ok(())
    }

    /// Queues an outcome; `false` when it is lost, because the log is closed or its disk has refused for long.
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

    /// Lets nothing more in.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake(state);
    }

    /// Takes everything, as soon as there is an intent, many outcomes, the end, or the time is over.
    pub(super) fn take(&self, patience: Duration) -> Batch {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.intents == 0 && !state.closed && state.entries.len() < OUTCOMES_WAKE {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.asleep = true;
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.asleep = false;
        }
        if state.intents > 0 && !state.closed {
            drop(state);
            // Once, and not for a time: where one core serves all, whoever woke this thread goes on until it waits
            // itself, and what it queues meanwhile shares the flush.
            std::thread::yield_now();
            state = self.lock();
        }
        state.intents = 0;
        Batch { entries: std::mem::take(&mut state.entries), closed: state.closed }
    }

    /// How many entries wait.
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
        // A panic under this lock is not possible that leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
