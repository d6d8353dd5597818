//! The remembered pods: by name, and counted by node and service account. Some hundred bytes a pod.
//!
//! Pure: events in, answers out.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Resource, runtime::watcher::Event};
use serde::Deserialize;

use crate::auth::node::Pod;
use pki::identity::{Namespace, ServiceAccount};

/// A pod as the API server sends it, without what is not looked at.
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
    /// Whether it has failed for good.
    pub fn failed(&self) -> bool {
        self.status.phase == "Failed"
    }

    /// Whether it is one of a service account on a node, and has not failed.
    pub fn is_of(&self, node: &str, namespace: &Namespace, account: &ServiceAccount) -> bool {
        !self.failed()
            && self.spec.node_name == node
            && self.metadata.namespace.as_deref() == Some(namespace.as_str())
            && self.spec.service_account_name == account.as_str()
    }

    /// What matters of it.
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

/// Where pods of one service account are; one text for all of them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Place {
    node: Box<str>,
    /// `namespace/service-account`.
    account: Box<str>,
}

#[derive(Debug)]
struct Known {
    uid: Box<str>,
    place: Arc<Place>,
}

/// A set of pods.
#[derive(Debug, Default)]
struct Set {
    pods: HashMap<Key, Known>,
    places: HashMap<Arc<Place>, usize>,
}

/// What is remembered, and what a new list has brought so far.
#[derive(Debug, Default)]
pub struct Store {
    current: Set,
    coming: Option<Set>,
}

impl Store {
    /// Takes an event of the watch. A new list counts once it is complete; until then the old one does.
    pub fn take(&mut self, event: Event<PodView>) {
        match event {
            Event::Init => self.coming = Some(Set::default()),
            Event::InitApply(pod) => self.coming.get_or_insert_default().put(pod),
            Event::InitDone => {
                if let Some(coming) = self.coming.take() {
                    self.current = coming;
                }
            }
            Event::Apply(pod) => self.current.put(pod),
            Event::Delete(pod) => self.current.remove(&pod.key()),
        }
    }

    /// How many pods are remembered.
    pub fn len(&self) -> usize {
        self.current.pods.len()
    }

    /// The pod of a name.
    pub fn pod(&self, namespace: &Namespace, name: &str) -> Option<Pod> {
        let known = self.current.pods.get(&Key(join(namespace.as_str(), name)))?;
        let (_, account) = known.place.account.split_once('/')?;
        Some(Pod {
            uid: known.uid.to_string(),
            service_account: account.to_owned(),
            node: known.place.node.to_string(),
        })
    }

    /// Whether a node has a pod of a service account.
    pub fn runs(&self, node: &str, namespace: &Namespace, account: &ServiceAccount) -> bool {
        let place = Place { node: node.into(), account: join(namespace.as_str(), account.as_str()) };
        !node.is_empty() && self.current.places.contains_key(&place)
    }
}

impl Set {
    fn put(&mut self, pod: PodView) {
        let key = pod.key();
        if pod.failed() {
            return self.remove(&key);
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = join(namespace, &pod.spec.service_account_name);
        let place = Place { node: pod.spec.node_name.into(), account };
        let place = self.places.get_key_value(&place).map_or_else(|| Arc::new(place), |(known, _)| Arc::clone(known));
        *self.places.entry(Arc::clone(&place)).or_default() += 1;
        let known = Known { uid: pod.metadata.uid.unwrap_or_default().into(), place };
        if let Some(before) = self.pods.insert(key, known) {
            self.leave(&before.place);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(known) = self.pods.remove(key) {
            self.leave(&known.place);
        }
    }

    fn leave(&mut self, place: &Arc<Place>) {
        let left = self.places.get_mut(place).map(|count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == Some(0) {
            self.places.remove(place);
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
    fn pods_come_move_fail_and_go() {
        let mut store = Store::default();
        store.take(Event::Apply(pod("a", "1", "", "web", "Pending")));
        assert!(!runs(&store, "", "web") && !runs(&store, "n1", "web"));
        store.take(Event::Apply(pod("a", "1", "n1", "web", "Pending")));
        store.take(Event::Apply(pod("b", "2", "n1", "web", "Running")));
        assert!(runs(&store, "n1", "web") && !runs(&store, "n2", "web") && !runs(&store, "n1", "other"));
        store.take(Event::Apply(pod("a", "1", "n1", "web", "Failed")));
        assert!(runs(&store, "n1", "web"), "b is still there");
        store.take(Event::Apply(pod("b", "3", "n2", "web", "Running")));
        assert!(!runs(&store, "n1", "web") && runs(&store, "n2", "web"));
        let known = store.pod(&"shop".parse().unwrap(), "b").unwrap();
        assert_eq!((&*known.uid, &*known.service_account, &*known.node), ("3", "web", "n2"));
        store.take(Event::Delete(pod("b", "3", "n2", "web", "Running")));
        assert_eq!((store.len(), store.current.places.len()), (0, 0));
    }

    #[test]
    fn a_new_list_counts_once_it_is_complete() {
        let mut store = Store::default();
        store.take(Event::Apply(pod("a", "1", "n1", "web", "Running")));
        store.take(Event::Init);
        store.take(Event::InitApply(pod("b", "2", "n2", "web", "Running")));
        assert!(runs(&store, "n1", "web") && !runs(&store, "n2", "web"));
        store.take(Event::InitDone);
        assert!(!runs(&store, "n1", "web") && runs(&store, "n2", "web"));
        // A list that was cut short and begun again does not leave its first half behind.
        store.take(Event::Init);
        store.take(Event::InitApply(pod("c", "3", "n3", "web", "Running")));
        store.take(Event::Init);
        store.take(Event::InitDone);
        assert_eq!(store.len(), 0);
    }
}
