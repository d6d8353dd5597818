//! A cache of a cluster's pods for node impersonation.
//!
//! A pod missing from the cache is looked up before a caller is rejected, so an outdated cache costs a request to the
//! API server but never a wrong rejection. While the API server is unreachable, the cached pods stay valid, as they do
//! in Istio. Failed pods are ignored (ISTIO: security/pkg/server/ca/node_auth.go).

mod store;

use std::{fmt::Write, future::Future, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{Api, api::ListParams, runtime::watcher};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};

use self::store::{PodView, Store};
use super::{
    cluster::{Cluster, Clusters, chain},
    watch_stream::{WatchItem, watch_stream},
};
use crate::{
    auth::{
        node::{NodeCluster, Nodes, Pod, Pods},
        token_review::{BoxFuture, Unanswered},
    },
    telemetry::metrics,
};
use pki::identity::{Namespace, ServiceAccount};

/// The field selector of watches and lookups.
const NOT_FAILED: &str = "status.phase!=Failed";
const CONCURRENT_LOOKUPS: usize = 16;
/// Timeout of a lookup, including the time in the queue.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The cached pods of a cluster.
#[derive(Debug)]
pub struct WatchedPods {
    cluster: Arc<Cluster>,
    store: RwLock<Store>,
    lookups: Semaphore,
    synced: watch::Sender<bool>,
}

/// The clusters with node impersonation, and the pods to watch for them.
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
    /// An empty cache.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            store: RwLock::default(),
            lookups: Semaphore::new(CONCURRENT_LOOKUPS),
            synced: watch::Sender::new(false),
        }
    }

    /// Whether the cache has listed all pods once.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// The number of cached pods.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.read().len()
    }

    /// Whether no pod is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Watches until dropped.
    pub async fn watch(self: Arc<Self>) {
        let cluster = self.cluster.name();
        let pods: Api<PodView> = Api::all(self.cluster.client());
        let mut items = std::pin::pin!(watch_stream(pods, watcher::Config::default().fields(NOT_FAILED)));
        let mut last_failure = None;
        while let Some(item) = items.next().await {
            match item {
                WatchItem::Event(event) => self.apply(event),
                WatchItem::Failed(reason) => {
                    if last_failure.as_ref() != Some(&reason) {
                        tracing::warn!(%cluster, reason, "the watch of pods failed; will retry");
                        last_failure = Some(reason);
                    }
                }
                WatchItem::Recovered => {
                    tracing::info!(%cluster, "the watch of pods works again");
                    last_failure = None;
                }
            }
        }
    }

    fn apply(&self, event: watcher::Event<PodView>) {
        let done = matches!(event, watcher::Event::InitDone);
        let count = {
            let mut store = self.store.write();
            store.apply(event);
            store.len()
        };
        if done {
            tracing::info!(cluster = %self.cluster.name(), pods = count, "all pods are cached");
            self.synced.send_replace(true);
        }
        #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a gauge")]
        metrics::level("istio_hsm_ca_pods", Some(("cluster", self.cluster.name().to_string())), count as f64);
    }

    async fn look_up<T>(&self, lookup: impl Future<Output = Result<T, kube::Error>> + Send) -> Result<T, Unanswered> {
        metrics::pod_lookup(self.cluster.name().as_str());
        let request = async {
            let _permit =
                self.lookups.acquire().await.map_err(|_| Unanswered("the daemon is shutting down".to_owned()))?;
            lookup.await.map_err(|error| Unanswered(chain(&error)))
        };
        let late = |_| Unanswered(format!("no response within {} s", LOOKUP_TIMEOUT.as_secs()));
        tokio::time::timeout(LOOKUP_TIMEOUT, request).await.map_err(late)?
    }

    async fn find(&self, namespace: &Namespace, name: &str, uid: &str) -> Result<Option<Pod>, Unanswered> {
        let known = self.store.read().pod(namespace, name);
        if let Some(known) = known.filter(|pod| pod.uid == uid && !pod.node.is_empty()) {
            return Ok(Some(known));
        }
        let pods: Api<PodView> = Api::namespaced(self.cluster.client(), namespace.as_str());
        let found = self.look_up(pods.get_opt(name)).await?;
        Ok(found.filter(|pod| !pod.failed()).map(|pod| pod.pod()))
    }

    async fn has(&self, node: &str, namespace: &Namespace, account: &ServiceAccount) -> Result<bool, Unanswered> {
        if self.store.read().runs(node, namespace, account) {
            return Ok(true);
        }
        let mut selector = NOT_FAILED.to_owned();
        let _ = write!(selector, ",spec.nodeName={node},spec.serviceAccountName={account}");
        let pods: Api<PodView> = Api::namespaced(self.cluster.client(), namespace.as_str());
        let found = self.look_up(pods.list(&ListParams::default().fields(&selector).limit(1))).await?;
        // The API server evaluates the selector; check that it did.
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
