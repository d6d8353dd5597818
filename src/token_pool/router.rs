//! State of the router, shared by callers, writers, readers and supervisors: one mutex, never held across I/O.

mod answers;
mod connections;
mod trial;

use std::{
    ops::{Index, IndexMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Settings, Snapshot,
    health::{Phase, PoolHealth},
    job::Job,
    queue::Queues,
    token::{Handle, Token, TokenId},
};
use crate::signer::SignError;
use token::call_metrics::Calls;
use token_host::protocol::{Fingerprint, Kind, Reply, Request};

/// The tokens in the order of the configuration.
#[derive(Debug)]
struct Tokens(Vec<Token>);

impl Tokens {
    fn new(settings: &Settings) -> Self {
        let tokens = (0..).map(TokenId).zip(&settings.tokens);
        Self(tokens.map(|(id, token)| Token::new(id, Arc::clone(&token.name), token.log_only)).collect())
    }

    fn ids(&self) -> impl Iterator<Item = TokenId> + use<> {
        (0..self.0.len()).map(TokenId)
    }

    fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter()
    }

    fn health(&self) -> PoolHealth {
        let now = Instant::now();
        PoolHealth { tokens: self.iter().map(|token| token.health(now)).collect(), log_key: self.log_key() }
    }

    /// The tokens that may sign checkpoints: the one that does nothing else, if there is one.
    fn of_log(&self) -> impl Iterator<Item = &Token> {
        let dedicated = self.iter().any(|token| token.handle.log_only);
        self.iter().filter(move |token| token.handle.log_only || !dedicated)
    }

    /// Whether a token has a log key; `None` while that is not known.
    fn log_key(&self) -> Option<bool> {
        self.of_log().filter_map(Token::has_log_key).reduce(|one, other| one || other)
    }

    /// Whether all tokens reject their PIN, so that waiting does not help.
    fn all_pins_refused(&self) -> bool {
        self.iter().filter(|token| !token.handle.log_only).all(|token| token.phase() == Phase::PinRefused)
    }

    /// Whether another token serves such a request.
    fn others_serve(&self, id: TokenId, job: &Job) -> bool {
        self.iter().any(|token| token.handle.id != id && token.serves(job))
    }

    /// Whether a token may get a request now. The token that failed it last is used again only if no other serves.
    fn may(&self, id: TokenId, job: &Job) -> bool {
        let token = &self[id];
        let dedicated = job.kind != Kind::Checkpoint || self.of_log().any(|token| token.handle.id == id);
        dedicated && token.may(job) && !(job.failed_at(token.name()) && self.others_serve(id, job))
    }
}

impl Index<TokenId> for Tokens {
    type Output = Token;

    fn index(&self, id: TokenId) -> &Token {
        &self.0[id.0]
    }
}

impl IndexMut<TokenId> for Tokens {
    fn index_mut(&mut self, id: TokenId) -> &mut Token {
        &mut self.0[id.0]
    }
}

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    queues: Queues,
    /// CA keys that each token must hold.
    keys: Vec<Fingerprint>,
    closing: bool,
}

/// The pool's state.
#[derive(Debug)]
pub(super) struct Router {
    inner: Mutex<Inner>,
    pub(super) ending: CancellationToken,
    health: watch::Sender<PoolHealth>,
    recovery_wait: Duration,
}

impl Router {
    pub(super) fn new(settings: &Settings) -> Self {
        let inner = Inner {
            tokens: Tokens::new(settings),
            queues: Queues::new(settings.queue),
            keys: Vec::new(),
            closing: false,
        };
        Self {
            ending: CancellationToken::new(),
            health: watch::Sender::new(inner.tokens.health()),
            recovery_wait: settings.recovery_wait,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Inner) {
        let health = inner.tokens.health();
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

    /// The tokens' handles in the order of the configuration.
    pub(super) fn handles(&self) -> Vec<Arc<Handle>> {
        self.lock().tokens.iter().map(|token| Arc::clone(&token.handle)).collect()
    }

    pub(super) fn snapshot(&self) -> Vec<Snapshot> {
        let inner = self.lock();
        let snapshot = |token: &Token| token.handle.counters.snapshot(Arc::clone(token.name()), token.in_flight());
        inner.tokens.iter().map(snapshot).collect()
    }

    pub(super) fn calls(&self) -> Vec<Calls> {
        self.lock().tokens.iter().map(|token| token.calls.snapshot(token.name())).collect()
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
        let token = inner.tokens.iter().find(|token| token.name() == name);
        token.map(|token| token.status.log_key.clone()).unwrap_or_default()
    }

    pub(super) fn log_keys(&self) -> Vec<(Arc<str>, Vec<u8>)> {
        let inner = self.lock();
        let with_key = inner.tokens.of_log().filter(|token| !token.status.log_key.is_empty());
        with_key.map(|token| (Arc::clone(token.name()), token.status.log_key.clone())).collect()
    }

    /// Sends a request to the token with the least work, or puts it into a queue.
    pub(super) fn submit(&self, job: Job) -> Result<(), SignError> {
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.closing {
            return Err(SignError::Unavailable("the daemon is ending".to_owned()));
        }
        let tokens = &inner.tokens;
        let able = tokens.ids().filter(|&id| tokens.may(id, &job));
        match able.min_by_key(|&id| tokens.rank(id, &job, now)) {
            Some(id) => inner.tokens[id].dispatch(job, now),
            None if tokens.all_pins_refused() => return Err(SignError::Unavailable(tokens.health().reason())),
            None => inner.queues.push(job)?,
        }
        Ok(())
    }

    /// The bytes to be written; empty if there are none.
    pub(super) fn take_outbox(&self, id: TokenId, host: u64, into: &mut Vec<u8>) {
        into.clear();
        let mut inner = self.lock();
        let token = &mut inner.tokens[id];
        if token.host == host {
            std::mem::swap(&mut token.outbox, into);
        }
    }

    /// Sends a host a request of the pool itself. `None` if that host is gone.
    pub(super) fn call(&self, id: TokenId, host: u64, request: &Request<'_>) -> Option<oneshot::Receiver<Reply>> {
        let (answer, answered) = oneshot::channel();
        let mut inner = self.lock();
        let token = &mut inner.tokens[id];
        if token.host != host || !token.connected {
            return None;
        }
        token.send_control(request, answer, Instant::now()).ok()?;
        token.handle.writer.notify_one();
        Some(answered)
    }

    /// Removes abandoned requests, fails those that no token has served for too long, and supervises trials.
    pub(super) fn sweep(&self, now: Instant) {
        let mut inner = self.lock();
        self.tend_trials(&mut inner, now);
        for token in &mut inner.tokens.0 {
            if token.cancel_abandoned() {
                token.handle.writer.notify_one();
            }
        }
        let Inner { tokens, queues, .. } = &mut *inner;
        if queues.len() == (0, 0) {
            return;
        }
        let hopeless = tokens.all_pins_refused();
        let mut reason = None;
        queues.sweep(|job| {
            if tokens.iter().any(|token| token.serves(job)) {
                job.unroutable_since = None;
                return None;
            }
            let since = *job.unroutable_since.get_or_insert(now);
            if !hopeless && now.saturating_duration_since(since) < self.recovery_wait {
                return None;
            }
            let reason = reason.get_or_insert_with(|| tokens.health().reason());
            Some(SignError::Unavailable(reason.clone()))
        });
        inner.pump_all();
    }
}

impl Inner {
    /// Gives a token as many of the waiting requests as its window permits.
    fn pump(&mut self, id: TokenId, now: Instant) {
        while self.tokens[id].has_room() {
            let Some(job) = self.queues.take(|job| self.tokens.may(id, job)) else { return };
            self.tokens[id].dispatch(job, now);
        }
    }

    fn pump_all(&mut self) {
        let now = Instant::now();
        for id in self.tokens.ids() {
            self.pump(id, now);
        }
    }
}

impl Token {
    fn dispatch(&mut self, job: Job, now: Instant) {
        match self.send_job(job, now) {
            Ok(()) => self.handle.writer.notify_one(),
            Err((job, error)) => {
                job.answer(Err(SignError::Refused(error.to_string())));
            }
        }
    }
}
