//! The clusters of `[kubernetes]`: a client for each, its API server's answer, and what the daemon may do there.

use std::time::Duration;

use super::finding::{Finding, Findings};
use crate::{
    config::Config,
    daemon::setup,
    kubernetes::{Clusters, cluster::chain, permissions},
};

/// How long an API server may take for all that is asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// What keeps the configured clusters from being used. An API server that is away does not keep `serve` from starting.
pub(super) fn clusters(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let mut found = Findings::about("kubernetes");
    let Some(settings) = &config.kubernetes else { return Ok(found.into_vec()) };
    if settings.clusters.iter().any(|cluster| cluster.intermediate.is_some())
        && setup::bundle(config).is_ok_and(|bundle| !bundle.issuer().has_room_for_intermediate())
    {
        found.error(
            "[kubernetes.cluster.intermediate]: the path length of the CA's certificate, or of one above it, forbids a CA \
             below it, as in the certificates of Istio's own tools",
            "have a certificate made with a path length of 1 or more, or none; or leave the section out",
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let clusters = match Clusters::new(settings, &config.ca.trust_domains).await {
            Ok(clusters) => clusters,
            Err(errors) => {
                for error in errors {
                    found.failed(&error, "mend it in [kubernetes]");
                }
                return;
            }
        };
        for cluster in clusters.iter() {
            let name = cluster.name();
            let needed = permissions::needed(settings, cluster.settings(), clusters.namespace());
            let count = needed.len();
            match tokio::time::timeout(PATIENCE, permissions::missing(cluster.client(), needed)).await {
                Ok(Ok(missing)) if missing.is_empty() => {
                    found.ok(format!("cluster {name}: its API server grants all {count} permissions that are needed"));
                }
                Ok(Ok(missing)) => {
                    for permission in missing {
                        found.warning(
                            format!("cluster {name}: the daemon may not {permission}"),
                            "grant it as deploy/helm does, or turn the feature off that needs it",
                        );
                    }
                }
                Ok(Err(error)) => found.warning(
                    format!("cluster {name}: its API server does not answer: {}", chain(&error)),
                    "make it reachable from here; `serve` keeps trying, and serves whoever needs no API server",
                ),
                Err(_) => found.warning(
                    format!("cluster {name}: its API server does not answer within {} s", PATIENCE.as_secs()),
                    "make it reachable from here; `serve` keeps trying, and serves whoever needs no API server",
                ),
            }
        }
    });
    Ok(found.into_vec())
}
