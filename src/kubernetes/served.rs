//! Which version of an interface of certificates.k8s.io an API server serves. PodCertificateRequests and
//! ClusterTrustBundles are in v1 since Kubernetes 1.37 and in v1beta1 before, where they are off by default.

use std::{future::Future, sync::Arc, time::Duration};

use kube::{Client, core::ApiResource};

use super::{Cluster, backoff, cluster::chain, status::StatusRecorder};

/// The API group.
pub(super) const GROUP: &str = "certificates.k8s.io";
/// The supported versions, in order of preference.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// Interval of looking whether another version is served, such as after an upgrade of the API server.
const POLL_INTERVAL: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Maximum delay until an interface is used that the API server begins to serve.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// An interface of certificates.k8s.io.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
}

/// The interfaces that a cluster's controllers need and its API server does not serve, as `resource.group`.
///
/// # Errors
/// If the API server does not respond.
pub async fn unserved(cluster: &Cluster) -> Result<Vec<String>, kube::Error> {
    let mut unserved = Vec::new();
    for interface in cluster.settings().controllers().iter().filter_map(|controller| controller.interface()) {
        if interface.version(&cluster.client()).await?.is_none() {
            unserved.push(interface.to_string());
        }
    }
    Ok(unserved)
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{GROUP}", self.plural)
    }
}

impl Interface {
    fn resource(self, version: &str) -> ApiResource {
        ApiResource {
            group: GROUP.to_owned(),
            version: version.to_owned(),
            api_version: format!("{GROUP}/{version}"),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// The version that the API server serves, if any. By Kubernetes' default roles, every authenticated user may ask.
    async fn version(self, client: &Client) -> Result<Option<&'static str>, kube::Error> {
        for version in VERSIONS {
            match client.list_api_group_resources(&format!("{GROUP}/{version}")).await {
                Ok(list) if list.resources.iter().any(|resource| resource.name == self.plural) => {
                    return Ok(Some(version));
                }
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Waits until the API server serves it; reports once that it does not.
    async fn served(self, controller: &'static str, cluster: &Arc<Cluster>) -> &'static str {
        let mut status = StatusRecorder::new(controller, cluster);
        let watch = format!("the interface {self}");
        let mut backoff = backoff::exponential(RETRY_MIN, RETRY_MAX);
        loop {
            let problem = match self.version(&cluster.client()).await {
                Ok(Some(version)) => {
                    status.watch(&watch, None);
                    return version;
                }
                Ok(None) => format!(
                    "the API server serves it in none of the versions {}; enable it (docs/KUBERNETES.md), or remove the \
                     controller from the configuration",
                    VERSIONS.join(", ")
                ),
                Err(error) => chain(&error),
            };
            status.watch(&watch, Some(problem));
            tokio::time::sleep(backoff.next().unwrap_or(RETRY_MAX)).await;
        }
    }

    /// Waits until the API server serves another version, or none.
    async fn changed(self, client: &Client, version: &str) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            if self.version(client).await.is_ok_and(|served| served != Some(version)) {
                return;
            }
        }
    }

    /// Runs a controller of these objects with the version that the API server serves, until dropped.
    pub(super) async fn run<F>(
        self,
        controller: &'static str,
        cluster: &Arc<Cluster>,
        run: impl Fn(ApiResource) -> F + Send,
    ) where
        F: Future<Output = ()> + Send,
    {
        loop {
            let version = self.served(controller, cluster).await;
            let client = cluster.client();
            tokio::select! {
                () = run(self.resource(version)) => return,
                () = self.changed(&client, version) => {
                    tracing::info!(controller, interface = %self, version, "the API server no longer serves this version first");
                }
            }
        }
    }
}
