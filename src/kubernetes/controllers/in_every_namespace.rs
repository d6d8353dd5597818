//! One ConfigMap with one key in every namespace, which proxies mount.
//!
//! istiod writes such ConfigMaps while it is the CA (ISTIO: security/pkg/k8s/configutil.go, pilot/pkg/serviceregistry/
//! kube/controller/namespacecontroller.go). These controllers replace istiod's, with the same names, keys and label.
//! Other values are removed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{reflector::Store, watcher},
};
use pki::{Issuer, identity};
use process::clock;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{
    Mistakes,
    corrections::{CONFLICT_PAUSE, Corrections},
};
use crate::kubernetes::{
    Cluster,
    cluster::chain,
    permissions::{self, Permission},
    reconcile::{self, Reconcile, ReconcileResult, Signals, is_conflict},
};

/// The label that Istio sets on its ConfigMaps (ISTIO: security/pkg/k8s/configutil.go).
pub const LABEL: (&str, &str) = ("istio.io/config", "true");

const CONCURRENT_WRITES: usize = 16;

/// Which ConfigMap, and where.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The ConfigMap's name.
    pub(super) name: String,
    /// The key in it.
    pub(super) key: &'static str,
    /// A label selector for namespaces; empty means all.
    pub(super) namespace_selector: String,
    /// Namespaces without the ConfigMap.
    pub(super) ignored_namespaces: Vec<identity::Namespace>,
    /// The failure where another writer keeps changing it.
    pub(super) another_writer: &'static str,
}

/// What every ConfigMap is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The text; `None` leaves all ConfigMaps as they are.
    pub(super) text: Option<String>,
    /// Why that is not what the configuration asks for.
    pub(super) failure: Option<String>,
    /// When to decide again.
    pub(super) due: Option<SystemTime>,
}

/// Decides on the text.
pub(super) trait Content: Send {
    /// What every ConfigMap is to hold, given those that there are.
    fn wanted(&mut self, present: &[Arc<ConfigMap>]) -> Wanted;
}

impl Target {
    /// The mistakes in it; `section` is its name in the configuration.
    pub(super) fn check(&self, section: &str, mistakes: &mut Mistakes) {
        mistakes.check_object_name(&format!("{section}.name"), &self.name);
        if !self.namespace_selector.is_ascii() || self.namespace_selector.chars().any(char::is_control) {
            mistakes.add(
                format!("{section}.namespace_selector"),
                "is not a valid label selector; write it as for kubectl --selector",
            );
        }
    }

    /// The permissions that it needs.
    pub(super) fn permissions(&self) -> Vec<Permission> {
        [
            permissions::verbs("", "namespaces", &["list", "watch"], None, None),
            permissions::verbs("", "configmaps", &["create"], None, None),
            permissions::verbs("", "configmaps", &["list", "watch", "patch"], None, Some(&self.name)),
        ]
        .concat()
    }

    /// Keeps the ConfigMaps until dropped. `changes` make it decide again.
    pub(super) async fn run(
        self,
        controller: &'static str,
        cluster: &Arc<Cluster>,
        issuers: watch::Receiver<Arc<Issuer>>,
        changes: Vec<Signals>,
        content: impl Content,
    ) {
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client());
        let configmaps: Api<ConfigMap> = Api::all(cluster.client());
        let selected = watcher::Config::default().labels(&self.namespace_selector);
        let named = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let (namespaces, namespace_signals) = reconcile::cached(namespaces, selected, "Namespaces");
        let (configmaps, configmap_signals) = reconcile::cached(configmaps, named, "ConfigMaps");
        let signals = changes.into_iter().chain([namespace_signals, configmap_signals]).collect();
        let client = cluster.client();
        let work = ConfigMaps {
            client,
            target: self,
            content,
            namespaces,
            configmaps,
            corrections: Corrections::default(),
            last: None,
        };
        reconcile::run(controller, cluster, signals, issuers, work).await;
    }
}

struct ConfigMaps<C> {
    client: Client,
    target: Target,
    content: C,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    configmaps: Store<ConfigMap>,
    /// By namespace.
    corrections: Corrections,
    /// The text of the last reconcile.
    last: Option<String>,
}

/// The write that one namespace needs.
#[derive(Clone, Debug, PartialEq)]
enum Write {
    Create,
    /// A merge patch, guarded by the resourceVersion in it.
    Patch(Value),
}

impl<C: Content> Reconcile for ConfigMaps<C> {
    async fn reconcile(&mut self) -> ReconcileResult {
        let present = self.configmaps.state();
        let Wanted { text, failure, due } = self.content.wanted(&present);
        let mut result = ReconcileResult::default();
        due.into_iter().for_each(|due| result.due_at(due));
        let target = &self.target;
        if let Some(failure) = failure {
            result.failed(&target.name, failure);
        }
        let Some(text) = text else { return result };
        // A new text is written everywhere, which is no correction.
        if self.last.as_ref() != Some(&text) {
            self.corrections = Corrections::default();
            self.last = Some(text.clone());
        }
        let actual: HashMap<String, Arc<ConfigMap>> = present
            .into_iter()
            .filter_map(|configmap| Some((configmap.metadata.namespace.clone()?, configmap)))
            .collect();
        let mut writes = Vec::new();
        for namespace in self.namespaces.state() {
            let Some(name) = &namespace.metadata.name else { continue };
            if !needs_configmap(&namespace.metadata, target) {
                continue;
            }
            match actual.get(name).map(|configmap| (configmap, correction(configmap, target.key, &text))) {
                Some((_, None)) => {}
                None => writes.push((name.clone(), Write::Create)),
                Some((_, Some(patch))) if self.corrections.may_correct(name) => {
                    writes.push((name.clone(), Write::Patch(patch)))
                }
                Some((configmap, Some(_))) => {
                    let manager = last_manager(configmap, target.key);
                    let reason = format!("{} (field manager {manager})", target.another_writer);
                    result.failed(format!("{name}/{}", target.name), reason);
                    result.due_at(clock::now() + CONFLICT_PAUSE);
                }
            }
        }
        let (client, text) = (&self.client, &text);
        let mut written = stream::iter(writes)
            .map(|(namespace, step)| async move {
                let outcome = write(client, &namespace, target, text, step).await;
                (namespace, outcome)
            })
            .buffer_unordered(CONCURRENT_WRITES);
        while let Some((namespace, outcome)) = written.next().await {
            match outcome {
                Ok(()) => result.changed += 1,
                // It was changed or created meanwhile, or the namespace is being deleted; the watch reports it.
                Err(error) if is_conflict(&error) => result.due_at(clock::now() + Duration::from_secs(5)),
                Err(error) => result.failed(format!("{namespace}/{}", target.name), chain(&error)),
            }
        }
        result
    }
}

fn needs_configmap(namespace: &ObjectMeta, target: &Target) -> bool {
    let name = namespace.name.as_deref().unwrap_or_default();
    namespace.deletion_timestamp.is_none() && !target.ignored_namespaces.iter().any(|ignored| ignored.as_str() == name)
}

/// Who wrote a key last, by the field managers of the object.
fn last_manager(configmap: &ConfigMap, key: &str) -> String {
    let field = format!("f:{key}");
    let managers = configmap.metadata.managed_fields.iter().flatten();
    let of_key = managers.filter(|entry| {
        entry
            .fields_v1
            .as_ref()
            .is_some_and(|fields| fields.0.pointer("/f:data").and_then(|data| data.get(&field)).is_some())
    });
    let last = of_key.max_by_key(|entry| entry.time.as_ref().map(|time| time.0));
    last.and_then(|entry| entry.manager.clone()).unwrap_or_else(|| "unknown".to_owned())
}

/// The patch that a ConfigMap needs, if any.
fn correction(configmap: &ConfigMap, key: &str, text: &str) -> Option<Value> {
    let data = configmap.data.iter().flatten();
    let mut values: Map<String, Value> = Map::new();
    for (name, value) in data.clone() {
        match name == key {
            true if value == text => {}
            true => drop(values.insert(key.to_owned(), text.into())),
            false => drop(values.insert(name.to_owned(), Value::Null)),
        }
    }
    if !data.clone().any(|(name, _)| name == key) {
        values.insert(key.to_owned(), text.into());
    }
    let binary: Map<String, Value> =
        configmap.binary_data.iter().flatten().map(|(key, _)| (key.clone(), Value::Null)).collect();
    let labels = configmap.metadata.labels.as_ref();
    let labelled = labels.and_then(|labels| labels.get(LABEL.0)).is_some_and(|value| value == LABEL.1);
    if values.is_empty() && binary.is_empty() && labelled {
        return None;
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": configmap.metadata.resource_version, "labels": {LABEL.0: LABEL.1}},
    });
    for (field, values) in [("data", values), ("binaryData", binary)] {
        if !values.is_empty() {
            patch[field] = values.into();
        }
    }
    Some(patch)
}

async fn write(client: &Client, namespace: &str, target: &Target, text: &str, write: Write) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let Target { name, key, .. } = target;
    match write {
        Write::Create => {
            let configmap = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some([(LABEL.0.to_owned(), LABEL.1.to_owned())].into()),
                    ..ObjectMeta::default()
                },
                data: Some(BTreeMap::from([((*key).to_owned(), text.to_owned())])),
                ..ConfigMap::default()
            };
            match api.create(&PostParams::default(), &configmap).await {
                // The namespace is gone or being deleted.
                Err(kube::Error::Api(status)) if status.code == 404 || status.message.contains("terminated") => Ok(()),
                result => result.map(drop),
            }
        }
        Write::Patch(patch) => {
            let result = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop);
            if result.is_ok() {
                tracing::info!(namespace, configmap = name, "corrected a ConfigMap");
            }
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "root-cert.pem";

    fn configmap(data: &[(&str, &str)], label: Option<&str>) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                labels: label.map(|value| [(LABEL.0.to_owned(), value.to_owned())].into()),
                resource_version: Some("7".to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn correction_patches_only_what_differs() {
        assert_eq!(correction(&configmap(&[(KEY, "roots\n")], Some("true")), KEY, "roots\n"), None);
        let meta = json!({"resourceVersion": "7", "labels": {"istio.io/config": "true"}});
        let cases = [
            (configmap(&[(KEY, "roots")], Some("true")), json!({"metadata": meta, "data": {KEY: "roots\n"}})),
            (configmap(&[(KEY, "roots\n")], None), json!({"metadata": meta})),
            (configmap(&[(KEY, "roots\n")], Some("false")), json!({"metadata": meta})),
            (configmap(&[], Some("true")), json!({"metadata": meta, "data": {KEY: "roots\n"}})),
            (
                configmap(&[(KEY, "roots\n"), ("stray", "x")], Some("true")),
                json!({"metadata": meta, "data": {"stray": null}}),
            ),
        ];
        for (found, patch) in cases {
            assert_eq!(correction(&found, KEY, "roots\n"), Some(patch), "{found:?}");
        }
    }

    #[test]
    fn deleted_and_ignored_namespaces_get_no_configmap() {
        let named = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let target = Target {
            name: "roots".to_owned(),
            key: KEY,
            namespace_selector: String::new(),
            ignored_namespaces: vec!["kube-system".parse().unwrap()],
            another_writer: "",
        };
        assert!(needs_configmap(&named("foo"), &target));
        assert!(!needs_configmap(&named("kube-system"), &target));
        let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!needs_configmap(&ObjectMeta { deletion_timestamp: Some(now), ..named("foo") }, &target));
    }

    #[test]
    fn last_writer_of_the_key_is_found_by_its_field_manager() {
        let entry = |manager: &str, time: &str, fields: Value| json!({"manager": manager, "operation": "Update", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields});
        let fields = json!({"f:data": {"f:root-cert.pem": {}}});
        let found: ConfigMap = serde_json::from_value(json!({"metadata": {"managedFields": [
            entry("first", "2026-01-01T00:00:00Z", fields.clone()),
            entry("pilot-discovery", "2026-01-01T00:00:02Z", fields),
            entry("kubectl", "2026-01-01T00:00:03Z", json!({"f:metadata": {"f:labels": {}}})),
        ]}}))
        .unwrap();
        assert_eq!(last_manager(&found, KEY), "pilot-discovery");
        assert_eq!(last_manager(&ConfigMap::default(), KEY), "unknown");
    }
}
