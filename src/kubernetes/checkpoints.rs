//! Copies of the issuance log's newest checkpoint in a ConfigMap, a key for each replica: out of reach of who can write
//! this replica's disk, so that a log that was cut back is found out.
//!
//! What fails is tried again, and told in the metrics. Runs on every replica, whether it leads or not. Called by
//! `daemon`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    Cluster, board::Board, cluster::chain, controller::is_conflict, secret::MANAGED_BY, settings::Checkpoints,
};

/// The name in logs and metrics.
pub const NAME: &str = "checkpoints";
/// How often the newest checkpoint is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The longest pause after failures.
const PAUSE_MOST: Duration = Duration::from_secs(60);

/// Where the newest checkpoint is read.
pub type Newest = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Keeps this replica's copy until dropped.
pub async fn run(cluster: Arc<Cluster>, namespace: String, replica: String, settings: Checkpoints, newest: Newest) {
    let configmaps: Api<ConfigMap> = Api::namespaced(cluster.client(), &namespace);
    let object = format!("{namespace}/{}", settings.configmap);
    let key = key(&replica);
    let mut board = Board::new(NAME, &cluster);
    let mut kept = None;
    let mut pause = LOOK;
    loop {
        let now = newest();
        if let Some(text) = now.filter(|text| kept.as_ref() != Some(text)) {
            match keep(&configmaps, &settings, &key, &text).await {
                Ok(()) => {
                    board.object(&object, None);
                    board.count("changed");
                    kept = Some(text);
                    pause = LOOK;
                }
                Err(error) => {
                    board.object(&object, Some(chain(&error)));
                    board.count("error");
                    pause = (pause * 2).min(PAUSE_MOST);
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn keep(
    configmaps: &Api<ConfigMap>,
    settings: &Checkpoints,
    key: &str,
    checkpoint: &str,
) -> Result<(), kube::Error> {
    // Each replica writes its own key alone, so that no version need be named.
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
        // Another replica made it at the same moment.
        Err(error) if is_conflict(&error) => {
            configmaps.patch(&settings.configmap, &PatchParams::default(), &patch).await.map(drop)
        }
        result => result.map(drop),
    }
}

/// A replica's key; a ConfigMap's keys are letters, digits, `-`, `_` and `.`.
fn key(replica: &str) -> String {
    let key = replica.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' });
    key.take(253).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_makes_a_key() {
        assert_eq!(key("istio-hsm-ca-0"), "istio-hsm-ca-0");
        assert_eq!(key("a b/ü"), "a_b__");
    }
}
