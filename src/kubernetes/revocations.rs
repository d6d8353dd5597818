//! The state document of revocation in a ConfigMap, which all replicas watch and change by compare-and-swap.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event},
};
use serde_json::json;

use super::{
    Cluster, Clusters,
    cluster::chain,
    permissions::{Permission, verbs},
    reconcile::is_conflict,
    secret::MANAGED_BY,
    watch_stream::{WatchItem, watch_stream},
};
use crate::{
    auth::token_review::BoxFuture,
    revocation::{
        Store, StoreError,
        state::Document,
        store::{Stored, parse},
    },
};

/// The document's key in the ConfigMap.
const KEY: &str = "revocations.json";

/// Maximum size of the document: a ConfigMap holds 1 MiB (MaxSecretSize and the limit of etcd), with its metadata.
const CAPACITY: usize = (1 << 20) - 16 * 1024;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A ConfigMap with the state document.
#[derive(Debug)]
pub struct ConfigMapStore {
    cluster: Arc<Cluster>,
    namespace: String,
    name: String,
    /// resourceVersion at the last read; `None` if there was no object.
    seen: Mutex<Option<String>>,
}

impl ConfigMapStore {
    /// The store in the daemon's namespace of the first cluster. Nothing is read yet.
    ///
    /// # Errors
    /// If there is no cluster, or the daemon's namespace is not known.
    pub fn new(clusters: &Clusters, name: &str) -> Result<Self, StoreError> {
        let missing = |reason: &str, remedy| StoreError::Unavailable {
            place: format!("ConfigMap {name}"),
            reason: reason.to_owned(),
            remedy,
        };
        let cluster =
            clusters.first().ok_or_else(|| missing("no cluster is configured", "add [[kubernetes.cluster]]"))?;
        let namespace = clusters
            .namespace()
            .ok_or_else(|| missing("the daemon's namespace is not known", "set [kubernetes] namespace"))?;
        let (cluster, namespace) = (Arc::clone(cluster), namespace.to_string());
        Ok(Self { cluster, namespace, name: name.to_owned(), seen: Mutex::default() })
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    fn failed(&self, error: &kube::Error) -> StoreError {
        let remedy = match error {
            kube::Error::Api(status) if status.code == 403 => {
                "let the daemon's account get, list, watch, create and patch this ConfigMap"
            }
            _ => "",
        };
        StoreError::Unavailable { place: self.place(), reason: chain(error), remedy }
    }

    /// Limits the time of a request.
    async fn within<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, StoreError> {
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_conflict(&error) => Err(StoreError::Conflict),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(StoreError::Unavailable {
                place: self.place(),
                reason: format!("the API server did not respond within {} s", TIMEOUT.as_secs()),
                remedy: "",
            }),
        }
    }

    async fn get(&self) -> Result<Stored, StoreError> {
        let found = self.within(self.api().get_opt(&self.name)).await?;
        let version = found.as_ref().and_then(|object| object.metadata.resource_version.clone());
        let document = match found.and_then(|object| object.data).and_then(|mut data| data.remove(KEY)) {
            Some(text) => parse(&self.place(), text.as_bytes())?,
            None => Document::default(),
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&version);
        Ok(Stored { document, version })
    }

    async fn put(&self, content: &[u8], version: Option<&str>) -> Result<(), StoreError> {
        let text = String::from_utf8_lossy(content).into_owned();
        match version {
            // The API server compares the resourceVersion.
            Some(version) => {
                let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "data": {KEY: text}}));
                self.within(self.api().patch(&self.name, &PatchParams::default(), &patch)).await.map(drop)
            }
            None => {
                let labels = BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())]);
                let metadata =
                    ObjectMeta { name: Some(self.name.clone()), labels: Some(labels), ..ObjectMeta::default() };
                let data = Some(BTreeMap::from([(KEY.to_owned(), text)]));
                let object = ConfigMap { metadata, data, ..ConfigMap::default() };
                self.within(self.api().create(&PostParams::default(), &object)).await.map(drop)
            }
        }
    }

    /// Watches the object until it is another one than at the last read, or the watch fails.
    async fn watch(&self) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = Box::pin(watch_stream(self.api(), config));
        let mut listed = None;
        while let Some(item) = events.next().await {
            match item {
                WatchItem::Event(Event::InitApply(object) | Event::Apply(object)) => {
                    if object.metadata.resource_version != seen {
                        return;
                    }
                    listed = object.metadata.resource_version;
                }
                WatchItem::Event(Event::InitDone) if listed != seen => return,
                WatchItem::Event(Event::Delete(_)) | WatchItem::Failed(_) => return,
                WatchItem::Event(Event::Init | Event::InitDone) | WatchItem::Recovered => {}
            }
        }
    }
}

impl Store for ConfigMapStore {
    fn place(&self) -> String {
        format!("ConfigMap {}/{}", self.namespace, self.name)
    }

    fn capacity(&self) -> Option<usize> {
        Some(CAPACITY)
    }

    fn read(&self) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(self.get())
    }

    fn replace<'a>(&'a self, content: &'a [u8], version: Option<&'a str>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.put(content, version))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.watch())
    }
}

/// The permissions needed in the daemon's namespace for the ConfigMap.
#[must_use]
pub(super) fn permissions(namespace: Option<&str>, name: &str) -> Vec<Permission> {
    [
        verbs("", "configmaps", &["create"], namespace, None),
        verbs("", "configmaps", &["get", "list", "watch", "patch"], namespace, Some(name)),
    ]
    .concat()
}
