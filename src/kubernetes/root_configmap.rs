//! The roots in every namespace: ConfigMap `istio-ca-root-cert`, key `root-cert.pem`, which every proxy mounts.
//!
//! istiod writes it while it is the CA (ISTIO: security/pkg/k8s/controller, pilot/pkg/serviceregistry/kube/controller/
//! namespacecontroller.go) and stops when it no longer is; this goes on with the same name, key and label. The content
//! is the bundle's root-cert.pem byte for byte: agents take any other byte for a change of roots. Whatever else stands
//! in it is removed. Called by `daemon` while this replica leads.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{reflector::Store, watcher},
};
use serde_json::{Map, Value, json};

use super::{
    Cluster,
    cluster::chain,
    controller::{self, Look, Reconcile, is_conflict},
    settings::RootConfigMap,
};
use crate::issue::CertificateAuthority;
use process::clock;

/// The controller's name in logs and metrics.
pub const NAME: &str = "root_configmap";
/// The key.
pub const KEY: &str = "root-cert.pem";
/// The label that Istio gives it (ISTIO: security/pkg/k8s/configutil.go).
pub const LABEL: (&str, &str) = ("istio.io/config", "true");

/// How many writes are under way at once.
const AT_ONCE: usize = 16;
/// So many corrections of one object...
const CORRECTIONS: u32 = 5;
/// ...within this time mean that somebody else writes it too; it is left alone for as long.
const TRUCE: Duration = Duration::from_secs(60);

/// Keeps the ConfigMaps until dropped.
pub async fn run(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, settings: RootConfigMap) {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client());
    let configmaps: Api<ConfigMap> = Api::all(cluster.client());
    let selected = watcher::Config::default().labels(&settings.namespace_selector);
    let named = watcher::Config::default().fields(&format!("metadata.name={}", settings.name));
    let (namespaces, seen) = controller::cached(namespaces, selected, "Namespaces");
    let (configmaps, changed) = controller::cached(configmaps, named, "ConfigMaps");
    let replaced = ca.replacements();
    let work = Roots { client: cluster.client(), ca, settings, namespaces, configmaps, corrected: HashMap::new() };
    controller::run(NAME, &cluster, vec![seen, changed], replaced, work).await;
}

struct Roots {
    client: Client,
    ca: Arc<CertificateAuthority>,
    settings: RootConfigMap,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    configmaps: Store<ConfigMap>,
    /// How often an object was corrected, and since when.
    corrected: HashMap<String, (u32, Instant)>,
}

/// What is to be done in one namespace.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create,
    /// A merge, guarded by the resourceVersion in it.
    Change(Value),
}

impl Reconcile for Roots {
    async fn look(&mut self) -> Look {
        let issuer = self.ca.issuer();
        let roots = issuer.roots_pem();
        let there: HashMap<String, Arc<ConfigMap>> = self
            .configmaps
            .state()
            .into_iter()
            .filter_map(|configmap| Some((configmap.metadata.namespace.clone()?, configmap)))
            .collect();
        let mut look = Look::default();
        let mut steps = Vec::new();
        for namespace in self.namespaces.state() {
            let Some(name) = &namespace.metadata.name else { continue };
            if !wants(&namespace.metadata, &self.settings) {
                continue;
            }
            match there.get(name).map(|found| correction(found, roots)) {
                Some(None) => {}
                None => steps.push((name.clone(), Step::Create)),
                Some(Some(patch)) => match self.may_correct(name) {
                    true => steps.push((name.clone(), Step::Change(patch))),
                    false => {
                        look.failed(
                            format!("{name}/{}", self.settings.name),
                            "somebody else keeps writing it; stop that one (istiod writes it while it is a CA itself)",
                        );
                        look.at(clock::now() + TRUCE);
                    }
                },
            }
        }
        let configmap = &self.settings.name;
        let client = &self.client;
        let mut writes = stream::iter(steps)
            .map(|(namespace, step)| async move {
                let result = write(client, &namespace, configmap, roots, step).await;
                (namespace, result)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((namespace, result)) = writes.next().await {
            match result {
                Ok(()) => look.changed += 1,
                // Another is there by now, or the namespace is about to go; the watch tells.
                Err(error) if is_conflict(&error) => look.at(clock::now() + Duration::from_secs(5)),
                Err(error) => look.failed(format!("{namespace}/{configmap}"), chain(&error)),
            }
        }
        look
    }
}

impl Roots {
    /// Counts a correction, and says whether it is to be made.
    fn may_correct(&mut self, namespace: &str) -> bool {
        self.corrected.retain(|_, (_, since)| since.elapsed() < TRUCE);
        let (count, _) = self.corrected.entry(namespace.to_owned()).or_insert((0, Instant::now()));
        *count = count.saturating_add(1);
        *count <= CORRECTIONS
    }
}

/// Whether a namespace is to have the ConfigMap: it is none of those left out, and not about to go.
fn wants(namespace: &ObjectMeta, settings: &RootConfigMap) -> bool {
    let name = namespace.name.as_deref().unwrap_or_default();
    namespace.deletion_timestamp.is_none()
        && !settings.ignored_namespaces.iter().any(|ignored| ignored.as_str() == name)
}

/// What is to be changed in a ConfigMap, if anything is.
fn correction(found: &ConfigMap, roots: &str) -> Option<Value> {
    let data = found.data.iter().flatten();
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
        found.binary_data.iter().flatten().map(|(key, _)| (key.clone(), Value::Null)).collect();
    let labels = found.metadata.labels.as_ref();
    let labelled = labels.and_then(|labels| labels.get(LABEL.0)).is_some_and(|value| value == LABEL.1);
    if values.is_empty() && binary.is_empty() && labelled {
        return None;
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": found.metadata.resource_version, "labels": {LABEL.0: LABEL.1}},
    });
    for (field, values) in [("data", values), ("binaryData", binary)] {
        if !values.is_empty() {
            patch[field] = values.into();
        }
    }
    Some(patch)
}

async fn write(client: &Client, namespace: &str, name: &str, roots: &str, step: Step) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match step {
        Step::Create => {
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
                // The namespace went, or is about to go.
                Err(kube::Error::Api(status)) if status.code == 404 || status.message.contains("terminated") => Ok(()),
                result => result.map(drop),
            }
        }
        Step::Change(patch) => {
            let result = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop);
            if result.is_ok() {
                tracing::info!(namespace, configmap = name, "corrected the roots");
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
    fn only_what_is_wrong_is_changed() {
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
    fn namespaces_that_go_or_are_left_out_get_none() {
        let named = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let settings = RootConfigMap::default();
        assert!(wants(&named("foo"), &settings));
        assert!(!wants(&named("kube-system"), &settings));
        let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!wants(&ObjectMeta { deletion_timestamp: Some(now), ..named("foo") }, &settings));
    }
}
