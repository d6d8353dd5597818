//! Copies the issuance log's newest checkpoint to a ConfigMap with one key per replica. An attacker who can write to a
//! replica's disk cannot change these copies, so they reveal a truncated log.
//!
//! Every replica writes its own copy, whether it leads or not; hence this is not a [`super::Controller`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::utils::Backoff,
};
use serde::Deserialize;
use serde_json::json;

use crate::kubernetes::{
    Cluster, backoff,
    cluster::chain,
    permissions::{self, Permission},
    reconcile::is_conflict,
    secret::MANAGED_BY,
    status::StatusRecorder,
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "checkpoints";
/// Interval of reading the newest checkpoint.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_secs(4);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// `[kubernetes.checkpoints]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// The ConfigMap's name, in the daemon's namespace; each replica has its own key in it.
    pub configmap: String,
    /// Additional labels of the ConfigMap.
    pub labels: BTreeMap<String, String>,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { configmap: "istio-hsm-ca-checkpoints".to_owned(), labels: BTreeMap::new() }
    }
}

impl Checkpoints {
    /// The permissions needed in the daemon's namespace.
    pub(in crate::kubernetes) fn permissions(&self, namespace: Option<&str>) -> Vec<Permission> {
        [
            permissions::verbs("", "configmaps", &["create"], namespace, None),
            permissions::verbs("", "configmaps", &["patch"], namespace, Some(&self.configmap)),
        ]
        .concat()
    }
}

/// Reads the newest checkpoint.
pub type Newest = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Keeps this replica's copy up to date until dropped.
pub async fn run(cluster: Arc<Cluster>, namespace: String, replica: String, settings: Checkpoints, newest: Newest) {
    let configmaps: Api<ConfigMap> = Api::namespaced(cluster.client(), &namespace);
    let object = format!("{namespace}/{}", settings.configmap);
    let key = key(&replica);
    let mut status = StatusRecorder::new(NAME, &cluster);
    let mut written = None;
    let mut backoff = backoff::exponential(RETRY_MIN, RETRY_MAX);
    loop {
        let mut wait = POLL_INTERVAL;
        if let Some(text) = newest().filter(|text| written.as_ref() != Some(text)) {
            match write(&configmaps, &settings, &key, &text).await {
                Ok(()) => {
                    status.object(&object, None);
                    status.count("changed");
                    written = Some(text);
                    backoff.reset();
                }
                Err(error) => {
                    status.object(&object, Some(chain(&error)));
                    status.count("error");
                    wait = backoff.next().unwrap_or(RETRY_MAX);
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

async fn write(
    configmaps: &Api<ConfigMap>,
    settings: &Checkpoints,
    key: &str,
    checkpoint: &str,
) -> Result<(), kube::Error> {
    // Each replica writes only its own key, so the patch needs no resourceVersion.
    let patch = Patch::Merge(json!({"data": {key: checkpoint}}));
    match configmaps.patch(&settings.configmap, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        result => return result.map(drop),
    }
    let mut labels = settings.labels.clone();
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let configmap = ConfigMap {
        metadata: ObjectMeta { name: Some(settings.configmap.clone()), labels: Some(labels), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(key.to_owned(), checkpoint.to_owned())])),
        ..ConfigMap::default()
    };
    match configmaps.create(&PostParams::default(), &configmap).await {
        // Another replica created it meanwhile.
        Err(error) if is_conflict(&error) => {
            configmaps.patch(&settings.configmap, &PatchParams::default(), &patch).await.map(drop)
        }
        result => result.map(drop),
    }
}

/// The key of a replica. Keys of a ConfigMap consist of letters, digits, `-`, `_` and `.`.
fn key(replica: &str) -> String {
    let key = replica.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' });
    key.take(253).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_name_becomes_a_valid_key() {
        assert_eq!(key("istio-hsm-ca-0"), "istio-hsm-ca-0");
        assert_eq!(key("a b/ü"), "a_b__");
    }
}
