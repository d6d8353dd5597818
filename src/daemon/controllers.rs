//! Which controllers run: those that are configured, for each cluster, while this replica leads.
//!
//! What fails there is told in logs, metrics and readiness and keeps the endpoint from nothing. Called by the composition root.

use std::{future::Future, sync::Arc};

use tokio::sync::watch;

use super::{background::Background, readiness::Readiness};
use crate::{
    config::Config,
    issue::CertificateAuthority,
    kubernetes::{
        Cluster, Clusters, checkpoints, csr_signer, intermediate, istiod_secret, leader, root_configmap,
        standing::Standing, workload_secret,
    },
};

/// Starts them.
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
        remark(cluster, checkpoints::NAME, readiness, background);
        let (cluster, namespace) = (Arc::clone(cluster), namespace.to_string());
        background.spawn_until_end(checkpoints::run(cluster, namespace, replica, checkpoints.clone(), newest));
    }
    let Some(leading) = leading else { return };
    for cluster in clusters.iter() {
        let runner = Runner { cluster, ca, leading, readiness, background };
        let settings = cluster.settings();
        runner.start(root_configmap::NAME, settings.root_configmap.as_ref(), root_configmap::run);
        runner.start(istiod_secret::NAME, settings.istiod_certificate.as_ref(), istiod_secret::run);
        runner.start(workload_secret::NAME, settings.workload_secrets.as_ref(), workload_secret::run);
        let signers = (!settings.signers.is_empty()).then_some(&settings.signers);
        runner.start(csr_signer::NAME, signers, csr_signer::run);
        if settings.intermediate.is_some() && !ca.issuer().has_room_for_intermediate() {
            tracing::error!(
                cluster = %cluster.name(),
                "no intermediate will be made: the path length of the CA's certificate, or of one above it, forbids a CA \
                 below it; run `istio-hsm-ca check`"
            );
        }
        runner.start(intermediate::NAME, settings.intermediate.as_ref(), intermediate::run);
    }
}

/// Has a controller's trouble told in readiness; the daemon stays ready.
fn remark(cluster: &Cluster, name: &'static str, readiness: &Readiness, background: &Background) {
    let voice = readiness.remark(format!("controller {name} in {}", cluster.name()));
    background.follow(cluster.standing(name), voice, Standing::trouble);
}

struct Runner<'a> {
    cluster: &'a Arc<Cluster>,
    ca: &'a Arc<CertificateAuthority>,
    leading: &'a watch::Receiver<bool>,
    readiness: &'a Readiness,
    background: &'a Background,
}

impl Runner<'_> {
    /// Runs a controller while this replica leads, if it is configured.
    fn start<S, F>(
        &self,
        name: &'static str,
        settings: Option<&S>,
        run: impl Fn(Arc<Cluster>, Arc<CertificateAuthority>, S) -> F + Send + Sync + 'static,
    ) where
        S: Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(settings) = settings.cloned() else { return };
        remark(self.cluster, name, self.readiness, self.background);
        let (cluster, ca, leading) = (Arc::clone(self.cluster), Arc::clone(self.ca), self.leading.clone());
        self.background.spawn_until_end(async move {
            leader::while_leading(leading, || run(Arc::clone(&cluster), Arc::clone(&ca), settings.clone())).await;
        });
    }
}
