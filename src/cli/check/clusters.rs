//! Checks the clusters of `[kubernetes]`: the client, the API server and the permissions of each.

use std::time::Duration;

use super::finding::{Finding, Findings};
use crate::{
    config::Config,
    kubernetes::{
        Cluster, ClusterError, Clusters, cluster::chain, controllers::IssuerProblem, permissions, served, settings,
    },
};

use pki::Bundle;

/// The timeout for all requests to one API server.
const API_SERVER_TIMEOUT: Duration = Duration::from_secs(10);

/// The missing interfaces. An API server that does not respond is reported with the permissions.
async fn unserved(cluster: &Cluster) -> Vec<String> {
    let asked = tokio::time::timeout(API_SERVER_TIMEOUT, served::unserved(cluster)).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

/// An unreachable API server is a warning, because `serve` starts without it.
pub(super) async fn clusters(
    config: &Config,
    clusters: Result<Option<Clusters>, Vec<ClusterError>>,
    bundle: Option<&Bundle>,
) -> Vec<Finding> {
    let mut found = Findings::about("kubernetes");
    let Some(settings) = &config.kubernetes else { return found.into_vec() };
    if let Some(bundle) = bundle {
        for controller in settings.clusters.iter().flat_map(settings::Cluster::controllers) {
            if let Some(IssuerProblem { cause, remedy }) = controller.issuer_problem(bundle.issuer()) {
                found.error(format!("[kubernetes.cluster.{}]: {cause}", controller.name()), remedy);
            }
        }
    }
    match clusters {
        Ok(None) => {}
        Err(errors) => {
            for error in errors {
                found.failed(&error, "correct it in [kubernetes]");
            }
        }
        Ok(Some(clusters)) => {
            for cluster in clusters.iter() {
                let name = cluster.name();
                let needed = permissions::needed(settings, cluster.settings(), clusters.namespace());
                let count = needed.len();
                for interface in unserved(cluster).await {
                    found.warning(
                        format!("cluster {name}: its API server does not serve {interface}"),
                        "enable it (docs/KUBERNETES.md), or disable the feature that needs it",
                    );
                }
                match tokio::time::timeout(API_SERVER_TIMEOUT, permissions::missing(cluster.client(), needed)).await {
                Ok(Ok(missing)) if missing.is_empty() => {
                    found.ok(format!("cluster {name}: its API server grants all {count} required permissions"));
                }
                Ok(Ok(missing)) => {
                    for permission in missing {
                        found.warning(
                            format!("cluster {name}: the daemon may not {permission}"),
                            "grant it as deploy/helm does, or disable the feature that needs it",
                        );
                    }
                }
                Ok(Err(error)) => found.warning(
                    format!("cluster {name}: its API server does not respond: {}", chain(&error)),
                    "make it reachable from this host; meanwhile `serve` serves callers that do not need it, and keeps trying",
                ),
                Err(_) => found.warning(
                    format!("cluster {name}: its API server does not respond within {} s", API_SERVER_TIMEOUT.as_secs()),
                    "make it reachable from this host; meanwhile `serve` serves callers that do not need it, and keeps trying",
                ),
            }
            }
        }
    }
    found.into_vec()
}
