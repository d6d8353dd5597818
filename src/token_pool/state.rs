//! What the pool's callers, writers, readers and supervisors share: one mutex, held for moments and never across I/O.

mod answers;
mod hosts;
mod trial;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Settings, Snapshot,
    counters::Counters,
    health::{Phase, PoolHealth, TokenHealth},
    job::Job,
    queue::Queues,
    token::Token,
};
use crate::signer::SignError;
use token::call_metrics::Calls;
use token_host::protocol::{Fingerprint, Reply, Request};

/// What of a token needs no lock.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) name: Arc<str>,
    pub(super) counters: Counters,
    /// Wakes the writer: there is something in the outbox.
    pub(super) writer: Notify,
    /// Wakes the supervisor: the token's state has changed.
    pub(super) supervisor: Notify,
}

#[derive(Debug)]
struct Inner {
    tokens: Vec<Token>,
    queues: Queues,
    keys: Vec<Fingerprint>,
    closing: bool,
}

/// The pool's state.
#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    pub(super) fixed: Vec<Fixed>,
    pub(super) ending: CancellationToken,
    health: watch::Sender<PoolHealth>,
    recovery_wait: Duration,
}

impl Shared {
    pub(super) fn new(settings: &Settings) -> Self {
        let inner = Inner {
            tokens: settings.tokens.iter().map(|token| Token::new(Arc::clone(&token.name))).collect(),
            queues: Queues::new(settings.queue),
            keys: Vec::new(),
            closing: false,
        };
        let fixed = settings.tokens.iter().map(|token| Fixed {
            name: Arc::clone(&token.name),
            counters: Counters::default(),
            writer: Notify::new(),
            supervisor: Notify::new(),
        });
        Self {
            fixed: fixed.collect(),
            ending: CancellationToken::new(),
            health: watch::Sender::new(inner.health()),
            recovery_wait: settings.recovery_wait,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Inner) {
        let health = inner.health();
        self.health.send_if_modified(|old| {
            let changed = *old != health;
            if changed {
                *old = health;
            }
            changed
        });
    }

    pub(super) fn health(&self) -> watch::Receiver<PoolHealth> {
        self.health.subscribe()
    }

    pub(super) fn snapshot(&self) -> Vec<Snapshot> {
        let inner = self.lock();
        let pairs = self.fixed.iter().zip(&inner.tokens);
        pairs.map(|(fixed, token)| fixed.counters.snapshot(Arc::clone(&fixed.name), token.in_flight())).collect()
    }

    pub(super) fn calls(&self) -> Vec<Calls> {
        self.lock().tokens.iter().map(|token| token.calls.told(&token.name)).collect()
    }

    pub(super) fn queued(&self) -> (usize, usize) {
        self.lock().queues.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        let inner = self.lock();
        let (bulk, first) = inner.queues.len();
        inner.tokens.iter().map(Token::in_flight).sum::<usize>() + bulk + first
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
    }

    pub(super) fn end_hosts(&self) {
        self.lock().queues.sweep(|_| Some(SignError::Unavailable("the daemon is ending".to_owned())));
        self.ending.cancel();
    }

    pub(super) fn log_key(&self, name: &Arc<str>) -> Vec<u8> {
        let inner = self.lock();
        let token = inner.tokens.iter().find(|token| token.name == *name);
        token.map(|token| token.status.log_key.clone()).unwrap_or_default()
    }

    pub(super) fn log_keys(&self) -> Vec<(Arc<str>, Vec<u8>)> {
        let inner = self.lock();
        let having = inner.tokens.iter().filter(|token| !token.status.log_key.is_empty());
        having.map(|token| (Arc::clone(&token.name), token.status.log_key.clone())).collect()
    }

    /// Sends a request on to the token with the least work, or lets it wait.
    pub(super) fn submit(&self, job: Job) -> Result<(), SignError> {
        let now = Instant::now();
        if job.is_expired(now) {
            return Err(SignError::Deadline);
        }
        let mut inner = self.lock();
        if inner.closing {
            return Err(SignError::Unavailable("the daemon is ending".to_owned()));
        }
        let able = (0..inner.tokens.len()).filter(|&at| inner.may(at, &job));
        match able.min_by_key(|&at| inner.rank(at, &job, now)) {
            Some(at) => self.dispatch(&mut inner, at, job, now),
            None if inner.tokens.iter().all(|token| token.phase == Phase::PinRefused) => {
                return Err(SignError::Unavailable(inner.health().reason()));
            }
            None => inner.queues.push(job)?,
        }
        Ok(())
    }

    fn dispatch(&self, inner: &mut Inner, at: usize, job: Job, now: Instant) {
        let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { return };
        match token.send_job(job, now) {
            Ok(()) => fixed.writer.notify_one(),
            Err((job, error)) => {
                job.answer(Err(SignError::Refused(error.to_string())));
            }
        }
    }

    /// Gives a token as much of what waits as its window holds.
    fn pump(&self, inner: &mut Inner, at: usize, now: Instant) {
        while inner.tokens.get(at).is_some_and(Token::has_room) {
            let Inner { tokens, queues, .. } = &mut *inner;
            let Some(job) = queues.take(|job| Inner::may_in(tokens, at, job)) else { return };
            if job.is_expired(now) {
                job.answer(Err(SignError::Deadline));
            } else {
                self.dispatch(inner, at, job, now);
            }
        }
    }

    fn pump_all(&self, inner: &mut Inner) {
        let now = Instant::now();
        for at in 0..inner.tokens.len() {
            self.pump(inner, at, now);
        }
    }

    /// What the writer is to write; empty when there is nothing.
    pub(super) fn take_outbox(&self, at: usize, host: u64, into: &mut Vec<u8>) {
        into.clear();
        if let Some(token) = self.lock().tokens.get_mut(at).filter(|token| token.host == host) {
            std::mem::swap(&mut token.outbox, into);
        }
    }

    /// Asks something of a host besides signatures for callers. `None` when that host is gone.
    pub(super) fn call(&self, at: usize, host: u64, request: &Request<'_>) -> Option<oneshot::Receiver<Reply>> {
        let (answer, answered) = oneshot::channel();
        let mut inner = self.lock();
        let token = inner.tokens.get_mut(at).filter(|token| token.host == host && token.linked)?;
        token.send_control(request, answer, Instant::now()).ok()?;
        self.fixed.get(at)?.writer.notify_one();
        Some(answered)
    }

    /// Makes room in the queues, and looks after half-open breakers.
    pub(super) fn sweep(&self, now: Instant) {
        let mut inner = self.lock();
        self.tend_trials(&mut inner, now);
        for (token, fixed) in inner.tokens.iter_mut().zip(&self.fixed) {
            if token.cancel_abandoned() {
                fixed.writer.notify_one();
            }
        }
        let Inner { tokens, queues, .. } = &mut *inner;
        if queues.len() == (0, 0) {
            return;
        }
        let hopeless = tokens.iter().all(|token| token.phase == Phase::PinRefused);
        let mut reason = None;
        queues.sweep(|job| {
            if job.is_expired(now) {
                return Some(SignError::Deadline);
            }
            if tokens.iter().any(|token| token.serves(job)) {
                job.stranded = None;
                return None;
            }
            let since = *job.stranded.get_or_insert(now);
            if !hopeless && now.saturating_duration_since(since) < self.recovery_wait {
                return None;
            }
            let reason = reason.get_or_insert_with(|| Inner::health_of(tokens).reason());
            Some(SignError::Unavailable(reason.clone()))
        });
        self.pump_all(&mut inner);
    }
}

impl Inner {
    fn may(&self, at: usize, job: &Job) -> bool {
        Self::may_in(&self.tokens, at, job)
    }

    /// Whether a token may have a request now. The token where it failed last is asked again only when no other serves.
    fn may_in(tokens: &[Token], at: usize, job: &Job) -> bool {
        let Some(token) = tokens.get(at) else { return false };
        token.may(job)
            && !(job.failed_at(&token.name) && tokens.iter().any(|other| other.name != token.name && other.serves(job)))
    }

    fn health(&self) -> PoolHealth {
        Self::health_of(&self.tokens)
    }

    fn health_of(tokens: &[Token]) -> PoolHealth {
        let now = Instant::now();
        let tokens = tokens.iter().map(|token| TokenHealth {
            token: Arc::clone(&token.name),
            phase: token.phase,
            reason: token.reason.clone(),
            since: token.since,
            keys: token.opened.len(),
            ready: token.is_ready(now),
        });
        PoolHealth { tokens: tokens.collect() }
    }
}
