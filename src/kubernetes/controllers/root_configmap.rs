//! The roots in every namespace: ConfigMap `istio-ca-root-cert`, key `root-cert.pem`, which every proxy mounts.
//!
//! istiod writes it while it is the CA (ISTIO: security/pkg/k8s/controller, pilot/pkg/serviceregistry/kube/controller/
//! namespacecontroller.go). This controller replaces istiod's, with the same name, key and label. The content is
//! exactly the bundle's root-cert.pem, because agents treat any difference as a change of roots. Other values are
//! removed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{reflector::Store, watcher},
};
use pki::identity;
use process::clock;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Controller, Grants, Limits, Mistake, Mistakes,
    corrections::{ANOTHER_WRITER, CONFLICT_PAUSE, Corrections},
};
use crate::{
    issue::CertificateAuthority,
    kubernetes::{
        Cluster,
        cluster::chain,
        permissions::{self, Permission},
        reconcile::{self, Reconcile, ReconcileResult, is_conflict},
    },
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "root_configmap";
/// The key in the ConfigMap.
pub const KEY: &str = "root-cert.pem";
/// The label that Istio sets on it (ISTIO: security/pkg/k8s/configutil.go).
pub const LABEL: (&str, &str) = ("istio.io/config", "true");

const CONCURRENT_WRITES: usize = 16;

/// `[kubernetes.cluster.root_configmap]` (ISTIO: pilot/pkg/bootstrap/namespacecontroller.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RootConfigMap {
    /// The ConfigMap's name.
    pub name: String,
    /// A label selector for namespaces; empty means all.
    pub namespace_selector: String,
    /// Namespaces without the ConfigMap; Istio skips the same ones.
    pub ignored_namespaces: Vec<identity::Namespace>,
}

impl Default for RootConfigMap {
    fn default() -> Self {
        let ignored = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
        Self {
            name: "istio-ca-root-cert".to_owned(),
            namespace_selector: String::new(),
            ignored_namespaces: ignored.iter().filter_map(|name| name.parse().ok()).collect(),
        }
    }
}

impl Controller for RootConfigMap {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, _limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        mistakes.check_object_name("root_configmap.name", &self.name);
        if !self.namespace_selector.is_ascii() || self.namespace_selector.chars().any(char::is_control) {
            mistakes.add(
                "root_configmap.namespace_selector",
                "is not a valid label selector; write it as for kubectl --selector",
            );
        }
        mistakes.0
    }

    fn permissions(&self) -> Vec<Permission> {
        [
            permissions::verbs("", "namespaces", &["list", "watch"], None, None),
            permissions::verbs("", "configmaps", &["create"], None, None),
            permissions::verbs("", "configmaps", &["list", "watch", "patch"], None, Some(&self.name)),
        ]
        .concat()
    }

    fn grants(&self) -> Grants {
        Grants::Nothing
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let settings = self.clone();
        Box::pin(async move {
            let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client());
            let configmaps: Api<ConfigMap> = Api::all(cluster.client());
            let selected = watcher::Config::default().labels(&settings.namespace_selector);
            let named = watcher::Config::default().fields(&format!("metadata.name={}", settings.name));
            let (namespaces, namespace_signals) = reconcile::cached(namespaces, selected, "Namespaces");
            let (configmaps, configmap_signals) = reconcile::cached(configmaps, named, "ConfigMaps");
            let issuers = ca.issuers();
            let client = cluster.client();
            let work = Roots { client, ca, settings, namespaces, configmaps, corrections: Corrections::default() };
            reconcile::run(NAME, &cluster, vec![namespace_signals, configmap_signals], issuers, work).await;
        })
    }
}

struct Roots {
    client: Client,
    ca: Arc<CertificateAuthority>,
    settings: RootConfigMap,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    configmaps: Store<ConfigMap>,
    /// By namespace.
    corrections: Corrections,
}

/// The write that one namespace needs.
#[derive(Clone, Debug, PartialEq)]
enum Write {
    Create,
    /// A merge patch, guarded by the resourceVersion in it.
    Patch(Value),
}

impl Reconcile for Roots {
    async fn reconcile(&mut self) -> ReconcileResult {
        let issuer = self.ca.issuer();
        let roots = issuer.roots_pem();
        let actual: HashMap<String, Arc<ConfigMap>> = self
            .configmaps
            .state()
            .into_iter()
            .filter_map(|configmap| Some((configmap.metadata.namespace.clone()?, configmap)))
            .collect();
        let mut result = ReconcileResult::default();
        let mut writes = Vec::new();
        for namespace in self.namespaces.state() {
            let Some(name) = &namespace.metadata.name else { continue };
            if !needs_configmap(&namespace.metadata, &self.settings) {
                continue;
            }
            match actual.get(name).map(|configmap| correction(configmap, roots)) {
                Some(None) => {}
                None => writes.push((name.clone(), Write::Create)),
                Some(Some(patch)) if self.corrections.may_correct(name) => {
                    writes.push((name.clone(), Write::Patch(patch)))
                }
                Some(Some(_)) => {
                    result.failed(format!("{name}/{}", self.settings.name), ANOTHER_WRITER);
                    result.due_at(clock::now() + CONFLICT_PAUSE);
                }
            }
        }
        let configmap = &self.settings.name;
        let client = &self.client;
        let mut written = stream::iter(writes)
            .map(|(namespace, step)| async move {
                let outcome = write(client, &namespace, configmap, roots, step).await;
                (namespace, outcome)
            })
            .buffer_unordered(CONCURRENT_WRITES);
        while let Some((namespace, outcome)) = written.next().await {
            match outcome {
                Ok(()) => result.changed += 1,
                // It was changed or created meanwhile, or the namespace is being deleted; the watch reports it.
                Err(error) if is_conflict(&error) => result.due_at(clock::now() + Duration::from_secs(5)),
                Err(error) => result.failed(format!("{namespace}/{configmap}"), chain(&error)),
            }
        }
        result
    }
}

fn needs_configmap(namespace: &ObjectMeta, settings: &RootConfigMap) -> bool {
    let name = namespace.name.as_deref().unwrap_or_default();
    namespace.deletion_timestamp.is_none()
        && !settings.ignored_namespaces.iter().any(|ignored| ignored.as_str() == name)
}

/// The patch that a ConfigMap needs, if any.
fn correction(configmap: &ConfigMap, roots: &str) -> Option<Value> {
    let data = configmap.data.iter().flatten();
    let mut values: Map<String, Value> = Map::new();
    for (key, value) in data.clone() {
        match key.as_str() {
            KEY if value == roots => {}
            KEY => drop(values.insert(KEY.to_owned(), roots.into())),
            stray => drop(values.insert(stray.to_owned(), Value::Null)),
        }
    }
    if !data.clone().any(|(key, _)| key == KEY) {
        values.insert(KEY.to_owned(), roots.into());
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

async fn write(client: &Client, namespace: &str, name: &str, roots: &str, write: Write) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match write {
        Write::Create => {
            let configmap = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    labels: Some([(LABEL.0.to_owned(), LABEL.1.to_owned())].into()),
                    ..ObjectMeta::default()
                },
                data: Some(BTreeMap::from([(KEY.to_owned(), roots.to_owned())])),
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
                tracing::info!(namespace, configmap = name, "corrected the root ConfigMap");
            }
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(correction(&configmap(&[(KEY, "roots\n")], Some("true")), "roots\n"), None);
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
            assert_eq!(correction(&found, "roots\n"), Some(patch), "{found:?}");
        }
    }

    #[test]
    fn deleted_and_ignored_namespaces_get_no_configmap() {
        let named = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let settings = RootConfigMap::default();
        assert!(needs_configmap(&named("foo"), &settings));
        assert!(!needs_configmap(&named("kube-system"), &settings));
        let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!needs_configmap(&ObjectMeta { deletion_timestamp: Some(now), ..named("foo") }, &settings));
    }
}
