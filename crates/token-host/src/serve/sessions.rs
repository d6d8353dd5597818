//! The sessions of a connection, and which thread uses which.
//!
//! Where signatures are quick each thread keeps to a session of its own. Where the token is slow, further threads have
//! the next requests read and checked while the sessions sign, and whoever has a request takes the session that is free
//! first: between two signatures of a session nobody reads, checks or writes.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::lock;
use crate::vault::{Vault, Worker};

/// From when on a signature is slow. Quick ones are cheaper in runs of one thread, and leave nothing to gain here.
const SLOW: Duration = Duration::from_millis(3);

/// How many slow signatures in a row make a slow token: a single one may be of a thread that had to wait for its core.
const IN_A_ROW: usize = 8;

/// How long a thread without a session leaves the work to the others before it tries to open one again.
const NO_SESSION: Duration = Duration::from_millis(200);

/// For how many sessions one further thread reads ahead.
const SESSIONS_AHEAD: usize = 4;

pub(super) struct Sessions<'a> {
    vault: &'a Vault,
    workers: Vec<Mutex<Worker<'a>>>,
    slow: AtomicBool,
    in_a_row: AtomicUsize,
    state: Mutex<State>,
    /// A session has become free.
    freed: Condvar,
    /// The token has become slow, or the connection is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next turn.
    next: u64,
    /// The turns of threads that want a session, the first that came first.
    waiting: VecDeque<u64>,
    over: bool,
}

impl<'a> Sessions<'a> {
    pub(super) fn new(vault: &'a Vault) -> Self {
        Self {
            vault,
            workers: (1..=vault.session_count()).map(|thread| Mutex::new(Worker::new(vault, thread))).collect(),
            slow: AtomicBool::new(false),
            in_a_row: AtomicUsize::new(0),
            state: Mutex::default(),
            freed: Condvar::new(),
            changed: Condvar::new(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.workers.len()
    }

    /// How many threads read ahead for a slow token.
    pub(super) fn readers_ahead(&self) -> usize {
        self.count().div_ceil(SESSIONS_AHEAD)
    }

    /// Whether a thread may take a request for its session: that is there, or no other is either.
    pub(super) fn may_take(&self, own: usize) -> bool {
        // One that another thread uses is there.
        let Some(mut worker) = self.workers.get(own).and_then(try_lock) else { return true };
        let may = worker.has_session() || !self.any_live();
        drop(worker);
        self.tell_freed();
        may
    }

    /// Leaves the work to the others for a while.
    pub(super) fn rest() {
        std::thread::sleep(NO_SESSION);
    }

    fn any_live(&self) -> bool {
        self.vault.live.load(Ordering::Relaxed) > 0
    }

    /// Does something with a session: the thread's own, if it has one that is free, else the first that becomes free.
    pub(super) fn with<T>(&self, own: Option<usize>, what: impl FnOnce(&mut Worker<'a>) -> T) -> T {
        let mut worker = self.free(own);
        let result = what(&mut worker);
        drop(worker);
        self.tell_freed();
        result
    }

    /// Does something with each session that nobody uses, and ends at the first error.
    pub(super) fn each_idle<E>(&self, mut what: impl FnMut(&mut Worker<'a>) -> Result<(), E>) -> Result<(), E> {
        for worker in &self.workers {
            let Some(mut worker) = try_lock(worker) else { continue };
            let result = what(&mut worker);
            drop(worker);
            self.tell_freed();
            result?;
        }
        Ok(())
    }

    /// After each time that a session was locked, for however short.
    fn tell_freed(&self) {
        // Whoever waits has looked for a free one under this lock: it has seen this one, or hears of it.
        self.wake(lock(&self.state));
    }

    /// All of the few that wait: only the first of them may go on. After the lock is let go, which they want first.
    fn wake(&self, state: MutexGuard<'_, State>) {
        let nobody = state.waiting.is_empty();
        drop(state);
        if !nobody {
            self.freed.notify_all();
        }
    }

    /// First come, first served: whoever has just signed does not go before a thread that waits and has yet to wake.
    fn free(&self, own: Option<usize>) -> MutexGuard<'_, Worker<'a>> {
        let mut state = lock(&self.state);
        let turn = state.next;
        state.next += 1;
        state.waiting.push_back(turn);
        loop {
            let first = state.waiting.front() == Some(&turn);
            if let Some(worker) = self.try_free(own).filter(|worker| first || !worker.is_open()) {
                state.waiting.retain(|waiting| *waiting != turn);
                // The next one may find a session too.
                self.wake(state);
                return worker;
            }
            state = self.freed.wait_timeout(state, NO_SESSION).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn try_free(&self, own: Option<usize>) -> Option<MutexGuard<'_, Worker<'a>>> {
        let own = own.and_then(|own| self.workers.get(own)).and_then(try_lock);
        if own.as_ref().is_some_and(|own| own.is_open()) {
            return own;
        }
        let mut others = self.workers.iter().filter_map(try_lock);
        // A thread whose session is lost opens another where no other helps out; where there is none at all, anybody.
        others.find(|other| other.is_open() || (own.is_none() && !self.any_live())).or(own)
    }

    /// Notes how long the token took for a signature.
    pub(super) fn took(&self, took: Duration) {
        let in_a_row = if took < SLOW { 0 } else { self.in_a_row.load(Ordering::Relaxed) + 1 };
        // Two threads at once may count one less: it is no matter.
        self.in_a_row.store(in_a_row.min(IN_A_ROW), Ordering::Relaxed);
        let slow = in_a_row >= IN_A_ROW;
        if self.slow.load(Ordering::Relaxed) != slow {
            let _state = lock(&self.state);
            self.slow.store(slow, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    /// Waits until the token is slow; `false` once the connection is over.
    pub(super) fn wait_until_slow(&self) -> bool {
        let idle = |state: &mut State| !state.over && !self.slow.load(Ordering::Relaxed);
        let state = self.changed.wait_while(lock(&self.state), idle).unwrap_or_else(PoisonError::into_inner);
        !state.over
    }

    /// Nobody is to wait any more.
    pub(super) fn end(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }
}

fn try_lock<'s, 'a>(worker: &'s Mutex<Worker<'a>>) -> Option<MutexGuard<'s, Worker<'a>>> {
    match worker.try_lock() {
        Ok(worker) => Some(worker),
        Err(TryLockError::Poisoned(worker)) => Some(worker.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
