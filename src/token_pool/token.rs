//! One token of the pool, which owns all that the pool knows of it.
//!
//! Its [`State`] has a lock of its own, which is held for moments and never across waiting. The state of another token
//! is never locked meanwhile: what others need to know is in the token's [`View`], which is read without a lock.
//! `in_flight` has the requests that its host has not answered, `report` what the host reports about itself.

mod in_flight;
mod outbox;
mod report;
mod view;

use std::{
    collections::{BTreeSet, HashMap},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub(super) use in_flight::{Pending, Trial};
use outbox::Outbox;
use tokio::sync::Notify;
use view::Published;
pub(super) use view::View;

use super::{
    breaker::{Action, Breaker, Event},
    counters::{Counters, count},
    health::{Phase, TokenHealth},
    job::Job,
};
use token::calls;
use token_host::protocol::{Fingerprint, Status};

/// How long a token that has failed must be half-open without a request before it counts as ready. If there are
/// requests, the first of them decides sooner.
const READY_WITHOUT_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// What the tasks of one token use without its lock.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) name: Arc<str>,
    /// It signs checkpoints only, and need not hold the CA's key.
    pub(super) log_only: bool,
    pub(super) counters: Counters,
    /// Wakes the writer: the outbox is not empty.
    pub(super) writer: Notify,
    /// Wakes the supervisor: the token's state has changed.
    pub(super) supervisor: Notify,
    published: Published,
}

/// A token and its state. Compared by identity.
#[derive(Debug)]
pub(super) struct Token {
    handle: Arc<Handle>,
    state: Mutex<State>,
}

impl Deref for Token {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Token {
    pub(super) fn new(name: Arc<str>, log_only: bool) -> Self {
        let (counters, published) = (Counters::default(), Published::default());
        let (writer, supervisor) = (Notify::new(), Notify::new());
        let handle = Arc::new(Handle { name, log_only, counters, writer, supervisor, published });
        Self { state: Mutex::new(State::new(Arc::clone(&handle))), handle }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn view(&self) -> View {
        self.published.view()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.published.in_flight()
    }

    pub(super) fn phase(&self) -> Phase {
        self.view().phase
    }

    pub(super) fn has_room(&self) -> bool {
        self.view().has_room(self.in_flight())
    }

    /// Whether it serves requests such as this one.
    pub(super) fn serves(&self, job: &Job) -> bool {
        let view = self.view();
        view.phase == Phase::Serving && self.holds(&view, job)
    }

    /// Whether it may have this request now.
    pub(super) fn may(&self, job: &Job) -> bool {
        let view = self.view();
        view.has_room(self.in_flight())
            && self.holds(&view, job)
            && (view.phase == Phase::Serving || !job.is_real() || !view.on_trial)
    }

    fn holds(&self, view: &View, job: &Job) -> bool {
        !job.avoids(&self.name) && view.has_key_for(job)
    }
}

/// The locked state of a token. Its view is published before it is unlocked.
#[derive(Debug)]
pub(super) struct Locked<'a>(MutexGuard<'a, State>);

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}

/// Where a host has found a CA key.
#[derive(Clone, Debug)]
pub(super) struct FoundKey {
    /// For the next host; see [`Reply::Opened`](token_host::protocol::Reply::Opened).
    pub(super) known: Vec<u8>,
    /// For people.
    pub(super) how: String,
}

/// The state of a token.
#[derive(Debug)]
pub(super) struct State {
    handle: Arc<Handle>,
    pub(super) breaker: Breaker,
    /// Number of the current host: a reply of an earlier host is not attributed to it.
    pub(super) host: u64,
    pub(super) connected: bool,
    pub(super) status: Status,
    /// PKCS#11 call statistics of all hosts of this token.
    pub(super) calls: calls::Sum,
    /// The host that sent `status`.
    reported_by: u64,
    /// DER SubjectPublicKeyInfo of the canary key whose signature verified last; empty if none has.
    pub(super) verified_canary: Vec<u8>,
    /// CA keys that were found in the token.
    pub(super) opened: BTreeSet<Fingerprint>,
    /// Where CA keys were found, also by earlier hosts.
    pub(super) found: HashMap<Fingerprint, FoundKey>,
    /// Why a CA key was not found; empty if the last one was.
    pub(super) lacks: String,
    pub(super) outstanding: HashMap<u64, Pending>,
    pub(super) jobs: usize,
    outbox: Outbox,
    /// When the host last replied, or got its first request after it had answered everything.
    pub(super) last_reply_at: Instant,
    pub(super) trial: Option<Trial>,
    window: usize,
    correlation: u64,
}

impl State {
    fn new(handle: Arc<Handle>) -> Self {
        let now = Instant::now();
        Self {
            handle,
            breaker: Breaker::new(now),
            host: 0,
            connected: false,
            status: Status::default(),
            calls: calls::Sum::default(),
            reported_by: 0,
            verified_canary: Vec::new(),
            opened: BTreeSet::new(),
            found: HashMap::new(),
            lacks: String::new(),
            outstanding: HashMap::new(),
            jobs: 0,
            outbox: Outbox::default(),
            last_reply_at: now,
            trial: None,
            window: 0,
            correlation: 0,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.breaker.phase()
    }

    pub(super) fn health(&self, now: Instant) -> TokenHealth {
        TokenHealth {
            token: Arc::clone(&self.handle.name),
            phase: self.phase(),
            reason: self.reason().to_owned(),
            since: self.breaker.since(),
            keys: self.opened.len(),
            found: self.opened.iter().filter_map(|key| Some(self.found.get(key)?.how.clone())).collect(),
            log_only: self.handle.log_only,
            ready: self.is_ready(now),
        }
    }

    /// Why it does not sign. A token that works and lacks the key waits in vain for a request that proves it.
    fn reason(&self) -> &str {
        let without_key = self.phase().is_ready() && self.opened.is_empty();
        if without_key && !self.lacks.is_empty() { &self.lacks } else { self.breaker.reason() }
    }

    /// Whether it counts as able to sign. Half-open does, since a daemon that is not ready may get no request that
    /// could close the breaker; after a failure, only once no request has arrived for a while.
    fn is_ready(&self, now: Instant) -> bool {
        let waited = |since: Instant| now.saturating_duration_since(since) >= READY_WITHOUT_REQUEST_TIMEOUT;
        let ready = match self.phase() {
            Phase::Serving => true,
            Phase::HalfOpen if self.breaker.is_distrusted() => {
                waited(self.breaker.since()) && self.trial.as_ref().is_none_or(|trial| !waited(trial.since))
            }
            Phase::HalfOpen => true,
            Phase::Down | Phase::PinRefused | Phase::Probing | Phase::Starting => false,
        };
        ready && !self.opened.is_empty()
    }

    /// Whether readiness may change with time alone.
    pub(super) fn waits_for_readiness(&self) -> bool {
        self.phase() == Phase::HalfOpen && self.breaker.is_distrusted()
    }

    /// A key is not where it was found.
    pub(super) fn lost(&mut self, key: &Fingerprint) {
        self.opened.remove(key);
        self.found.remove(key);
    }

    /// A connection to a new host is established; returns the host's number.
    pub(super) fn connected(&mut self) -> u64 {
        self.host += 1;
        self.connected = true;
        self.window = 0;
        self.last_reply_at = Instant::now();
        self.apply(Event::Connected, "");
        self.host
    }

    /// Takes all requests back from a host that is gone, the newest first.
    pub(super) fn disconnected(&mut self, event: Event, reason: &str) -> Vec<Job> {
        self.connected = false;
        self.host += 1;
        self.outbox = Outbox::default();
        self.opened.clear();
        self.jobs = 0;
        self.apply(event, reason);
        let mut pending: Vec<_> = self.outstanding.drain().collect();
        pending.sort_unstable_by_key(|(correlation, _)| std::cmp::Reverse(*correlation));
        let jobs = pending.into_iter().filter_map(|(_, pending)| match pending {
            Pending::Control(_) | Pending::TakenOver(_) => None,
            Pending::Job { job, .. } => Some(*job),
        });
        jobs.collect()
    }

    /// Applies an event to the breaker and performs its actions, except those for a session or a key.
    pub(super) fn apply(&mut self, event: Event, reason: &str) -> &'static [Action] {
        let from = self.phase();
        let actions = self.breaker.apply(event, reason, Instant::now());
        for action in actions {
            match action {
                Action::TakeOutOfService => count(&self.handle.counters.outages),
                Action::EndTrial => self.trial = None,
                Action::DelayProbe
                | Action::DropSession
                | Action::ForgetKey
                | Action::ForgetWrong
                | Action::ProbeNow
                | Action::Trust => {}
            }
        }
        let to = self.phase();
        if from != to {
            let reason = self.breaker.reason();
            tracing::info!(
                token = &*self.handle.name,
                from = from.as_str(),
                to = to.as_str(),
                reason,
                "token state changed"
            );
            self.handle.supervisor.notify_one();
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = READY_WITHOUT_REQUEST_TIMEOUT;

    #[test]
    fn half_open_token_is_ready_at_the_start_and_after_a_fault_only_without_requests() {
        let token = Token::new("one".into(), false);
        let mut token = token.lock();
        token.connected();
        token.apply(Event::ProbePassed, "");
        let now = Instant::now();
        assert!(!token.is_ready(now), "it holds no key");
        token.opened.insert([1; 32]);
        assert!(token.is_ready(now));
        token.apply(Event::TokenFault, "a request failed");
        assert!(!token.is_ready(now + TIMEOUT));
        token.apply(Event::ProbePassed, "");
        let since = token.breaker.since();
        assert!(!token.is_ready(since) && !token.is_ready(since + TIMEOUT / 2));
        assert!(token.is_ready(since + TIMEOUT), "no request has come");
        let asked = since + TIMEOUT * 2;
        token.trial = Some(Trial { correlation: 1, since: asked, taken_over: false });
        assert!(token.is_ready(asked), "the request may still decide");
        assert!(!token.is_ready(asked + TIMEOUT), "the request hangs");
        token.apply(Event::SignatureVerified, "");
        assert!(token.is_ready(asked + TIMEOUT));
        token.disconnected(Event::Disconnected, "gone");
        assert!(!token.is_ready(asked + TIMEOUT));
        token.connected();
        token.opened.insert([1; 32]);
        token.apply(Event::ProbePassed, "");
        assert!(!token.is_ready(token.breaker.since()), "the new host has not signed yet");
    }
}
