//! Runs the reconcile function of a controller: after a change of the objects or of the CA, when something is due, and
//! after a failure.
//!
//! A reconcile compares the desired with the actual state and does not depend on which event caused it. It covers all
//! objects of a controller, which kube's own `Controller` (one object per call, only objects that exist) does not fit:
//! most of these controllers create what is missing.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    future::Future,
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource,
    runtime::{
        reflector::{Store, store::Writer},
        utils::Backoff,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::Instant};

use super::{
    Cluster, backoff,
    status::StatusRecorder,
    watch_stream::{WatchItem, watch_stream},
};
use pki::Issuer;
use process::clock;

/// Collects a burst of changes into one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Delay before the first retry, and minimum time between two reconciles that no change causes.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Maximum retry delay.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Maximum time between two reconciles, in case the clock is set.
const RESYNC_INTERVAL: Duration = Duration::from_secs(3600);

/// What a watch reports to the reconcile loop.
#[derive(Clone, Debug)]
enum Signal {
    Changed,
    /// The store holds all objects.
    Listed,
    Failed(String),
    Recovered,
}

/// The signals of one watch.
pub(super) struct Signals {
    /// The watch's name in messages.
    name: String,
    signals: BoxStream<'static, Signal>,
}

/// The result of a reconcile.
#[derive(Debug, Default)]
pub(super) struct ReconcileResult {
    /// The number of objects written or deleted.
    pub(super) changed: usize,
    /// Objects that are not in the desired state, and the reason.
    pub(super) failures: Vec<(String, String)>,
    /// When the next reconcile is due.
    pub(super) due: Option<SystemTime>,
}

impl ReconcileResult {
    /// Schedules a reconcile; the earliest time applies.
    pub(super) fn due_at(&mut self, due: SystemTime) {
        self.due = Some(self.due.map_or(due, |other| other.min(due)));
    }

    pub(super) fn failed(&mut self, object: impl Into<String>, reason: impl Into<String>) {
        self.failures.push((object.into(), reason.into()));
    }
}

pub(super) trait Reconcile: Send {
    /// Brings all objects into the desired state.
    fn reconcile(&mut self) -> impl Future<Output = ReconcileResult> + Send;
}

/// A store of the watched objects, and the watch's signals. The store is updated while the signals are polled. `name` is
/// what is watched, for messages.
pub(super) fn cached<K>(api: Api<K>, config: watcher::Config, name: impl Into<String>) -> (Store<K>, Signals)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + 'static,
{
    cached_as(api, config, name, K::DynamicType::default())
}

/// [`cached`] for objects whose type is known at run time only.
pub(super) fn cached_as<K>(
    api: Api<K>,
    config: watcher::Config,
    name: impl Into<String>,
    dynamic_type: K::DynamicType,
) -> (Store<K>, Signals)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Send + Sync + 'static,
{
    let mut writer = Writer::new(dynamic_type);
    let store = writer.as_reader();
    let signal = move |item| {
        if let WatchItem::Event(event) = &item {
            writer.apply_watcher_event(event);
        }
        std::future::ready(match item {
            WatchItem::Event(Event::Apply(_) | Event::Delete(_)) => Some(Signal::Changed),
            WatchItem::Event(Event::InitDone) => Some(Signal::Listed),
            WatchItem::Event(Event::Init | Event::InitApply(_)) => None,
            WatchItem::Failed(reason) => Some(Signal::Failed(reason)),
            WatchItem::Recovered => Some(Signal::Recovered),
        })
    };
    let signals = watch_stream(api, config).filter_map(signal).boxed();
    (store, Signals { name: format!("the watch of {}", name.into()), signals })
}

/// The changes of a watched value, as those of a watch. `name` is what changes, for messages.
pub(super) fn changes<T: Send + Sync + 'static>(mut value: watch::Receiver<T>, name: impl Into<String>) -> Signals {
    value.mark_unchanged();
    let later = stream::unfold(value, |mut value| async move {
        value.changed().await.ok()?;
        Some((Signal::Changed, value))
    });
    Signals { name: name.into(), signals: stream::iter([Signal::Listed]).chain(later).boxed() }
}

/// Runs a controller until dropped. The first reconcile runs after every watch has listed its objects; another runs
/// whenever another CA certificate or other roots are in use.
pub(super) async fn run(
    controller: &'static str,
    cluster: &Arc<Cluster>,
    watches: Vec<Signals>,
    mut issuers: watch::Receiver<Arc<Issuer>>,
    mut work: impl Reconcile,
) {
    let watch_count = watches.len();
    let named = watches.into_iter().map(|Signals { name, signals }| signals.map(move |signal| (name.clone(), signal)));
    let mut signals = stream::select_all(named.map(StreamExt::boxed));
    let mut listed = BTreeSet::new();
    let mut status = StatusRecorder::new(controller, cluster);
    let mut due = Instant::now();
    let mut backoff = backoff::exponential(RETRY_MIN, RETRY_MAX);
    loop {
        tokio::select! {
            signal = signals.next(), if watch_count > 0 => match signal {
                None => return,
                Some((_, Signal::Changed)) => due = due.min(Instant::now() + DEBOUNCE),
                Some((watch, Signal::Listed)) => {
                    listed.insert(watch);
                    due = Instant::now();
                }
                Some((watch, Signal::Failed(reason))) => status.watch(&watch, Some(reason)),
                Some((watch, Signal::Recovered)) => status.watch(&watch, None),
            },
            changed = issuers.changed() => {
                if changed.is_err() {
                    return;
                }
                due = Instant::now();
            }
            () = tokio::time::sleep_until(due), if listed.len() == watch_count => {
                let result = work.reconcile().await;
                let wait = result.due.map_or(RESYNC_INTERVAL, |due| due.duration_since(clock::now()).unwrap_or_default());
                let wait = if result.failures.is_empty() {
                    backoff.reset();
                    wait
                } else {
                    wait.min(backoff.next().unwrap_or(RETRY_MAX))
                };
                due = Instant::now() + wait.clamp(RETRY_MIN, RESYNC_INTERVAL);
                status.record(result);
            }
        }
    }
}

/// Whether a write failed because the object was changed or created meanwhile. The watch reports the change.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
