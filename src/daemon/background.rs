//! The daemon's background tasks, which are started and ended together.

use std::{future::Future, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::readiness::ReadinessHandle;

/// Tasks that run until the daemon ends.
#[derive(Clone, Debug, Default)]
pub struct Background {
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl Background {
    /// Cancelled when the tasks are to end.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Starts a task that ends by itself once [`Background::ended`] is cancelled.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Starts a task that is dropped when the daemon ends.
    pub fn spawn_until_end<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                _ = task => {}
            }
        });
    }

    /// Sets a readiness handle from a watched value, now and at each change.
    pub fn follow<T: Clone + Send + Sync + 'static>(
        &self,
        mut watched: watch::Receiver<T>,
        handle: ReadinessHandle,
        trouble: impl Fn(&T) -> Option<String> + Send + 'static,
    ) {
        self.spawn_until_end(async move {
            loop {
                let value = watched.borrow_and_update().clone();
                handle.set(trouble(&value));
                if watched.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Calls a function immediately and then periodically.
    pub fn every(&self, interval: Duration, mut call: impl FnMut() + Send + 'static) {
        self.spawn_until_end(async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                call();
            }
        });
    }

    /// Ends the tasks and waits for them for a limited time.
    pub async fn end(self, within: Duration) {
        self.ended.cancel();
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "background tasks did not end in time");
        }
    }
}
