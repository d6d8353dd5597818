//! Leader election by a Lease (coordination.k8s.io/v1): the controllers run in one replica at a time.
//!
//! The rules are those of client-go (k8s.io/client-go/tools/leaderelection):
//!
//! - A Lease is held for its duration after this replica observed its last change, by this replica's monotonic clock.
//!   The clocks of two machines are never compared.
//! - Every write carries the resourceVersion that was read.
//! - A leader that cannot renew the Lease steps down before another replica can acquire it.
//!
//! A replica that was suspended may briefly assume that it still leads, so the writes of controllers carry
//! resourceVersions, too.
//!
//! `kubert::lease` does not fit: its current version, 0.25, requires kube 1.1.

use std::{future::Future, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::cluster::chain;
use crate::telemetry::metrics;
use pki::identity::Namespace;
use process::clock;

/// Durations of an election. The defaults are client-go's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease is held after its last observed change.
    pub lease: Duration,
    /// How long a leader leads without renewing; shorter than [`Timing::lease`].
    pub renew: Duration,
    /// The interval of renewals and attempts.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// This replica as a candidate.
#[derive(Debug)]
pub struct Election {
    name: String,
    identity: String,
    timing: Timing,
    leading: watch::Sender<bool>,
    holder: watch::Sender<Option<String>>,
    observed: Option<Observed>,
}

/// The Lease as last read, and when it was first observed in that state.
#[derive(Clone, Debug)]
struct Observed {
    spec: LeaseSpec,
    since: Instant,
}

/// The Lease could not be acquired or renewed.
#[derive(Debug, thiserror::Error)]
enum ElectionError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("another replica changed the Lease meanwhile")]
    Conflict,
    #[error("the current time does not fit a timestamp")]
    Time,
    #[error("the API server did not respond in time")]
    Timeout,
}

impl Election {
    /// `name` is that of the Lease, `identity` that of this replica.
    #[must_use]
    pub fn new(name: String, identity: String, timing: Timing) -> Self {
        let (leading, holder) = (watch::Sender::new(false), watch::Sender::new(None));
        Self { name, identity, timing, leading, holder, observed: None }
    }

    /// The holder of the Lease as last read; `None` until it is known.
    #[must_use]
    pub fn holder(&self) -> watch::Receiver<Option<String>> {
        self.holder.subscribe()
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Takes part in the election until stopped, and then releases the Lease for another replica.
    pub async fn run(mut self, client: Client, namespace: Namespace, stop: CancellationToken) {
        let leases: Api<Lease> = Api::namespaced(client, namespace.as_str());
        // When leadership ends without another renewal.
        let mut until: Option<Instant> = None;
        let mut last_failure = None;
        loop {
            let began = Instant::now();
            until = until.filter(|until| *until > began);
            self.set_leading(until.is_some());
            // An attempt must not outlast the leadership it renews.
            let limit = until.map_or(self.timing.renew, |until| until.saturating_duration_since(began));
            let result = tokio::select! {
                () = stop.cancelled() => break,
                result = tokio::time::timeout(limit.min(self.timing.renew / 2), self.attempt(&leases)) => {
                    result.unwrap_or(Err(ElectionError::Timeout))
                }
            };
            match result {
                Ok(holds) => {
                    last_failure = None;
                    until = holds.then(|| began + self.timing.renew);
                }
                Err(error) => {
                    let reason = chain(&error);
                    if last_failure.as_ref() != Some(&reason) {
                        tracing::warn!(lease = self.name, reason, "cannot acquire or renew the Lease; will retry");
                        last_failure = Some(reason);
                    }
                }
            }
            let now = Instant::now();
            until = until.filter(|until| *until > now);
            self.set_leading(until.is_some());
            let left = until.map_or(self.timing.retry, |until| until.saturating_duration_since(now));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(left.min(self.timing.retry)) => {}
            }
        }
        if self.set_leading(false) {
            let released = tokio::time::timeout(self.timing.retry, self.release(&leases)).await;
            tracing::info!(lease = self.name, released = matches!(released, Ok(Ok(()))), "released the Lease");
        }
    }

    /// Acquires or renews the Lease if permitted. Returns whether this replica holds it.
    async fn attempt(&mut self, leases: &Api<Lease>) -> Result<bool, ElectionError> {
        let Some(mut lease) = leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)?) };
            check_conflict(leases.create(&PostParams::default(), &lease).await)?;
            self.set_holder(&self.identity);
            return Ok(true);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let since = match &self.observed {
            Some(observed) if observed.spec == spec => observed.since,
            _ => Instant::now(),
        };
        self.observed = Some(Observed { spec: spec.clone(), since });
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = seconds.map_or(self.timing.lease, Duration::from_secs);
        if let Some(holder) = holder.filter(|holder| *holder != self.identity)
            && since.elapsed() < lasts
        {
            self.set_holder(holder);
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(spec))?);
        // The Lease has the resourceVersion that was read.
        check_conflict(leases.replace(&self.name, &PostParams::default(), &lease).await)?;
        self.set_holder(&self.identity);
        Ok(true)
    }

    fn set_holder(&self, holder: &str) {
        self.holder.send_if_modified(|known| {
            let changed = known.as_deref() != Some(holder);
            if changed {
                *known = Some(holder.to_owned());
            }
            changed
        });
    }

    /// The Lease held by this replica, after `before`.
    fn spec(&self, before: Option<LeaseSpec>) -> Result<LeaseSpec, ElectionError> {
        let now = MicroTime(Timestamp::try_from(clock::now()).map_err(|_| ElectionError::Time)?);
        let before = before.unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or_default();
        Ok(LeaseSpec {
            acquire_time: before.acquire_time.filter(|_| mine).or_else(|| Some(now.clone())),
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(
                i32::try_from(self.timing.lease.as_millis().div_ceil(1000)).unwrap_or(i32::MAX),
            ),
            lease_transitions: Some(if mine { transitions } else { transitions.saturating_add(1) }),
            renew_time: Some(now),
            preferred_holder: before.preferred_holder,
            strategy: before.strategy,
        })
    }

    /// Removes the holder from the Lease.
    async fn release(&self, leases: &Api<Lease>) -> Result<(), ElectionError> {
        let mut lease = leases.get(&self.name).await?;
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity))
        else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        check_conflict(leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    /// Sets whether this replica leads. Returns whether it did before.
    fn set_leading(&self, leads: bool) -> bool {
        let mut before = leads;
        self.leading.send_if_modified(|leading| {
            before = std::mem::replace(leading, leads);
            before != leads
        });
        if before != leads {
            let text = if leads { "this replica is now the leader" } else { "this replica is no longer the leader" };
            tracing::info!(lease = self.name, identity = self.identity, "{text}");
        }
        metrics::level("istio_hsm_ca_leader", None, if leads { 1.0 } else { 0.0 });
        before
    }
}

/// Separates a write conflict from other errors.
fn check_conflict<T>(result: Result<T, kube::Error>) -> Result<(), ElectionError> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(ElectionError::Conflict),
        Err(error) => Err(error.into()),
    }
}

/// Runs a task while this replica leads: started when it becomes the leader, dropped when it steps down, and not
/// restarted in between if it returns. Returns when the election ends.
pub async fn while_leading<F>(mut leading: watch::Receiver<bool>, mut task: impl FnMut() -> F)
where
    F: Future<Output = ()>,
{
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let mut leads = leading.clone();
        let lost = async { leads.wait_for(|leads| !*leads).await.is_err() };
        tokio::pin!(lost);
        let ended = tokio::select! {
            ended = &mut lost => ended,
            () = task() => lost.await,
        };
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn task_runs_exactly_while_this_replica_leads() {
        let (send, leading) = watch::channel(false);
        let (started, running) = (AtomicUsize::new(0), AtomicUsize::new(0));
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let tasks = while_leading(leading, || async {
            started.fetch_add(1, Ordering::SeqCst);
            running.fetch_add(1, Ordering::SeqCst);
            let _running = Running(&running);
            std::future::pending::<()>().await;
        });
        let script = async {
            for (leads, started_so_far, now) in [(false, 0, 0), (true, 1, 1), (false, 1, 0), (true, 2, 1)] {
                send.send_replace(leads);
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(started.load(Ordering::SeqCst), started_so_far);
                assert_eq!(running.load(Ordering::SeqCst), now);
            }
            drop(send);
        };
        tokio::join!(tasks, script);
        assert_eq!(running.load(Ordering::SeqCst), 0);
    }
}
