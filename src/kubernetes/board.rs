//! What fails in one controller: told in the log when it changes, counted in the metrics, shown by `standing`.
//!
//! Called by the controllers of this module, each with a board of its own for as long as it runs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Cluster, controller::Look};
use crate::telemetry::metrics;
use process::clock;

/// One controller's board.
#[derive(Debug)]
pub(super) struct Board {
    name: &'static str,
    cluster: Arc<Cluster>,
    /// Objects that are not as they should be, and why.
    objects: BTreeMap<String, String>,
    /// Watches that fail, and why.
    watches: BTreeMap<String, String>,
}

impl Board {
    /// Nothing fails; the controller runs from now on.
    pub(super) fn new(name: &'static str, cluster: &Arc<Cluster>) -> Self {
        metrics::in_error(name, cluster.name().as_str(), 0, 0);
        cluster.standings().change(name, |standing| standing.running = standing.running.saturating_add(1));
        Self { name, cluster: Arc::clone(cluster), objects: BTreeMap::new(), watches: BTreeMap::new() }
    }

    /// What came of a look at everything.
    pub(super) fn looked(&mut self, look: Look) {
        let result = match (look.failures.is_empty(), look.changed) {
            (false, _) => "error",
            (true, 0) => "unchanged",
            (true, _) => "changed",
        };
        let now: BTreeMap<String, String> = look.failures.into_iter().collect();
        let gone: Vec<String> = self.objects.keys().filter(|object| !now.contains_key(*object)).cloned().collect();
        for object in gone {
            self.note(Kind::Object, &object, None);
        }
        for (object, reason) in now {
            self.note(Kind::Object, &object, Some(reason));
        }
        self.count(result);
    }

    /// One object is as it should be or is not, where the others are not looked at.
    pub(super) fn object(&mut self, object: &str, reason: Option<String>) {
        self.note(Kind::Object, object, reason);
    }

    /// A watch holds or fails.
    pub(super) fn watch(&mut self, watch: &str, reason: Option<String>) {
        self.note(Kind::Watch, watch, reason);
    }

    /// Counts what came of one piece of work: `changed`, `unchanged` or `error`.
    pub(super) fn count(&self, result: &'static str) {
        metrics::reconciled(self.name, self.cluster.name().as_str(), result);
        if result != "error" {
            let now = clock::now();
            self.cluster.standings().change(self.name, |standing| standing.last_success = Some(now));
        }
    }

    fn note(&mut self, kind: Kind, what: &str, reason: Option<String>) {
        let (controller, cluster) = (self.name, self.cluster.name());
        let before = self.objects.len() + self.watches.len();
        let known = match kind {
            Kind::Object => &mut self.objects,
            Kind::Watch => &mut self.watches,
        };
        match &reason {
            Some(reason) if known.get(what) == Some(reason) => {}
            Some(reason) => {
                match kind {
                    Kind::Object => tracing::error!(
                        controller,
                        %cluster,
                        object = what,
                        reason,
                        "an object is not as it should be; tried again"
                    ),
                    Kind::Watch => {
                        tracing::error!(controller, %cluster, watch = what, reason, "a watch fails; tried again");
                    }
                }
                known.insert(what.to_owned(), reason.clone());
            }
            None => {
                if known.remove(what).is_none() {
                    return;
                }
                match kind {
                    Kind::Object => {
                        tracing::info!(controller, %cluster, object = what, "an object is as it should be again");
                    }
                    Kind::Watch => tracing::info!(controller, %cluster, watch = what, "a watch holds again"),
                }
            }
        }
        metrics::in_error(self.name, cluster.as_str(), before, self.objects.len() + self.watches.len());
        self.cluster.standings().change(self.name, |standing| match reason {
            Some(reason) => {
                standing.last_error = Some((clock::now(), format!("{what}: {reason}")));
                standing.failures.insert(what.to_owned(), reason);
            }
            None => drop(standing.failures.remove(what)),
        });
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Object,
    Watch,
}

/// A replica that leads no more tells nothing.
impl Drop for Board {
    fn drop(&mut self) {
        let told = self.objects.len() + self.watches.len();
        metrics::in_error(self.name, self.cluster.name().as_str(), told, 0);
        self.cluster.standings().change(self.name, |standing| {
            standing.running = standing.running.saturating_sub(1);
            for what in self.objects.keys().chain(self.watches.keys()) {
                standing.failures.remove(what);
            }
        });
    }
}
