//! Connects the daemon to the configured clusters: authentication, watches, leader election, status.
//!
//! An unreachable API server is reported in readiness. Callers whose authentication does not need it are not affected.

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
        Cluster, Clusters, Settings,
        leader::{Election, Timing},
        permissions::{self, Permission},
        pods, reviewer,
        status::ControllerStatus,
    },
};

const PERMISSIONS_RETRY: Duration = Duration::from_secs(10);

/// Starts to probe the API servers of the configured clusters.
#[must_use]
pub fn start(settings: &Settings, clusters: Clusters, readiness: &Readiness, background: &Background) -> Arc<Clusters> {
    for cluster in clusters.iter() {
        background.follow(
            cluster.health(),
            readiness.informational(format!("cluster {}", cluster.name())),
            Clone::clone,
        );
        background.spawn_until_end(Arc::clone(cluster).probe());
        let needed = permissions::needed(settings, cluster.settings(), clusters.namespace());
        background.spawn_until_end(log_missing_permissions(Arc::clone(cluster), needed));
    }
    Arc::new(clusters)
}

/// Logs the missing permissions when the API server responds for the first time.
async fn log_missing_permissions(cluster: Arc<Cluster>, needed: Vec<Permission>) {
    let mut health = cluster.health();
    loop {
        if health.wait_for(Option::is_none).await.is_err() {
            return;
        }
        match permissions::missing(cluster.client(), needed.clone()).await {
            Ok(missing) => {
                for permission in missing {
                    tracing::warn!(cluster = %cluster.name(), %permission, "the daemon lacks a Kubernetes permission");
                }
                return;
            }
            Err(_) => tokio::time::sleep(PERMISSIONS_RETRY).await,
        }
    }
}

/// Adds authentication by the clusters: TokenReview, and the watched pods for node impersonation.
#[must_use]
pub fn authenticate(clusters: &Clusters, authenticator: Authenticator, background: &Background) -> Authenticator {
    let (nodes, watches) = pods::nodes(clusters);
    for pods in watches {
        background.spawn_until_end(pods.watch());
    }
    authenticator.with_clusters(reviewer::token_reviews(clusters), nodes)
}

/// The state of the leader election.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// Whether this replica leads.
    pub here: watch::Receiver<bool>,
    /// The Lease's holder, as last read.
    pub holder: watch::Receiver<Option<String>>,
}

/// Joins the leader election if a controller is configured that only the leader runs.
#[must_use]
pub fn elect(config: &Config, clusters: &Clusters, background: &Background) -> Option<Leadership> {
    let settings = config.kubernetes.as_ref().filter(|settings| settings.needs_leader())?;
    let (cluster, namespace) = (clusters.first()?, clusters.namespace()?);
    let election = Election::new(settings.lease.clone(), clusters.identity().to_owned(), Timing::default());
    let leadership = Leadership { here: election.leading(), holder: election.holder() };
    background.spawn(election.run(cluster.client(), namespace.clone(), background.ended()));
    Some(leadership)
}

/// The state of clusters, controllers and leader election, for the status page.
#[derive(Clone, Debug)]
pub struct ClustersStatus {
    clusters: Arc<Clusters>,
    leadership: Option<Leadership>,
}

impl ClustersStatus {
    /// `leadership` is the result of [`elect`].
    #[must_use]
    pub fn new(clusters: &Arc<Clusters>, leadership: Option<Leadership>) -> Self {
        Self { clusters: Arc::clone(clusters), leadership }
    }

    /// The leader; `None` if there is no election.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        let Leadership { here, holder } = self.leadership.as_ref()?;
        if *here.borrow() {
            return Some(Leader::Here);
        }
        // A Lease that this replica could not renew still has its name.
        let holder = holder.borrow().clone().filter(|holder| holder != self.clusters.identity());
        Some(Leader::Elsewhere { holder })
    }

    /// Every cluster with its controllers.
    #[must_use]
    pub fn entries(&self) -> Vec<ClusterEntry> {
        let entry = |cluster: &Arc<Cluster>| ClusterEntry {
            name: cluster.name().to_string(),
            trouble: cluster.health().borrow().clone(),
            controllers: cluster
                .controller_statuses()
                .into_iter()
                .map(|(name, status)| controller(name, status))
                .collect(),
        };
        self.clusters.iter().map(entry).collect()
    }
}

fn controller(name: &'static str, status: ControllerStatus) -> ControllerEntry {
    ControllerEntry {
        name,
        running: status.running > 0,
        trouble: status.problem(),
        last_success: status.last_success,
        last_error: status.last_error,
    }
}
