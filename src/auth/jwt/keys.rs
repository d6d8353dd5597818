//! An issuer's current keys, and the task that refreshes them.
//!
//! Keys are only fetched in the background: at an interval, after failures with a growing delay, and soon after a JWT
//! has an unknown key ID. Whatever clients send, two fetches are never closer than the configured pause. A failed fetch
//! does not remove valid keys.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{Algorithm, jwks::Jwk, settings::IssuerName, source::Source};
use process::error::{Report, chain};

/// Delay after the first failed fetch; it doubles up to the interval.
const RETRY: Duration = Duration::from_secs(1);

/// Timing of fetches.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Interval of fetches.
    pub interval: Duration,
    /// Minimum time between two fetches triggered by requests.
    pub pause: Duration,
}

/// A set of keys with its generation number, which changes with the content.
#[derive(Debug)]
pub struct KeySet {
    generation: u64,
    keys: Vec<Jwk>,
}

impl KeySet {
    /// The generation number.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The key IDs.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter_map(Jwk::kid)
    }

    /// The keys that a token may have been signed with: those of its key ID, or all where it names none.
    pub fn of(&self, kid: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Jwk> {
        self.keys.iter().filter(move |key| key.algorithm() == algorithm && kid.is_none_or(|kid| key.kid() == Some(kid)))
    }
}

/// An issuer's keys.
#[derive(Debug)]
pub struct Keys {
    shared: Arc<Shared>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Debug)]
struct Shared {
    /// The issuer, for log lines.
    issuer: Box<str>,
    source: Source,
    pace: Pace,
    set: ArcSwapOption<KeySet>,
    wanted: Notify,
    state: watch::Sender<State>,
}

/// State of the fetches.
#[derive(Clone, Debug)]
struct State {
    attempts: u64,
    last: Option<Instant>,
    error: Option<Arc<Report>>,
}

impl Keys {
    /// Keys of a source; those in a file are read at once.
    #[must_use]
    pub fn new(issuer: &IssuerName, source: Source, pace: Pace) -> Self {
        let never = Report { problem: "they have not been fetched yet".to_owned(), remedy: None };
        let state = State { attempts: 0, last: None, error: Some(Arc::new(never)) };
        let shared = Shared {
            issuer: issuer.as_str().into(),
            source,
            pace,
            set: ArcSwapOption::empty(),
            wanted: Notify::new(),
            state: watch::Sender::new(state),
        };
        if let Some(read) = shared.source.read_now() {
            shared.take(read.map_err(|error| Report::from(&error)));
        }
        Self { shared: Arc::new(shared), task: Mutex::new(None) }
    }

    /// The keys, if they were ever fetched.
    #[must_use]
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.shared.set.load_full()
    }

    /// Why there are no keys.
    #[must_use]
    pub fn not_ready(&self) -> Option<Arc<Report>> {
        match self.current() {
            Some(_) => None,
            None => self.shared.state.borrow().error.clone(),
        }
    }

    /// Starts refreshing the keys, until this value is dropped. Needs a Tokio runtime.
    pub fn start(&self) {
        let mut task = self.task.lock();
        if task.is_none() {
            *task = Some(tokio::spawn(Arc::clone(&self.shared).keep_fresh()).abort_handle());
        }
    }

    /// Triggers a fetch as soon as the pause since the last one is over.
    pub fn refresh(&self) {
        self.shared.wanted.notify_one();
    }

    /// Triggers a fetch and waits for it, unless the pause forbids one now. Returns whether the newest fetch succeeded:
    /// if so, a key that is not in the set does not exist at the issuer.
    pub async fn fetched_again(&self, patience: Duration) -> bool {
        let mut state = self.shared.state.subscribe();
        let seen = state.borrow_and_update().clone();
        self.refresh();
        if seen.last.is_some_and(|last| last.elapsed() < self.shared.pace.pause) {
            return seen.error.is_none();
        }
        let newer = state.wait_for(|state| state.attempts > seen.attempts);
        match tokio::time::timeout(patience, newer).await {
            Ok(Ok(state)) => state.error.is_none(),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().take() {
            task.abort();
        }
    }
}

impl Shared {
    async fn keep_fresh(self: Arc<Self>) {
        let mut retry = RETRY;
        let mut next = match self.state.borrow().last {
            Some(last) => last + self.pace.interval,
            None => Instant::now(),
        };
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep_until(next) => false,
                () = self.wanted.notified() => true,
            };
            let last = self.state.borrow().last;
            if let Some(last) = last.filter(|_| asked) {
                tokio::time::sleep_until(last + self.pace.pause).await;
            }
            let fetched = self.source.fetch().await;
            let wait = match &fetched {
                Ok(_) => {
                    retry = RETRY;
                    self.pace.interval
                }
                Err(error) => {
                    tracing::warn!(
                        issuer = &*self.issuer,
                        reason = chain(error),
                        "the keys of a JWT issuer could not be fetched; keeping the previous keys"
                    );
                    let wait = retry.min(self.pace.interval);
                    retry = retry.saturating_mul(2);
                    wait
                }
            };
            self.take(fetched.map_err(|error| Report::from(&error)));
            next = Instant::now() + wait;
        }
    }

    fn take(&self, fetched: Result<Vec<Jwk>, Report>) {
        let error = match fetched {
            Ok(keys) => {
                let old = self.set.load_full();
                if old.as_ref().is_none_or(|old| old.keys != keys) {
                    let generation = old.map_or(0, |old| old.generation.saturating_add(1));
                    self.set.store(Some(Arc::new(KeySet { generation, keys })));
                }
                None
            }
            Err(error) => Some(Arc::new(error)),
        };
        self.state.send_modify(|state| {
            state.attempts = state.attempts.saturating_add(1);
            state.last = Some(Instant::now());
            state.error = error;
        });
    }
}
