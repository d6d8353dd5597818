//! What waits for the writer.
//!
//! One lock, held for a push or for taking everything at once. A group of intents gathers while the runtime has tasks
//! that are ready to go on: those that want a record too share its flush. Then the writer's thread is called, once. No
//! group waits for a time: where nothing else is ready, it is called at once.

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
    record::{IntentLine, OutcomeLine},
};

/// How many outcomes may wait for each intent that may: outcomes are kept while the disk refuses, but not without end.
const OUTCOMES_PER_INTENT: usize = 4;
/// How many outcomes wake the writer although nobody waits for them.
const OUTCOMES_WAKE: usize = 256;
/// For how many rounds of the runtime's tasks a group gathers. One brings what is ready with its first intent; the
/// others what the network, or the token host, has meanwhile brought. Eight or sixteen saved no more.
const ROUNDS: usize = 4;

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
    /// The group of intents has gathered; those that come before the writer takes it join it.
    gathered: bool,
    closed: bool,
    asleep: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// A group begins, or the end has come.
    begun: Notify,
    /// How many intents may wait.
    capacity: usize,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), begun: Notify::new(), capacity }
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
        let first = state.intents == 0;
        state.intents += 1;
        state.entries.push(Entry::Intent { line, waiter });
        drop(state);
        if first {
            self.begun.notify_one();
        }
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

    /// Calls the writer for each group of intents, until the end. A task of the runtime whose tasks queue them.
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
            // Unless the writer has taken them meanwhile, for another reason.
            state.gathered = state.intents > 0;
            if state.gathered {
                self.wake(state);
            }
        }
    }

    /// Lets nothing more in.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake(state);
        self.begun.notify_one();
    }

    /// Takes everything, as soon as intents have gathered, there are many outcomes, the end has come, or the time is over.
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
        state.intents = 0;
        state.gathered = false;
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
