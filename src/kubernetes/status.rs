//! The status of a controller: what succeeds and what fails, for the log, metrics, `/readyz` and the status page.
//!
//! Nothing in the program depends on a status.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Cluster, reconcile::ReconcileResult};
use crate::telemetry::metrics;
use process::clock;

/// The status of one controller in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControllerStatus {
    /// How many instances run in this replica: zero while another replica leads.
    pub running: usize,
    /// When a reconcile last succeeded.
    pub last_success: Option<SystemTime>,
    /// When something last failed, and the object with the reason.
    pub last_error: Option<(SystemTime, String)>,
    /// Current failures: object or watch, and reason.
    pub failures: BTreeMap<String, String>,
}

impl ControllerStatus {
    /// Current failures in one line.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let (object, reason) = self.failures.first_key_value()?;
        Some(match self.failures.len() {
            1 => format!("{object}: {reason}"),
            count => format!("{count} failures; {object}: {reason}"),
        })
    }
}

/// The status of each controller of a cluster, by name.
#[derive(Debug, Default)]
pub(super) struct ControllerStatuses(Mutex<BTreeMap<&'static str, watch::Sender<ControllerStatus>>>);

impl ControllerStatuses {
    pub(super) fn watch(&self, controller: &'static str) -> watch::Receiver<ControllerStatus> {
        self.with(controller, watch::Sender::subscribe)
    }

    fn update(&self, controller: &'static str, update: impl FnOnce(&mut ControllerStatus)) {
        self.with(controller, |status| status.send_modify(update));
    }

    /// Every controller that was watched or has run.
    pub(super) fn all(&self) -> Vec<(&'static str, ControllerStatus)> {
        let statuses = self.0.lock();
        statuses.iter().map(|(name, status)| (*name, status.borrow().clone())).collect()
    }

    fn with<T>(&self, controller: &'static str, f: impl FnOnce(&watch::Sender<ControllerStatus>) -> T) -> T {
        let mut statuses = self.0.lock();
        f(statuses.entry(controller).or_default())
    }
}

/// Records what a running controller does. It counts as running until the recorder is dropped.
#[derive(Debug)]
pub(super) struct StatusRecorder {
    controller: &'static str,
    cluster: Arc<Cluster>,
    /// Objects that fail, and the reason.
    objects: BTreeMap<String, String>,
    /// Watches that fail, and the reason.
    watches: BTreeMap<String, String>,
}

impl StatusRecorder {
    pub(super) fn new(controller: &'static str, cluster: &Arc<Cluster>) -> Self {
        metrics::in_error(controller, cluster.name().as_str(), 0, 0);
        cluster.statuses().update(controller, |status| status.running = status.running.saturating_add(1));
        Self { controller, cluster: Arc::clone(cluster), objects: BTreeMap::new(), watches: BTreeMap::new() }
    }

    /// Records a reconcile of all objects; objects without a failure in it are healthy.
    pub(super) fn record(&mut self, result: ReconcileResult) {
        let outcome = match (result.failures.is_empty(), result.changed) {
            (false, _) => "error",
            (true, 0) => "unchanged",
            (true, _) => "changed",
        };
        let failing: BTreeMap<String, String> = result.failures.into_iter().collect();
        let recovered: Vec<String> = self.objects.keys().filter(|key| !failing.contains_key(*key)).cloned().collect();
        for object in recovered {
            self.object(&object, None);
        }
        for (object, reason) in failing {
            self.object(&object, Some(reason));
        }
        self.count(outcome);
    }

    /// Records one object; `failure` is `None` if it is healthy.
    pub(super) fn object(&mut self, object: &str, failure: Option<String>) {
        let (controller, cluster) = (self.controller, Arc::clone(&self.cluster));
        let cluster = cluster.name();
        match self.set(false, object, failure) {
            Some(Change::Failing(reason)) => {
                tracing::error!(controller, %cluster, object, reason, "reconcile failed; will retry");
            }
            Some(Change::Recovered) => tracing::info!(controller, %cluster, object, "reconcile succeeded again"),
            None => {}
        }
    }

    /// Records a watch; `failure` is `None` if it works.
    pub(super) fn watch(&mut self, watch: &str, failure: Option<String>) {
        let (controller, cluster) = (self.controller, Arc::clone(&self.cluster));
        let cluster = cluster.name();
        match self.set(true, watch, failure) {
            Some(Change::Failing(reason)) => {
                tracing::error!(controller, %cluster, watch, reason, "watch failed; will retry");
            }
            Some(Change::Recovered) => tracing::info!(controller, %cluster, watch, "watch works again"),
            None => {}
        }
    }

    /// Counts a reconcile: `changed`, `unchanged` or `error`.
    pub(super) fn count(&self, outcome: &'static str) {
        metrics::reconciled(self.controller, self.cluster.name().as_str(), outcome);
        if outcome != "error" {
            let now = clock::now();
            self.cluster.statuses().update(self.controller, |status| status.last_success = Some(now));
        }
    }

    fn count_failing(&self) -> usize {
        self.objects.len() + self.watches.len()
    }

    /// Stores a failure or its end. Each reason is returned only once, for the log.
    fn set(&mut self, is_watch: bool, what: &str, failure: Option<String>) -> Option<Change> {
        let before = self.count_failing();
        let known = if is_watch { &mut self.watches } else { &mut self.objects };
        let previous = match &failure {
            Some(reason) => known.insert(what.to_owned(), reason.clone()),
            None => Some(known.remove(what)?),
        };
        metrics::in_error(self.controller, self.cluster.name().as_str(), before, self.count_failing());
        self.cluster.statuses().update(self.controller, |status| match &failure {
            Some(reason) => {
                status.last_error = Some((clock::now(), format!("{what}: {reason}")));
                status.failures.insert(what.to_owned(), reason.clone());
            }
            None => drop(status.failures.remove(what)),
        });
        match failure {
            Some(reason) => (previous.as_ref() != Some(&reason)).then_some(Change::Failing(reason)),
            None => Some(Change::Recovered),
        }
    }
}

enum Change {
    Failing(String),
    Recovered,
}

/// A controller that stopped, because another replica leads, reports no failures.
impl Drop for StatusRecorder {
    fn drop(&mut self) {
        metrics::in_error(self.controller, self.cluster.name().as_str(), self.count_failing(), 0);
        self.cluster.statuses().update(self.controller, |status| {
            status.running = status.running.saturating_sub(1);
            for what in self.objects.keys().chain(self.watches.keys()) {
                status.failures.remove(what);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_summarized_in_one_line() {
        let statuses = ControllerStatuses::default();
        let mut status = statuses.watch("a");
        assert_eq!(status.borrow_and_update().problem(), None);
        let fail = |object: &str| {
            statuses.update("a", |status| drop(status.failures.insert(object.to_owned(), "forbidden".to_owned())));
        };
        fail("x/y");
        assert_eq!(status.borrow_and_update().problem().as_deref(), Some("x/y: forbidden"));
        fail("x/z");
        let problem = status.borrow_and_update().problem().unwrap();
        assert_eq!(problem, "2 failures; x/y: forbidden");
        assert_eq!(statuses.all().len(), 1);
    }
}
