//! The cached pods by name, and their number by node and service account. Some hundred bytes per pod. Pure.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Resource, runtime::watcher::Event};
use serde::Deserialize;

use crate::auth::node::Pod;
use pki::identity::{Namespace, ServiceAccount};

/// The fields of a pod that are used.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodView {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    service_account_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: String,
}

impl PodView {
    /// Whether its phase is Failed, which is final.
    pub fn failed(&self) -> bool {
        self.status.phase == "Failed"
    }

    /// Whether it runs under a service account on a node and has not failed.
    pub fn is_of(&self, node: &str, namespace: &Namespace, account: &ServiceAccount) -> bool {
        !self.failed()
            && self.spec.node_name == node
            && self.metadata.namespace.as_deref() == Some(namespace.as_str())
            && self.spec.service_account_name == account.as_str()
    }

    pub fn pod(self) -> Pod {
        Pod {
            uid: self.metadata.uid.unwrap_or_default(),
            service_account: self.spec.service_account_name,
            node: self.spec.node_name,
        }
    }

    fn key(&self) -> Key {
        Key(join(
            self.metadata.namespace.as_deref().unwrap_or_default(),
            self.metadata.name.as_deref().unwrap_or_default(),
        ))
    }
}

impl Resource for PodView {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        v1::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        v1::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        v1::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        v1::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// `namespace/name`: neither has a slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key(Box<str>);

fn join(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into()
}

/// A node and a service account, shared by all its pods there.
#[derive(Debug, PartialEq, Eq, Hash)]
struct NodeAccount {
    node: Box<str>,
    /// `namespace/service-account`.
    account: Box<str>,
}

#[derive(Debug)]
struct CachedPod {
    uid: Box<str>,
    location: Arc<NodeAccount>,
}

#[derive(Debug, Default)]
struct PodSet {
    pods: HashMap<Key, CachedPod>,
    counts: HashMap<Arc<NodeAccount>, usize>,
}

/// The cached pods, and those of a list that is not complete yet.
#[derive(Debug, Default)]
pub struct Store {
    current: PodSet,
    pending: Option<PodSet>,
}

impl Store {
    /// Applies an event of the watch. A list replaces the cached pods when it is complete.
    pub fn apply(&mut self, event: Event<PodView>) {
        match event {
            Event::Init => self.pending = Some(PodSet::default()),
            Event::InitApply(pod) => self.pending.get_or_insert_default().put(pod),
            Event::InitDone => {
                if let Some(pending) = self.pending.take() {
                    self.current = pending;
                }
            }
            Event::Apply(pod) => self.current.put(pod),
            Event::Delete(pod) => self.current.remove(&pod.key()),
        }
    }

    /// The number of cached pods.
    pub fn len(&self) -> usize {
        self.current.pods.len()
    }

    /// The pod with this name.
    pub fn pod(&self, namespace: &Namespace, name: &str) -> Option<Pod> {
        let cached = self.current.pods.get(&Key(join(namespace.as_str(), name)))?;
        let (_, account) = cached.location.account.split_once('/')?;
        Some(Pod {
            uid: cached.uid.to_string(),
            service_account: account.to_owned(),
            node: cached.location.node.to_string(),
        })
    }

    /// Whether a pod of a service account runs on a node.
    pub fn runs(&self, node: &str, namespace: &Namespace, account: &ServiceAccount) -> bool {
        let location = NodeAccount { node: node.into(), account: join(namespace.as_str(), account.as_str()) };
        !node.is_empty() && self.current.counts.contains_key(&location)
    }
}

impl PodSet {
    fn put(&mut self, pod: PodView) {
        let key = pod.key();
        if pod.failed() {
            return self.remove(&key);
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = join(namespace, &pod.spec.service_account_name);
        let location = NodeAccount { node: pod.spec.node_name.into(), account };
        let shared = self.counts.get_key_value(&location).map(|(shared, _)| Arc::clone(shared));
        let location = shared.unwrap_or_else(|| Arc::new(location));
        *self.counts.entry(Arc::clone(&location)).or_default() += 1;
        let cached = CachedPod { uid: pod.metadata.uid.unwrap_or_default().into(), location };
        if let Some(previous) = self.pods.insert(key, cached) {
            self.uncount(&previous.location);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(removed) = self.pods.remove(key) {
            self.uncount(&removed.location);
        }
    }

    fn uncount(&mut self, location: &Arc<NodeAccount>) {
        let left = self.counts.get_mut(location).map(|count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == Some(0) {
            self.counts.remove(location);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, node: &str, account: &str, phase: &str) -> PodView {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name, "uid": uid, "managedFields": [{"manager": "x"}]},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
            "status": {"phase": phase, "podIP": "10.0.0.1"},
        }))
        .unwrap()
    }

    fn runs(store: &Store, node: &str, account: &str) -> bool {
        store.runs(node, &"shop".parse().unwrap(), &account.parse().unwrap())
    }

    #[test]
    fn store_follows_pods_that_start_move_fail_and_end() {
        let mut store = Store::default();
        store.apply(Event::Apply(pod("a", "1", "", "web", "Pending")));
        assert!(!runs(&store, "", "web") && !runs(&store, "n1", "web"));
        store.apply(Event::Apply(pod("a", "1", "n1", "web", "Pending")));
        store.apply(Event::Apply(pod("b", "2", "n1", "web", "Running")));
        assert!(runs(&store, "n1", "web") && !runs(&store, "n2", "web") && !runs(&store, "n1", "other"));
        store.apply(Event::Apply(pod("a", "1", "n1", "web", "Failed")));
        assert!(runs(&store, "n1", "web"), "b is still there");
        store.apply(Event::Apply(pod("b", "3", "n2", "web", "Running")));
        assert!(!runs(&store, "n1", "web") && runs(&store, "n2", "web"));
        let known = store.pod(&"shop".parse().unwrap(), "b").unwrap();
        assert_eq!((&*known.uid, &*known.service_account, &*known.node), ("3", "web", "n2"));
        store.apply(Event::Delete(pod("b", "3", "n2", "web", "Running")));
        assert_eq!((store.len(), store.current.counts.len()), (0, 0));
    }

    #[test]
    fn list_replaces_the_store_when_it_is_complete() {
        let mut store = Store::default();
        store.apply(Event::Apply(pod("a", "1", "n1", "web", "Running")));
        store.apply(Event::Init);
        store.apply(Event::InitApply(pod("b", "2", "n2", "web", "Running")));
        assert!(runs(&store, "n1", "web") && !runs(&store, "n2", "web"));
        store.apply(Event::InitDone);
        assert!(!runs(&store, "n1", "web") && runs(&store, "n2", "web"));
        // An interrupted list leaves nothing behind.
        store.apply(Event::Init);
        store.apply(Event::InitApply(pod("c", "3", "n3", "web", "Running")));
        store.apply(Event::Init);
        store.apply(Event::InitDone);
        assert_eq!(store.len(), 0);
    }
}
