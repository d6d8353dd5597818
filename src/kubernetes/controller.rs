//! The frame of a controller: look at the objects when something has changed, when something is due, and again after
//! a failure; tell what fails once, and count it.
//!
//! A look compares what should be with what is, whatever the cause of the look: nothing depends on having seen an
//! event. Called by the controllers of this module, inside [`super::leader::while_leading`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    future::Future,
    hash::Hash,
    time::{Duration, SystemTime},
};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher::{self, Event},
    },
};
use tokio::{sync::watch, time::Instant};

use super::cluster::chain;
use crate::{auth::ClusterName, clock, telemetry::metrics};

/// How long a burst of changes is let gather.
const SETTLE: Duration = Duration::from_millis(50);
/// The pause after a first failure; it doubles up to [`PAUSE_MOST`].
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failures: a token that is back is found soon.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// The longest pause at all: the clock may have been set.
const LOOK: Duration = Duration::from_secs(3600);

/// What a watch tells.
#[derive(Clone, Debug)]
pub(super) enum Signal {
    /// Something changed.
    Changed,
    /// Everything there is has been seen.
    Ready,
    /// The watch fails, and is tried again.
    Trouble(String),
}

/// A watch's signals.
pub(super) type Signals = BoxStream<'static, Signal>;

/// What came of a look.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Objects that were written or deleted.
    pub(super) changed: usize,
    /// Objects that are not as they should be, and why.
    pub(super) failures: Vec<(String, String)>,
    /// When something is due, if that is known.
    pub(super) due: Option<SystemTime>,
}

impl Look {
    /// Notes when something is due.
    pub(super) fn at(&mut self, due: SystemTime) {
        self.due = Some(self.due.map_or(due, |other| other.min(due)));
    }

    /// Notes a failure.
    pub(super) fn failed(&mut self, object: impl Into<String>, reason: impl Into<String>) {
        self.failures.push((object.into(), reason.into()));
    }
}

/// One controller's work.
pub(super) trait Reconcile: Send {
    /// Makes what is what should be.
    fn look(&mut self) -> impl Future<Output = Look> + Send;
}

/// A cache of the objects that a watch shows, and the watch's signals, which must be read for the cache to fill.
pub(super) fn cached<K>(events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static) -> (Store<K>, Signals)
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    (store, signals(events.default_backoff().reflect(writer)))
}

fn signals<K: Send + 'static>(events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static) -> Signals {
    let signal = |event| async move {
        match event {
            Ok(Event::Apply(_) | Event::Delete(_)) => Some(Signal::Changed),
            Ok(Event::InitDone) => Some(Signal::Ready),
            Ok(Event::Init | Event::InitApply(_)) => None,
            Err(error) => Some(Signal::Trouble(chain(&error))),
        }
    };
    events.filter_map(signal).boxed()
}

/// Runs a controller until dropped. `replaced` tells of another CA certificate or roots.
pub(super) async fn run(
    name: &'static str,
    cluster: &ClusterName,
    watches: Vec<Signals>,
    mut replaced: watch::Receiver<u64>,
    mut work: impl Reconcile,
) {
    let wanted = watches.len();
    let watches =
        watches.into_iter().enumerate().map(|(index, watch)| watch.map(move |signal| (index, signal)).boxed());
    let mut signals = stream::select_all(watches);
    let (mut ready, mut troubles) = (BTreeSet::new(), BTreeMap::new());
    let mut board = Board::new(name, cluster);
    let mut due = Instant::now();
    let mut pause = PAUSE;
    loop {
        tokio::select! {
            signal = signals.next(), if wanted > 0 => match signal {
                None => return,
                Some((_, Signal::Changed)) => due = due.min(Instant::now() + SETTLE),
                Some((index, Signal::Ready)) => {
                    ready.insert(index);
                    troubles.remove(&index);
                    due = Instant::now();
                }
                Some((index, Signal::Trouble(reason))) => {
                    troubles.insert(index, ("the watch".to_owned(), reason));
                    board.tell(troubles.values().cloned().collect());
                }
            },
            changed = replaced.changed() => {
                if changed.is_err() {
                    return;
                }
                due = Instant::now();
            }
            () = tokio::time::sleep_until(due), if ready.len() == wanted => {
                let mut look = work.look().await;
                board.count(&look);
                look.failures.extend(troubles.values().cloned());
                let failed = !look.failures.is_empty();
                board.tell(look.failures);
                let rest = look.due.map_or(LOOK, |due| due.duration_since(clock::now()).unwrap_or_default());
                let rest = if failed { rest.min(pause) } else { rest };
                pause = if failed { (pause * 2).min(PAUSE_MOST) } else { PAUSE };
                due = Instant::now() + rest.clamp(PAUSE, LOOK);
            }
        }
    }
}

/// Tells what fails: in the log when it changes, and in the metrics.
#[derive(Debug)]
pub(super) struct Board {
    name: &'static str,
    cluster: ClusterName,
    told: BTreeMap<String, String>,
}

impl Board {
    pub(super) fn new(name: &'static str, cluster: &ClusterName) -> Self {
        metrics::in_error(name, cluster.as_str(), 0, 0);
        Self { name, cluster: cluster.clone(), told: BTreeMap::new() }
    }

    fn count(&self, look: &Look) {
        let result = match (look.failures.is_empty(), look.changed) {
            (false, _) => "error",
            (true, 0) => "unchanged",
            (true, _) => "changed",
        };
        metrics::reconciled(self.name, self.cluster.as_str(), result);
    }

    /// Tells every failure there is now.
    fn tell(&mut self, failures: Vec<(String, String)>) {
        let now: BTreeMap<String, String> = failures.into_iter().collect();
        let (controller, cluster) = (self.name, &self.cluster);
        for (object, reason) in now.iter().filter(|(object, reason)| self.told.get(*object) != Some(reason)) {
            tracing::error!(controller, %cluster, object, reason, "an object is not as it should be; tried again");
        }
        for object in self.told.keys().filter(|object| !now.contains_key(*object)) {
            tracing::info!(controller, %cluster, object, "an object is as it should be again");
        }
        metrics::in_error(self.name, self.cluster.as_str(), self.told.len(), now.len());
        self.told = now;
    }

    /// Tells that one object's failure is there or gone, where the others are not looked at.
    pub(super) fn tell_one(&mut self, object: &str, reason: Option<String>) {
        let mut failures = self.told.clone();
        match reason {
            Some(reason) => failures.insert(object.to_owned(), reason),
            None => failures.remove(object),
        };
        self.tell(failures.into_iter().collect());
    }
}

/// A replica that leads no more tells nothing.
impl Drop for Board {
    fn drop(&mut self) {
        metrics::in_error(self.name, self.cluster.as_str(), self.told.len(), 0);
    }
}

/// Whether a write failed because the object is another by now; the watch shows it soon, and another look follows.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
