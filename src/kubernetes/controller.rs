//! The frame of a controller: look at the objects when something has changed, when something is due, and again after
//! a failure; tell what fails once, and count it.
//!
//! A look compares what should be with what is, whatever the cause of the look: nothing depends on having seen an
//! event. Called by the controllers of this module, inside [`super::leader::while_leading`].

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
        reflector::{self, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::Instant};

use super::{
    Cluster,
    board::Board,
    watched::{Seen, watched},
};
use process::clock;

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
    /// The watch holds again.
    Holds,
}

/// A watch's signals.
pub(super) struct Signals {
    /// What is watched, as messages call it.
    of: String,
    signals: BoxStream<'static, Signal>,
}

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

/// A cache of the objects that a watch shows, and the watch's signals, which must be read for the cache to fill. `of` is
/// what is watched, in words.
pub(super) fn cached<K>(api: Api<K>, config: watcher::Config, of: impl Into<String>) -> (Store<K>, Signals)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store();
    let signal = move |seen| {
        if let Seen::Event(event) = &seen {
            writer.apply_watcher_event(event);
        }
        std::future::ready(match seen {
            Seen::Event(Event::Apply(_) | Event::Delete(_)) => Some(Signal::Changed),
            Seen::Event(Event::InitDone) => Some(Signal::Ready),
            Seen::Event(Event::Init | Event::InitApply(_)) => None,
            Seen::Trouble(reason) => Some(Signal::Trouble(reason)),
            Seen::Holds => Some(Signal::Holds),
        })
    };
    (
        store,
        Signals { of: format!("the watch of {}", of.into()), signals: watched(api, config).filter_map(signal).boxed() },
    )
}

/// Runs a controller until dropped. `replaced` tells of another CA certificate or roots.
pub(super) async fn run(
    name: &'static str,
    cluster: &Arc<Cluster>,
    watches: Vec<Signals>,
    mut replaced: watch::Receiver<u64>,
    mut work: impl Reconcile,
) {
    let wanted = watches.len();
    let names: Vec<String> = watches.iter().map(|watch| watch.of.clone()).collect();
    let watches = watches.into_iter().zip(names);
    let watches = watches.map(|(watch, of)| watch.signals.map(move |signal| (of.clone(), signal)).boxed());
    let mut signals = stream::select_all(watches);
    let mut ready = BTreeSet::new();
    let mut board = Board::new(name, cluster);
    let mut due = Instant::now();
    let mut pause = PAUSE;
    loop {
        tokio::select! {
            signal = signals.next(), if wanted > 0 => match signal {
                None => return,
                Some((_, Signal::Changed)) => due = due.min(Instant::now() + SETTLE),
                Some((of, Signal::Ready)) => {
                    ready.insert(of);
                    due = Instant::now();
                }
                Some((of, Signal::Trouble(reason))) => board.watch(&of, Some(reason)),
                Some((of, Signal::Holds)) => board.watch(&of, None),
            },
            changed = replaced.changed() => {
                if changed.is_err() {
                    return;
                }
                due = Instant::now();
            }
            () = tokio::time::sleep_until(due), if ready.len() == wanted => {
                let look = work.look().await;
                let failed = !look.failures.is_empty();
                let rest = look.due.map_or(LOOK, |due| due.duration_since(clock::now()).unwrap_or_default());
                let rest = if failed { rest.min(pause) } else { rest };
                pause = if failed { (pause * 2).min(PAUSE_MOST) } else { PAUSE };
                due = Instant::now() + rest.clamp(PAUSE, LOOK);
                board.looked(look);
            }
        }
    }
}

/// Whether a write failed because the object is another by now; the watch shows it soon, and another look follows.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
