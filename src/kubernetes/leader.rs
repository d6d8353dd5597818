//! Leader election by a Lease (coordination.k8s.io/v1), so that the controllers of one replica act at a time.
//!
//! The rules are client-go's (k8s.io/client-go/tools/leaderelection): a Lease counts as held for its duration after
//! this replica *saw* it change, by this replica's own monotonic clock, so that no two machines' clocks are compared;
//! every write names the resourceVersion it follows; and a leader that cannot renew stops leading before anybody else
//! may begin. A replica that was stopped and wakes up may believe for a moment that it still leads: writes of
//! controllers must name resourceVersions too. The gRPC endpoint runs on every replica and knows nothing of this.
//!
//! Called by `daemon`; controllers run inside [`while_leading`].

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

/// How long things take; [`Timing::default`] is client-go's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease counts as held after it was last seen to change.
    pub lease: Duration,
    /// How long a leader leads on without renewing; shorter than [`Timing::lease`].
    pub renew: Duration,
    /// How often a Lease is renewed, or looked at.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// This replica's candidacy.
#[derive(Debug)]
pub struct Election {
    name: String,
    identity: String,
    timing: Timing,
    leading: watch::Sender<bool>,
    holder: watch::Sender<Option<String>>,
    observed: Option<Observed>,
}

/// A Lease as it was last seen, and when it was first seen so.
#[derive(Clone, Debug)]
struct Observed {
    spec: LeaseSpec,
    since: Instant,
}

/// Why the Lease could not be taken or renewed.
#[derive(Debug, thiserror::Error)]
enum ElectionError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("another replica wrote the Lease at the same moment")]
    Conflict,
    #[error("the clock's time cannot be written")]
    Time,
    #[error("the API server did not answer in time")]
    Timeout,
}

impl Election {
    /// A candidacy for the Lease `name`, under this replica's own name.
    #[must_use]
    pub fn new(name: String, identity: String, timing: Timing) -> Self {
        let (leading, holder) = (watch::Sender::new(false), watch::Sender::new(None));
        Self { name, identity, timing, leading, holder, observed: None }
    }

    /// Which replica holds the Lease, as it was last read; `None` while that is not known.
    #[must_use]
    pub fn holder(&self) -> watch::Receiver<Option<String>> {
        self.holder.subscribe()
    }

    /// Whether this replica leads, now and later.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Stands for election until told to stop, and then gives the Lease up, so that another replica need not wait.
    pub async fn run(mut self, client: Client, namespace: Namespace, stop: CancellationToken) {
        let leases: Api<Lease> = Api::namespaced(client, namespace.as_str());
        // Until when this replica leads if nothing more is heard.
        let mut until: Option<Instant> = None;
        let mut told = None;
        loop {
            let began = Instant::now();
            until = until.filter(|until| *until > began);
            self.lead(until.is_some());
            // The attempt never outlasts the leadership that it is to renew.
            let limit = until.map_or(self.timing.renew, |until| until.saturating_duration_since(began));
            let result = tokio::select! {
                () = stop.cancelled() => break,
                result = tokio::time::timeout(limit.min(self.timing.renew / 2), self.attempt(&leases)) => {
                    result.unwrap_or(Err(ElectionError::Timeout))
                }
            };
            match result {
                Ok(holds) => {
                    told = None;
                    until = holds.then(|| began + self.timing.renew);
                }
                Err(error) => {
                    let reason = chain(&error);
                    if told.as_ref() != Some(&reason) {
                        tracing::warn!(lease = self.name, reason, "the Lease is neither taken nor renewed");
                        told = Some(reason);
                    }
                }
            }
            let now = Instant::now();
            until = until.filter(|until| *until > now);
            self.lead(until.is_some());
            let left = until.map_or(self.timing.retry, |until| until.saturating_duration_since(now));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(left.min(self.timing.retry)) => {}
            }
        }
        if self.lead(false) {
            let released = tokio::time::timeout(self.timing.retry, self.release(&leases)).await;
            tracing::info!(lease = self.name, released = matches!(released, Ok(Ok(()))), "gave the Lease up");
        }
    }

    /// Takes or renews the Lease where it may; says whether this replica holds it now.
    async fn attempt(&mut self, leases: &Api<Lease>) -> Result<bool, ElectionError> {
        let Some(mut lease) = leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)?) };
            written(leases.create(&PostParams::default(), &lease).await)?;
            self.holds(&self.identity);
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
            self.holds(holder);
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(spec))?);
        // The resourceVersion that was read goes with it.
        written(leases.replace(&self.name, &PostParams::default(), &lease).await)?;
        self.holds(&self.identity);
        Ok(true)
    }

    fn holds(&self, holder: &str) {
        self.holder.send_if_modified(|known| {
            let changed = known.as_deref() != Some(holder);
            if changed {
                *known = Some(holder.to_owned());
            }
            changed
        });
    }

    /// The Lease as this replica's, following another.
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

    /// Leaves the Lease without a holder.
    async fn release(&self, leases: &Api<Lease>) -> Result<(), ElectionError> {
        let mut lease = leases.get(&self.name).await?;
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity))
        else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        written(leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    /// Notes whether this replica leads; says whether it did before.
    fn lead(&self, leads: bool) -> bool {
        let mut before = leads;
        self.leading.send_if_modified(|leading| {
            before = std::mem::replace(leading, leads);
            before != leads
        });
        if before != leads {
            let text = if leads { "this replica leads" } else { "this replica leads no more" };
            tracing::info!(lease = self.name, identity = self.identity, "{text}");
        }
        metrics::level("istio_hsm_ca_leader", None, if leads { 1.0 } else { 0.0 });
        before
    }
}

/// Tells a write that came second from one that failed.
fn written<T>(result: Result<T, kube::Error>) -> Result<(), ElectionError> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(ElectionError::Conflict),
        Err(error) => Err(error.into()),
    }
}

/// Runs a task while this replica leads: begun at each election, dropped at the loss, not begun again in between when
/// it ends by itself. Returns when the election is over.
pub async fn while_leading<F>(mut leading: watch::Receiver<bool>, mut task: impl FnMut() -> F)
where
    F: Future<Output = ()>,
{
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let mut watched = leading.clone();
        let lost = async { watched.wait_for(|leads| !*leads).await.is_err() };
        tokio::pin!(lost);
        let over = tokio::select! {
            over = &mut lost => over,
            () = task() => lost.await,
        };
        if over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_runs_exactly_while_this_replica_leads() {
        let (send, leading) = watch::channel(false);
        let (begun, running) = (AtomicUsize::new(0), AtomicUsize::new(0));
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let tasks = while_leading(leading, || async {
            begun.fetch_add(1, Ordering::SeqCst);
            running.fetch_add(1, Ordering::SeqCst);
            let _running = Running(&running);
            std::future::pending::<()>().await;
        });
        let script = async {
            for (leads, begun_so_far, now) in [(false, 0, 0), (true, 1, 1), (false, 1, 0), (true, 2, 1)] {
                send.send_replace(leads);
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(begun.load(Ordering::SeqCst), begun_so_far);
                assert_eq!(running.load(Ordering::SeqCst), now);
            }
            drop(send);
        };
        tokio::join!(tasks, script);
        assert_eq!(running.load(Ordering::SeqCst), 0);
    }
}
