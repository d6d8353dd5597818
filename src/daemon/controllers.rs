//! Starts the configured controllers.
//!
//! Failures are reported in logs, metrics and readiness; they never affect the gRPC endpoint.

use std::sync::Arc;

use tokio::sync::watch;

use super::{background::Background, readiness::Readiness};
use crate::{
    config::Config,
    issue::CertificateAuthority,
    kubernetes::{Cluster, Clusters, controllers::checkpoints, leader, status::ControllerStatus},
};

/// Starts the controllers; those that only the leader runs if there is an election.
pub fn start(
    config: &Config,
    clusters: &Clusters,
    ca: &Arc<CertificateAuthority>,
    leading: Option<&watch::Receiver<bool>>,
    readiness: &Readiness,
    background: &Background,
) {
    let Some(settings) = &config.kubernetes else { return };
    if let (Some(checkpoints), Some(cluster), Some(namespace)) =
        (&settings.checkpoints, clusters.first(), clusters.namespace())
    {
        let file = config.log.directory.join(audit_log::CHECKPOINT);
        let newest = Arc::new(move || std::fs::read_to_string(&file).ok());
        let replica = clusters.identity().to_owned();
        report(cluster, checkpoints::NAME, readiness, background);
        let (cluster, namespace) = (Arc::clone(cluster), namespace.to_string());
        background.spawn_until_end(checkpoints::run(cluster, namespace, replica, checkpoints.clone(), newest));
    }
    let Some(leading) = leading else { return };
    for cluster in clusters.iter() {
        for controller in cluster.settings().controllers() {
            if let Some(problem) = controller.issuer_problem(&ca.issuer()) {
                tracing::error!(
                    cluster = %cluster.name(),
                    controller = controller.name(),
                    reason = problem.cause,
                    "the controller cannot work with this CA; run `istio-hsm-ca check`"
                );
            }
            report(cluster, controller.name(), readiness, background);
            let (cluster, ca, leading) = (Arc::clone(cluster), Arc::clone(ca), leading.clone());
            background.spawn_until_end(async move {
                leader::while_leading(leading, || controller.run(Arc::clone(&cluster), Arc::clone(&ca))).await;
            });
        }
    }
}

/// Reports a controller's failures in readiness, without making the daemon unready.
fn report(cluster: &Cluster, name: &'static str, readiness: &Readiness, background: &Background) {
    let handle = readiness.informational(format!("controller {name} in {}", cluster.name()));
    background.follow(cluster.controller_status(name), handle, ControllerStatus::problem);
}
