//! What others may know of a token without locking it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};

use super::{
    super::{health::Phase, job::Job},
    State,
};
use token_host::protocol::{Fingerprint, Kind};

/// The facts about a token by which requests are routed. They change with its phase and its keys, not with each
/// request.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Facts {
    pub(in super::super) phase: Phase,
    /// A real request is on trial.
    pub(super) on_trial: bool,
    /// Maximum number of requests in flight.
    window: usize,
    /// CA keys that were found in it.
    opened: BTreeSet<Fingerprint>,
    has_canary_key: bool,
    /// `None` before its first host has reported.
    pub(in super::super) has_log_key: Option<bool>,
}

/// A token's facts at one moment.
pub(in super::super) type View = Guard<Arc<Facts>>;

impl Facts {
    pub(super) fn has_room(&self, in_flight: usize) -> bool {
        self.phase.is_ready() && in_flight < self.window
    }

    pub(super) fn has_key_for(&self, job: &Job) -> bool {
        match job.kind {
            Kind::Canary => self.has_canary_key,
            Kind::Checkpoint => self.has_log_key == Some(true),
            Kind::Crl | Kind::Intermediate | Kind::Leaf => self.opened.contains(&job.key),
        }
    }
}

/// The facts as last published, and the number of requests in flight.
#[derive(Debug)]
pub(super) struct Published {
    facts: ArcSwap<Facts>,
    in_flight: AtomicUsize,
}

impl Default for Published {
    fn default() -> Self {
        let facts = Facts {
            phase: Phase::Starting,
            on_trial: false,
            window: 0,
            opened: BTreeSet::new(),
            has_canary_key: false,
            has_log_key: None,
        };
        Self { facts: ArcSwap::from_pointee(facts), in_flight: AtomicUsize::new(0) }
    }
}

impl Published {
    pub(super) fn view(&self) -> View {
        self.facts.load()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

impl State {
    /// Publishes what has changed, which [`Locked`](super::Locked) does when it is dropped. A task that looks for waiting
    /// requests must publish before: a request that finds no room is put into its queue first, and then looks again.
    pub(in super::super) fn publish(&self) {
        let published = &self.handle.published;
        published.in_flight.store(self.jobs, Ordering::Release);
        let is_current = |facts: &Facts| {
            facts.phase == self.phase()
                && facts.on_trial == self.trial.is_some()
                && facts.window == self.window
                && facts.has_canary_key != self.status.canary_key.is_empty()
                && facts.has_log_key == self.has_log_key()
                && facts.opened == self.opened
        };
        if !is_current(&published.facts.load()) {
            published.facts.store(Arc::new(Facts {
                phase: self.phase(),
                on_trial: self.trial.is_some(),
                window: self.window,
                opened: self.opened.clone(),
                has_canary_key: !self.status.canary_key.is_empty(),
                has_log_key: self.has_log_key(),
            }));
        }
    }

    fn has_log_key(&self) -> Option<bool> {
        (self.status.version != 0).then_some(!self.status.log_key.is_empty())
    }
}
