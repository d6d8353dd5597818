//! The configured clusters and the clients of their API servers.
//!
//! Making a client touches no network: an API server that is away stops neither the daemon nor another cluster's
//! work. Called by `daemon` at start; the clients are cloned by everything else in this module.

use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::sync::watch;

use super::{
    settings::{self, Settings},
    standing::{Standing, Standings},
};
use crate::{auth::ClusterName, telemetry::metrics};
use pki::identity::{Namespace, TrustDomain};

pub use process::error::chain;
use process::error::{Advice, Remedy};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the API server lets a watch go on before it is asked for again, in seconds: one that was cut without a word
/// is found out by then.
pub(super) const WATCH_SECONDS: u32 = 60;
/// How long a connection on which an answer is due may be silent; longer than a watch is.
const SILENCE: Duration = Duration::from_secs(75);
/// How often an API server is asked whether it is there.
const PROBE: Duration = Duration::from_secs(10);
/// How long it may take to answer that.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where a pod reads which namespace it is in.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Why a cluster cannot be used at all. That its API server is away is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig gives no client.
    #[error("cluster {cluster}: no client can be made of {kubeconfig}: {source}{advice}", advice = Advice(self))]
    Client {
        /// The cluster.
        cluster: ClusterName,
        /// Where the settings came from.
        kubeconfig: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// Not in a pod, or the pod has no service account.
    #[error("cluster {cluster}: the daemon has no service account: {source}{advice}", advice = Advice(self))]
    InCluster {
        /// The cluster.
        cluster: ClusterName,
        /// Why not.
        source: InClusterError,
    },
    /// The kubeconfig cannot be read.
    #[error("cluster {cluster}: {kubeconfig}: {source}")]
    Kubeconfig {
        /// The cluster.
        cluster: ClusterName,
        /// The file.
        kubeconfig: PathBuf,
        /// Why not.
        source: Box<KubeconfigError>,
    },
    /// The daemon's namespace is needed and not known.
    #[error("[kubernetes] namespace: not set, and {OWN_NAMESPACE} does not say it; set it")]
    NoNamespace,
    /// The replica's name is needed and not known.
    #[error("[kubernetes] identity: not set, and the machine has no host name; set it")]
    NoIdentity,
    /// No trust domain for a cluster's workloads.
    #[error("cluster {cluster}: set its trust_domain, or one of the CA's own")]
    NoTrustDomain {
        /// The cluster.
        cluster: ClusterName,
    },
}

impl Remedy for ClusterError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Client { .. } => Some("mend its certificates and keys".into()),
            Self::InCluster { .. } => Some("run it in a pod, or set kubeconfig".into()),
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
    client: Quiet,
    settings: settings::Cluster,
    health: watch::Sender<Option<String>>,
    standings: Standings,
}

/// A client that has a `Debug`.
#[derive(Clone)]
struct Quiet(Client);

impl std::fmt::Debug for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// All clusters of the configuration, the first one being the one that holds the Lease.
#[derive(Debug)]
pub struct Clusters {
    clusters: Vec<Arc<Cluster>>,
    namespace: Option<Namespace>,
    identity: String,
}

impl Cluster {
    /// Makes a cluster's client; the network is not touched. `own` are the CA's trust domains.
    ///
    /// # Errors
    /// When kubeconfig or service account cannot be read or used.
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
        config.connect_timeout = Some(CONNECT);
        // A connection that is dead without a word must not hold a controller up for ever.
        config.read_timeout = Some(SILENCE);
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
        Ok(Self { name, trust_domain, client: Quiet(client), settings, health, standings: Standings::default() })
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

    /// What is done in it.
    #[must_use]
    pub fn settings(&self) -> &settings::Cluster {
        &self.settings
    }

    /// Why its API server does not answer; `None` while it does.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Option<String>> {
        self.health.subscribe()
    }

    /// How one of its controllers stands, by the controller's name, now and later.
    #[must_use]
    pub fn standing(&self, controller: &'static str) -> watch::Receiver<Standing> {
        self.standings.watch(controller)
    }

    /// How its controllers stand, by name.
    #[must_use]
    pub fn controllers(&self) -> Vec<(&'static str, Standing)> {
        self.standings.all()
    }

    pub(super) fn standings(&self) -> &Standings {
        &self.standings
    }

    /// Asks the API server again and again whether it is there, until dropped. `/version` is open to every
    /// authenticated user by Kubernetes' default roles; a refusal is an answer too.
    pub async fn probe(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PROBE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let trouble = match tokio::time::timeout(PATIENCE, self.client.0.apiserver_version()).await {
                Ok(Ok(_)) => None,
                Ok(Err(kube::Error::Api(status))) if status.code != 401 && status.code < 500 => None,
                Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
                    Some("the API server does not know the daemon's credentials (401)".to_owned())
                }
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some(format!("the API server did not answer within {} s", PATIENCE.as_secs())),
            };
            let up = if trouble.is_none() { 1.0 } else { 0.0 };
            metrics::level("istio_hsm_ca_api_server_up", Some(("cluster", self.name.to_string())), up);
            self.health.send_if_modified(|health| std::mem::replace(health, trouble.clone()) != trouble);
        }
    }
}

impl Clusters {
    /// Makes every cluster's client; the network is not touched. `own` are the CA's trust domains.
    ///
    /// # Errors
    /// Everything that cannot be used.
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
        if namespace.is_none() && (settings.needs_leader() || settings.checkpoints.is_some()) {
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

    /// The one that holds the Lease and the checkpoints.
    #[must_use]
    pub fn first(&self) -> Option<&Arc<Cluster>> {
        self.clusters.first()
    }

    /// The daemon's own namespace; known wherever a controller or the checkpoints are configured.
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
