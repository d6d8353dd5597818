//! The clusters' share of the daemon: who authenticates by them, who watches them, and which replica leads.
//!
//! An API server that is away is told in readiness and keeps nobody from issuing: callers whose authentication needs
//! none are served on. Called by the composition root.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    background::Background,
    readiness::Readiness,
    status::{ClusterEntry, ControllerEntry, Leader},
};
use crate::{
    auth::Authenticator,
    config::Config,
    kubernetes::{
        Cluster, ClusterError, Clusters,
        leader::{Election, Timing},
        permissions::{self, Permission},
        pods, reviewer, standing,
    },
};

/// How long after a failure the permissions are asked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// Makes the configured clusters' clients and starts to ask their API servers whether they are there; `None` without
/// `[kubernetes]`.
///
/// # Errors
/// Everything of the configuration that cannot be used; an API server that is away is no error.
pub async fn connect(
    config: &Config,
    readiness: &Readiness,
    background: &Background,
) -> Result<Option<Arc<Clusters>>, Vec<ClusterError>> {
    let Some(settings) = &config.kubernetes else { return Ok(None) };
    let clusters = Clusters::new(settings, &config.ca.trust_domains).await?;
    for cluster in clusters.iter() {
        background.follow(cluster.health(), readiness.remark(format!("cluster {}", cluster.name())), Clone::clone);
        background.spawn_until_end(Arc::clone(cluster).probe());
        let needed = permissions::needed(settings, cluster.settings(), clusters.namespace());
        background.spawn_until_end(tell_missing(Arc::clone(cluster), needed));
    }
    Ok(Some(Arc::new(clusters)))
}

/// Once its API server answers, says in the log what the daemon is not allowed to do; `check` says the same.
async fn tell_missing(cluster: Arc<Cluster>, needed: Vec<Permission>) {
    let mut health = cluster.health();
    loop {
        if health.wait_for(Option::is_none).await.is_err() {
            return;
        }
        match permissions::missing(cluster.client(), needed.clone()).await {
            Ok(missing) => {
                for permission in missing {
                    tracing::warn!(cluster = %cluster.name(), %permission, "the daemon lacks a permission");
                }
                return;
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Has the clusters' API servers judge tokens, and their pods watched where node impersonation needs it.
#[must_use]
pub fn authenticate(clusters: &Clusters, authenticator: Authenticator, background: &Background) -> Authenticator {
    let (nodes, watches) = pods::nodes(clusters);
    for pods in watches {
        background.spawn_until_end(pods.watch());
    }
    authenticator.with_clusters(reviewer::token_reviews(clusters), nodes)
}

/// Which replica leads.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// Whether this one does.
    pub here: watch::Receiver<bool>,
    /// The Lease's holder, as last read.
    pub holder: watch::Receiver<Option<String>>,
}

/// Stands for election, where anything is configured that one replica does for all.
#[must_use]
pub fn elect(config: &Config, clusters: &Clusters, background: &Background) -> Option<Leadership> {
    let settings = config.kubernetes.as_ref().filter(|settings| settings.needs_leader())?;
    let (cluster, namespace) = (clusters.first()?, clusters.namespace()?);
    let election = Election::new(settings.lease.clone(), clusters.identity().to_owned(), Timing::default());
    let leadership = Leadership { here: election.leading(), holder: election.holder() };
    background.spawn(election.run(cluster.client(), namespace.clone(), background.ended()));
    Some(leadership)
}

/// What the status page asks: how clusters and controllers stand, and whether this replica leads.
#[derive(Clone, Debug)]
pub struct Standing {
    clusters: Arc<Clusters>,
    leadership: Option<Leadership>,
}

impl Standing {
    /// `leadership` is what [`elect`] gave.
    #[must_use]
    pub fn new(clusters: &Arc<Clusters>, leadership: Option<Leadership>) -> Self {
        Self { clusters: Arc::clone(clusters), leadership }
    }

    /// Which replica leads; `None` where nobody need lead.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        let Leadership { here, holder } = self.leadership.as_ref()?;
        if *here.borrow() {
            return Some(Leader::Here);
        }
        // This replica's own name stays in a Lease that it can no longer renew.
        let holder = holder.borrow().clone().filter(|holder| holder != self.clusters.identity());
        Some(Leader::Elsewhere { holder })
    }

    /// Every cluster with its controllers.
    #[must_use]
    pub fn entries(&self) -> Vec<ClusterEntry> {
        let entry = |cluster: &Arc<Cluster>| ClusterEntry {
            name: cluster.name().to_string(),
            trouble: cluster.health().borrow().clone(),
            controllers: cluster.controllers().into_iter().map(|(name, standing)| controller(name, standing)).collect(),
        };
        self.clusters.iter().map(entry).collect()
    }
}

fn controller(name: &'static str, standing: standing::Standing) -> ControllerEntry {
    ControllerEntry {
        name,
        running: standing.running > 0,
        trouble: standing.trouble(),
        last_success: standing.last_success,
        last_error: standing.last_error,
    }
}
