//! The configured clusters and the clients of their API servers.
//!
//! Creating a client does not use the network: an unreachable API server affects neither the start of the daemon nor
//! other clusters.

use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::sync::watch;

use super::{
    settings::{self, Settings},
    status::{ControllerStatus, ControllerStatuses},
};
use crate::{auth::ClusterName, telemetry::metrics};
use pki::identity::{Namespace, TrustDomain};

pub use process::error::chain;
use process::error::{Advice, Remedy};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a watch request in seconds. A silently dropped connection is detected when the request ends.
pub(super) const WATCH_SECONDS: u32 = 60;
/// Maximum time without data on a connection that awaits a response; longer than a watch request.
const READ_TIMEOUT: Duration = Duration::from_secs(75);
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// File with the namespace of the pod.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Error in the configuration of a cluster.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages explain the fields")]
pub enum ClusterError {
    /// No client can be created from the kubeconfig.
    #[error("cluster {cluster}: cannot create a client from {kubeconfig}: {source}{advice}", advice = Advice(self))]
    Client {
        cluster: ClusterName,
        /// The file, or the pod's service account.
        kubeconfig: String,
        source: Box<kube::Error>,
    },
    /// The daemon does not run in a pod, or the pod has no service account.
    #[error("cluster {cluster}: the daemon has no service account: {source}{advice}", advice = Advice(self))]
    InCluster { cluster: ClusterName, source: InClusterError },
    /// The kubeconfig cannot be read.
    #[error("cluster {cluster}: {kubeconfig}: {source}")]
    Kubeconfig { cluster: ClusterName, kubeconfig: PathBuf, source: Box<KubeconfigError> },
    /// The daemon's namespace is needed but not known.
    #[error("[kubernetes] namespace: not set, and {OWN_NAMESPACE} does not exist{}", Advice(self))]
    NoNamespace,
    /// The replica's name is needed but not known.
    #[error("[kubernetes] identity: not set, and the host has no name{}", Advice(self))]
    NoIdentity,
    /// A cluster has no trust domain.
    #[error("cluster {cluster}: set its trust_domain, or [ca] trust_domains")]
    NoTrustDomain { cluster: ClusterName },
}

impl Remedy for ClusterError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Client { .. } => Some("check its certificates and keys".into()),
            Self::InCluster { .. } => Some("run it in a pod with one, or set kubeconfig".into()),
            Self::NoNamespace | Self::NoIdentity => Some("set it".into()),
            Self::Kubeconfig { .. } | Self::NoTrustDomain { .. } => None,
        }
    }
}

/// One cluster. Clones of its client share one connection pool.
#[derive(Debug)]
pub struct Cluster {
    name: ClusterName,
    trust_domain: TrustDomain,
    client: DebugClient,
    settings: settings::Cluster,
    health: watch::Sender<Option<String>>,
    statuses: ControllerStatuses,
}

/// A client with `Debug`.
#[derive(Clone)]
struct DebugClient(Client);

impl std::fmt::Debug for DebugClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// All configured clusters. The first one has the Lease.
#[derive(Debug)]
pub struct Clusters {
    clusters: Vec<Arc<Cluster>>,
    namespace: Option<Namespace>,
    identity: String,
}

impl Cluster {
    /// Creates a cluster's client. `own` are the CA's trust domains.
    ///
    /// # Errors
    /// If the kubeconfig or the service account cannot be used.
    pub async fn new(settings: settings::Cluster, own: &[TrustDomain]) -> Result<Self, ClusterError> {
        let name = settings.name.clone();
        let trust_domain = settings.trust_domain.clone().or_else(|| own.first().cloned());
        let trust_domain = trust_domain.ok_or_else(|| ClusterError::NoTrustDomain { cluster: name.clone() })?;
        let mut config = match &settings.kubeconfig {
            Some(file) => {
                let wrong = |source: KubeconfigError| ClusterError::Kubeconfig {
                    cluster: name.clone(),
                    kubeconfig: file.clone(),
                    source: Box::new(source),
                };
                let kubeconfig = Kubeconfig::read_from(file).map_err(wrong)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)?
            }
            None => Config::incluster().map_err(|source| ClusterError::InCluster { cluster: name.clone(), source })?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A silently dropped connection must not block a controller forever.
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        let client = Client::try_from(config).map_err(|source| ClusterError::Client {
            cluster: name.clone(),
            kubeconfig: settings
                .kubeconfig
                .as_ref()
                .map_or_else(|| "the pod's service account".to_owned(), |file| file.display().to_string()),
            source: Box::new(source),
        })?;
        let health = watch::Sender::new(Some("starting".to_owned()));
        Ok(Self {
            name,
            trust_domain,
            client: DebugClient(client),
            settings,
            health,
            statuses: ControllerStatuses::default(),
        })
    }

    /// The cluster ID.
    #[must_use]
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The trust domain of its workloads.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A client of its API server.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.0.clone()
    }

    /// Its section of the configuration.
    #[must_use]
    pub fn settings(&self) -> &settings::Cluster {
        &self.settings
    }

    /// Why its API server does not respond; `None` while it responds.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Option<String>> {
        self.health.subscribe()
    }

    /// The status of one of its controllers, by name.
    #[must_use]
    pub fn controller_status(&self, controller: &'static str) -> watch::Receiver<ControllerStatus> {
        self.statuses.watch(controller)
    }

    /// The status of all its controllers.
    #[must_use]
    pub fn controller_statuses(&self) -> Vec<(&'static str, ControllerStatus)> {
        self.statuses.all()
    }

    pub(super) fn statuses(&self) -> &ControllerStatuses {
        &self.statuses
    }

    /// Probes the API server until dropped. By Kubernetes' default roles, every authenticated user may read `/version`;
    /// a response that denies it shows reachability, too.
    pub async fn probe(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let trouble = match tokio::time::timeout(PROBE_TIMEOUT, self.client.0.apiserver_version()).await {
                Ok(Ok(_)) => None,
                Ok(Err(kube::Error::Api(status))) if status.code != 401 && status.code < 500 => None,
                Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
                    Some("the API server rejects the daemon's credentials (401)".to_owned())
                }
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some(format!("the API server did not respond within {} s", PROBE_TIMEOUT.as_secs())),
            };
            let up = if trouble.is_none() { 1.0 } else { 0.0 };
            metrics::level("istio_hsm_ca_api_server_up", Some(("cluster", self.name.to_string())), up);
            self.health.send_if_modified(|health| std::mem::replace(health, trouble.clone()) != trouble);
        }
    }
}

impl Clusters {
    /// Creates every cluster's client. `own` are the CA's trust domains.
    ///
    /// # Errors
    /// All problems of the configuration.
    pub async fn new(settings: &Settings, own: &[TrustDomain]) -> Result<Self, Vec<ClusterError>> {
        let mut errors = Vec::new();
        let mut clusters = Vec::new();
        for cluster in &settings.clusters {
            match Cluster::new(cluster.clone(), own).await {
                Ok(cluster) => clusters.push(Arc::new(cluster)),
                Err(error) => errors.push(error),
            }
        }
        let namespace =
            settings.namespace.clone().or_else(|| std::fs::read_to_string(OWN_NAMESPACE).ok()?.trim().parse().ok());
        let host = || nix::unistd::gethostname().ok()?.into_string().ok().filter(|name| !name.is_empty());
        let identity = settings.identity.clone().or_else(host);
        let in_namespace = settings.needs_leader() || settings.checkpoints.is_some() || settings.revocations.is_some();
        if namespace.is_none() && in_namespace {
            errors.push(ClusterError::NoNamespace);
        }
        match identity {
            Some(identity) if errors.is_empty() => Ok(Self { clusters, namespace, identity }),
            Some(_) => Err(errors),
            None => {
                errors.push(ClusterError::NoIdentity);
                Err(errors)
            }
        }
    }

    /// The clusters in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.iter()
    }

    /// The cluster with the Lease and the checkpoints.
    #[must_use]
    pub fn first(&self) -> Option<&Arc<Cluster>> {
        self.clusters.first()
    }

    /// The daemon's namespace; known if a controller, the checkpoints or a ConfigMap for revocation are configured.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// This replica's name.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }
}
