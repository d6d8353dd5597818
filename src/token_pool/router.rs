//! Routes requests to tokens: to the one with the least work, or into a queue.
//!
//! There is no lock over all tokens. Requests are routed by the tokens' views, which need no lock, and the chosen token
//! decides under its own. Locks are taken in this order: a token, of which only one is locked at a time, then the
//! queues. What concerns other tokens, and the health, follows once the token is unlocked.

mod answers;
mod connections;
mod trial;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Settings, Snapshot,
    health::{Phase, PoolHealth},
    job::Job,
    queue::Queues,
    token::{State, Token},
};
use crate::signer::SignError;
use token::call_metrics::Calls;
use token_host::protocol::{Fingerprint, Kind};

/// The tokens, and the requests that wait for them.
#[derive(Debug)]
pub(super) struct Router {
    /// In the order of the configuration.
    tokens: Vec<Arc<Token>>,
    queues: Mutex<Queues>,
    /// CA keys that each token must hold.
    keys: Mutex<Vec<Fingerprint>>,
    closing: AtomicBool,
    pub(super) ending: CancellationToken,
    health: watch::Sender<PoolHealth>,
    recovery_wait: Duration,
}

/// Why requests fail once the pool is closed.
const ENDING: &str = "the daemon is ending";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    pub(super) fn new(settings: &Settings) -> Self {
        let token = |token: &super::TokenSettings| Arc::new(Token::new(Arc::clone(&token.name), token.log_only));
        let router = Self {
            tokens: settings.tokens.iter().map(token).collect(),
            queues: Mutex::new(Queues::new(settings.queue)),
            keys: Mutex::default(),
            closing: AtomicBool::new(false),
            ending: CancellationToken::new(),
            health: watch::Sender::new(PoolHealth { tokens: Vec::new(), log_key: None }),
            recovery_wait: settings.recovery_wait,
        };
        router.publish();
        router
    }

    /// The tokens in the order of the configuration.
    pub(super) fn tokens(&self) -> &[Arc<Token>] {
        &self.tokens
    }

    fn token(&self, name: &Arc<str>) -> Option<&Token> {
        self.tokens.iter().map(|token| &**token).find(|token| token.name == *name)
    }

    fn current_health(&self) -> PoolHealth {
        let now = Instant::now();
        PoolHealth {
            tokens: self.tokens.iter().map(|token| token.lock().health(now)).collect(),
            log_key: self.has_log_key(),
        }
    }

    /// Reports the health if it has changed. No token may be locked.
    fn publish(&self) {
        // Read within, so that of two threads the one that publishes later has read later.
        self.health.send_if_modified(|old| {
            let health = self.current_health();
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

    /// The tokens that may sign checkpoints: the one that does nothing else, if there is one.
    fn of_log(&self) -> impl Iterator<Item = &Token> {
        let dedicated = self.tokens.iter().any(|token| token.log_only);
        self.tokens.iter().map(|token| &**token).filter(move |token| token.log_only || !dedicated)
    }

    /// Whether a token has a log key; `None` while that is not known.
    fn has_log_key(&self) -> Option<bool> {
        self.of_log().filter_map(|token| token.view().has_log_key).reduce(|one, other| one || other)
    }

    /// Whether all tokens reject their PIN, so that waiting does not help.
    fn all_pins_refused(&self) -> bool {
        self.tokens.iter().filter(|token| !token.log_only).all(|token| token.phase() == Phase::PinRefused)
    }

    /// Whether another token serves such a request.
    fn others_serve(&self, token: &Token, job: &Job) -> bool {
        self.tokens.iter().any(|other| !other.is(token) && other.serves(job))
    }

    /// Whether a token may get a request now. The token that failed it last is used again only if no other serves.
    fn may(&self, token: &Token, job: &Job) -> bool {
        token.may(job)
            && (job.kind != Kind::Checkpoint || self.of_log().any(|other| other.is(token)))
            && !(job.failed_at(&token.name) && self.others_serve(token, job))
    }

    pub(super) fn snapshot(&self) -> Vec<Snapshot> {
        let snapshot = |token: &Arc<Token>| token.counters.snapshot(Arc::clone(&token.name), token.in_flight());
        self.tokens.iter().map(snapshot).collect()
    }

    pub(super) fn calls(&self) -> Vec<Calls> {
        self.tokens.iter().map(|token| token.lock().calls.snapshot(&token.name)).collect()
    }

    pub(super) fn queued(&self) -> (usize, usize) {
        lock(&self.queues).len()
    }

    /// Whether any request has not been answered.
    pub(super) fn is_busy(&self) -> bool {
        let waiting = || self.queued() != (0, 0);
        // Twice, for a request that returns from a token to its queue meanwhile.
        waiting() || self.tokens.iter().any(|token| token.in_flight() > 0) || waiting()
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn end_hosts(&self) {
        lock(&self.queues).sweep(|_| Some(SignError::Unavailable(ENDING.to_owned())));
        self.ending.cancel();
    }

    pub(super) fn log_key(&self, name: &Arc<str>) -> Vec<u8> {
        self.token(name).map(|token| token.lock().status.log_key.clone()).unwrap_or_default()
    }

    pub(super) fn log_keys(&self) -> Vec<(Arc<str>, Vec<u8>)> {
        let keys = self.of_log().map(|token| (Arc::clone(&token.name), token.lock().status.log_key.clone()));
        keys.filter(|(_, key)| !key.is_empty()).collect()
    }

    /// Sends a request to the token with the least work, or puts it into a queue.
    pub(super) fn submit(&self, job: Job) -> Result<(), SignError> {
        let now = Instant::now();
        loop {
            self.check_open()?;
            let able = self.tokens.iter().filter(|token| self.may(token, &job));
            let Some(token) = able.min_by_key(|token| self.rank(token, &job, now)) else { break };
            let mut state = token.lock();
            // Unless another request was faster.
            if self.may(token, &job) {
                state.send_job(job, now);
                return Ok(());
            }
        }
        if self.all_pins_refused() {
            return Err(SignError::Unavailable(self.current_health().reason()));
        }
        {
            let mut queues = lock(&self.queues);
            // Under the lock: what is queued before the end is answered then.
            self.check_open()?;
            queues.push(job)?;
        }
        // A token that got room meanwhile may have found the queue empty.
        self.pump_all();
        Ok(())
    }

    fn check_open(&self) -> Result<(), SignError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(SignError::Unavailable(ENDING.to_owned()));
        }
        Ok(())
    }

    /// Removes abandoned requests, fails those that no token has served for too long, and supervises trials.
    pub(super) fn sweep(&self, now: Instant) {
        self.tend_trials(now);
        for token in &self.tokens {
            token.lock().cancel_abandoned();
        }
        if self.queued() == (0, 0) {
            return;
        }
        let hopeless = self.all_pins_refused();
        let reason = self.current_health().reason();
        lock(&self.queues).sweep(|job| {
            if self.tokens.iter().any(|token| token.serves(job)) {
                job.unroutable_since = None;
                return None;
            }
            let since = *job.unroutable_since.get_or_insert(now);
            let overdue = now.saturating_duration_since(since) >= self.recovery_wait;
            (hopeless || overdue).then(|| SignError::Unavailable(reason.clone()))
        });
        self.pump_all();
    }

    /// Gives a token as many of the waiting requests as its window permits.
    fn pump(&self, token: &Token, state: &mut State, now: Instant) {
        // Before the queues are locked, for `submit`.
        state.publish();
        let mut queues = lock(&self.queues);
        while token.has_room() {
            let Some(job) = queues.take(|job| self.may(token, job)) else { return };
            state.send_job(job, now);
            state.publish();
        }
    }

    /// Gives waiting requests to all tokens. No token may be locked.
    fn pump_all(&self) {
        let now = Instant::now();
        for token in self.tokens.iter().filter(|token| token.has_room()) {
            self.pump(token, &mut token.lock(), now);
        }
    }

    /// Puts a request that a token has returned to the front of its queue; `pump_all` must follow.
    fn put_back(&self, job: Job) {
        lock(&self.queues).put_back(job);
    }
}
