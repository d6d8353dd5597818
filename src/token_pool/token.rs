//! One token as the pool's state sees it: its breaker, and who may have a request. What is in flight to its host is in
//! `in_flight`, what the host tells of itself in `told`.

mod in_flight;
mod told;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) use in_flight::{Pending, Trial};

use super::{health::Phase, job::Job};
use token::calls;
use token_host::protocol::{Fingerprint, Kind, Status};

/// How long a token that has failed must be half-open without a request before it counts as ready: where requests
/// come, the first of them decides sooner.
const HOLD: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Token {
    pub(super) name: Arc<str>,
    pub(super) phase: Phase,
    pub(super) reason: String,
    pub(super) since: Instant,
    /// Counts the hosts that this token has had: an answer to an earlier one is not mistaken for this one's.
    pub(super) host: u64,
    pub(super) linked: bool,
    pub(super) status: Status,
    /// How its hosts' calls of the module went, all hosts of this token together.
    pub(super) calls: calls::Sum,
    /// The host that has told it.
    told_by: u64,
    /// The host is to be replaced.
    pub(super) replace: bool,
    pub(super) opened: HashSet<Fingerprint>,
    pub(super) outstanding: HashMap<u64, Pending>,
    pub(super) jobs: usize,
    pub(super) outbox: Vec<u8>,
    /// When the host last answered, or was first asked after it had answered everything.
    pub(super) progress: Instant,
    pub(super) trial: Option<Trial>,
    /// It was out of service, and no real signature of its has verified since.
    distrusted: bool,
    /// Wrong signatures in a row.
    pub(super) wrong: u32,
    /// Requests in a row that it could not do, although it works.
    pub(super) refusals: u32,
    window: usize,
    correlation: u64,
}

impl Token {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            phase: Phase::Starting,
            reason: "its host is being started".to_owned(),
            since: Instant::now(),
            host: 0,
            linked: false,
            status: Status::default(),
            calls: calls::Sum::default(),
            told_by: 0,
            replace: false,
            opened: HashSet::new(),
            outstanding: HashMap::new(),
            jobs: 0,
            outbox: Vec::new(),
            progress: Instant::now(),
            trial: None,
            distrusted: false,
            wrong: 0,
            refusals: 0,
            window: 0,
            correlation: 0,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.jobs
    }

    pub(super) fn has_room(&self) -> bool {
        self.phase.is_ready() && self.jobs < self.window
    }

    /// Whether it counts as able to sign. Half-open does, since a daemon that is not ready may get no request that
    /// could close the breaker; but after a failure only once no request came for a while.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        let held = |since: Instant| now.saturating_duration_since(since) >= HOLD;
        let ready = match self.phase {
            Phase::Serving => true,
            Phase::HalfOpen if self.distrusted => {
                held(self.since) && self.trial.as_ref().is_none_or(|trial| !held(trial.since))
            }
            Phase::HalfOpen => true,
            Phase::Down | Phase::PinRefused | Phase::Probing | Phase::Starting => false,
        };
        ready && !self.opened.is_empty()
    }

    /// Whether time alone may make it ready or not.
    pub(super) fn waits_for_readiness(&self) -> bool {
        self.phase == Phase::HalfOpen && self.distrusted
    }

    /// Whether it serves requests such as this one.
    pub(super) fn serves(&self, job: &Job) -> bool {
        self.phase == Phase::Serving && self.holds(job)
    }

    /// Whether it may have this request now.
    pub(super) fn may(&self, job: &Job) -> bool {
        self.has_room() && self.holds(job) && (self.phase == Phase::Serving || !job.is_real() || self.trial.is_none())
    }

    fn holds(&self, job: &Job) -> bool {
        !job.avoids(&self.name)
            && match job.kind {
                Kind::Canary => !self.status.canary_key.is_empty(),
                Kind::Checkpoint => !self.status.log_key.is_empty(),
                Kind::Intermediate | Kind::Leaf => self.opened.contains(&job.key),
            }
    }

    pub(super) fn link_up(&mut self) -> u64 {
        self.host += 1;
        self.linked = true;
        self.replace = false;
        self.window = 0;
        self.progress = Instant::now();
        self.host
    }

    /// Takes everything back from a host that is gone, the youngest first.
    pub(super) fn link_down(&mut self, phase: Phase, reason: &str) -> Vec<Job> {
        self.distrusted |= self.phase.is_ready();
        self.linked = false;
        self.host += 1;
        self.outbox.clear();
        self.opened.clear();
        self.trial = None;
        self.wrong = 0;
        self.jobs = 0;
        self.set(phase, reason);
        let mut pending: Vec<_> = self.outstanding.drain().collect();
        pending.sort_unstable_by_key(|(correlation, _)| std::cmp::Reverse(*correlation));
        let jobs = pending.into_iter().filter_map(|(_, pending)| match pending {
            Pending::Control(_) | Pending::TakenOver(_) => None,
            Pending::Job { job, .. } => Some(*job),
        });
        jobs.collect()
    }

    /// Opens the breaker: no real request until a probe has passed.
    pub(super) fn trip(&mut self, reason: &str, replace: bool) {
        self.trial = None;
        self.distrusted = true;
        self.wrong = 0;
        self.replace |= replace;
        self.set(Phase::Probing, reason);
    }

    pub(super) fn half_open(&mut self) {
        if self.linked && !self.replace {
            self.trial = None;
            self.set(Phase::HalfOpen, "its canary signs; waits for a real request to sign");
        }
    }

    /// Closes the breaker.
    pub(super) fn serve(&mut self) {
        self.trial = None;
        self.distrusted = false;
        self.wrong = 0;
        self.refusals = 0;
        self.set(Phase::Serving, "");
    }

    fn set(&mut self, phase: Phase, reason: &str) {
        if self.phase != phase {
            tracing::info!(token = &*self.name, from = self.phase.as_str(), to = phase.as_str(), reason, "token");
            self.phase = phase;
            self.since = Instant::now();
        }
        if self.reason != reason {
            self.reason = reason.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_counts_as_ready_at_the_start_and_later_only_when_no_request_decides() {
        let mut token = Token::new("one".into());
        token.link_up();
        token.half_open();
        let now = Instant::now();
        assert!(!token.is_ready(now), "it holds no key");
        token.opened.insert([1; 32]);
        assert!(token.is_ready(now));
        token.trip("a request failed", false);
        assert!(!token.is_ready(now + HOLD));
        token.half_open();
        let since = token.since;
        assert!(!token.is_ready(since) && !token.is_ready(since + HOLD / 2));
        assert!(token.is_ready(since + HOLD), "nobody asked, and nobody will");
        let asked = since + HOLD * 2;
        token.trial = Some(Trial { correlation: 1, since: asked, taken_over: false });
        assert!(token.is_ready(asked), "the request decides in a moment");
        assert!(!token.is_ready(asked + HOLD), "the request hangs");
        token.serve();
        assert!(token.is_ready(asked + HOLD));
        token.link_down(Phase::Down, "gone");
        assert!(!token.is_ready(asked + HOLD));
        token.link_up();
        token.opened.insert([1; 32]);
        token.half_open();
        assert!(!token.is_ready(token.since), "it was away, and has proven nothing yet");
    }
}
