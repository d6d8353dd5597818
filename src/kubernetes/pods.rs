//! The pods of a cluster as far as node impersonation needs them: watched, remembered small, and looked up once before
//! anybody is refused.
//!
//! A cache that is behind, cut off or not filled yet costs an answer from the API server, never a wrong refusal; while
//! the API server is away, what is remembered still holds, as it does for Istio. Failed pods do not count (ISTIO:
//! security/pkg/server/ca/node_auth.go). RBAC: get, list and watch pods.

mod store;

use std::{
    fmt::Write,
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::TryStreamExt;
use kube::{
    Api,
    api::ListParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{Semaphore, watch};

use self::store::{PodView, Store};
use super::cluster::{Cluster, Clusters, WATCH_SECONDS, chain};
use crate::{
    auth::{
        node::{NodeCluster, Nodes, Pod, Pods},
        token_review::{BoxFuture, Unanswered},
    },
    telemetry::metrics,
};
use pki::identity::{Namespace, ServiceAccount};

/// Which pods are watched and looked up.
const NOT_FAILED: &str = "status.phase!=Failed";
/// How many lookups are under way at one API server.
const AT_ONCE: usize = 16;
/// How long a lookup may take, its wait for a place included.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cluster's pods.
#[derive(Debug)]
pub struct WatchedPods {
    cluster: Arc<Cluster>,
    store: RwLock<Store>,
    lookups: Semaphore,
    synced: watch::Sender<bool>,
}

/// The clusters with node impersonation, as configured, and the watches that they need.
#[must_use]
pub fn nodes(clusters: &Clusters) -> (Nodes, Vec<Arc<WatchedPods>>) {
    let (mut nodes, mut watches) = (Vec::new(), Vec::new());
    for cluster in clusters.iter() {
        let Some(settings) = &cluster.settings().node_impersonation else { continue };
        let pods = Arc::new(WatchedPods::new(Arc::clone(cluster)));
        let trusted = settings.trusted_accounts.iter();
        nodes.push(NodeCluster {
            cluster: cluster.name().clone(),
            trusted: trusted.map(|one| (one.namespace.clone(), one.service_account.clone())).collect(),
            pods: Arc::<WatchedPods>::clone(&pods),
        });
        watches.push(pods);
    }
    (Nodes::new(nodes), watches)
}

impl WatchedPods {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, store: RwLock::default(), lookups: Semaphore::new(AT_ONCE), synced: watch::Sender::new(false) }
    }

    /// Whether every pod has been seen once.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// How many pods are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Watches until dropped; a watch that is cut is begun again where it ended, or from a new list.
    pub async fn watch(self: Arc<Self>) {
        let pods: Api<PodView> = Api::all(self.cluster.client());
        let config = watcher::Config::default().fields(NOT_FAILED).timeout(WATCH_SECONDS);
        let mut events = std::pin::pin!(watcher(pods, config).default_backoff());
        let mut told = None;
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    told = None;
                    self.take(event);
                }
                Ok(None) => return,
                Err(error) => {
                    let reason = chain(&error);
                    if told.as_ref() != Some(&reason) {
                        tracing::warn!(cluster = %self.cluster.name(), reason, "the pods are not watched now");
                        told = Some(reason);
                    }
                }
            }
        }
    }

    fn take(&self, event: watcher::Event<PodView>) {
        let done = matches!(event, watcher::Event::InitDone);
        let count = {
            let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
            store.take(event);
            store.len()
        };
        if done {
            tracing::info!(cluster = %self.cluster.name(), pods = count, "every pod is known");
            self.synced.send_replace(true);
        }
        #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a gauge")]
        metrics::level("istio_hsm_ca_pods", Some(("cluster", self.cluster.name().to_string())), count as f64);
    }

    async fn look_up<T>(&self, lookup: impl Future<Output = Result<T, kube::Error>> + Send) -> Result<T, Unanswered> {
        metrics::pod_lookup(self.cluster.name().as_str());
        let asking = async {
            let _place = self.lookups.acquire().await.map_err(|_| Unanswered("the daemon is ending".to_owned()))?;
            lookup.await.map_err(|error| Unanswered(chain(&error)))
        };
        let late = |_| Unanswered(format!("no answer within {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, asking).await.map_err(late)?
    }

    async fn find(&self, namespace: &Namespace, name: &str, uid: &str) -> Result<Option<Pod>, Unanswered> {
        let known = self.store.read().unwrap_or_else(PoisonError::into_inner).pod(namespace, name);
        if let Some(known) = known.filter(|pod| pod.uid == uid && !pod.node.is_empty()) {
            return Ok(Some(known));
        }
        let pods: Api<PodView> = Api::namespaced(self.cluster.client(), namespace.as_str());
        let found = self.look_up(pods.get_opt(name)).await?;
        Ok(found.filter(|pod| !pod.failed()).map(|pod| pod.pod()))
    }

    async fn has(&self, node: &str, namespace: &Namespace, account: &ServiceAccount) -> Result<bool, Unanswered> {
        if self.store.read().unwrap_or_else(PoisonError::into_inner).runs(node, namespace, account) {
            return Ok(true);
        }
        let mut selector = NOT_FAILED.to_owned();
        let _ = write!(selector, ",spec.nodeName={node},spec.serviceAccountName={account}");
        let pods: Api<PodView> = Api::namespaced(self.cluster.client(), namespace.as_str());
        let found = self.look_up(pods.list(&ListParams::default().fields(&selector).limit(1))).await?;
        // What the selector means is the API server's word; that it was followed is checked.
        Ok(found.items.iter().any(|pod| pod.is_of(node, namespace, account)))
    }
}

impl Pods for WatchedPods {
    fn pod<'a>(
        &'a self,
        namespace: &'a Namespace,
        name: &'a str,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<Pod>, Unanswered>> {
        Box::pin(self.find(namespace, name, uid))
    }

    fn runs<'a>(
        &'a self,
        node: &'a str,
        namespace: &'a Namespace,
        account: &'a ServiceAccount,
    ) -> BoxFuture<'a, Result<bool, Unanswered>> {
        Box::pin(self.has(node, namespace, account))
    }
}
