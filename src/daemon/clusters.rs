//! The clusters' share of the daemon: who authenticates by them, who watches them, and which replica leads.
//!
//! An API server that is away is told in readiness and keeps nobody from issuing: callers whose authentication needs
//! none are served on. Called by the composition root.

use std::sync::Arc;

use tokio::sync::watch;

use super::{background::Background, readiness::Readiness};
use crate::{
    auth::Authenticator,
    config::Config,
    kubernetes::{
        ClusterError, Clusters,
        leader::{Election, Timing},
        pods, reviewer,
    },
};

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
    }
    Ok(Some(Arc::new(clusters)))
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

/// Stands for election, where anything is configured that one replica does for all; says whether this one leads.
#[must_use]
pub fn elect(config: &Config, clusters: &Clusters, background: &Background) -> Option<watch::Receiver<bool>> {
    let settings = config.kubernetes.as_ref().filter(|settings| settings.needs_leader())?;
    let (cluster, namespace) = (clusters.first()?, clusters.namespace()?);
    let election = Election::new(settings.lease.clone(), clusters.identity().to_owned(), Timing::default());
    let leading = election.leading();
    background.spawn(election.run(cluster.client(), namespace.clone(), background.ended()));
    Some(leading)
}
