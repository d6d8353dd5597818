//! The roots in every selected namespace.

use istio_hsm_ca::kubernetes::controllers::root_configmap::{KEY, LABEL};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    harness::{Cluster, eventually},
    rig::Rig,
};
use testkit::{api_server::EAST, plug_in::PlugIn};

const NAME: &str = "istio-ca-root-cert";

fn configmaps(cluster: &Cluster, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), namespace)
}

/// Waits until a namespace has exactly these roots.
async fn has(cluster: &Cluster, namespace: &str, roots: &str) {
    eventually("the roots", async || {
        let found = configmaps(cluster, namespace).get_opt(NAME).await.unwrap()?;
        let data = found.data.clone().unwrap_or_default();
        let labelled = found.labels().get(LABEL.0).is_some_and(|value| value == LABEL.1);
        (labelled && data.len() == 1 && data.get(KEY).is_some_and(|text| text == roots)).then_some(())
    })
    .await;
}

async fn label(cluster: &Cluster, namespace: &str) {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"mesh": cluster.namespace}}}));
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.patch(namespace, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn every_namespace_that_matches_has_the_roots_whatever_happens_to_them() {
    let cluster = Cluster::new(&EAST, "roots").await;
    let (one, other, ignored) =
        (&cluster.namespace, format!("{}-b", cluster.namespace), format!("{}-c", cluster.namespace));
    cluster.make_namespace(&other).await;
    cluster.make_namespace(&ignored).await;
    label(&cluster, one).await;
    label(&cluster, &ignored).await;
    let toml = format!(
        "[kubernetes.cluster.root_configmap]\nnamespace_selector = 'mesh={one}'\nignored_namespaces = ['{ignored}']"
    );
    let plug_in = PlugIn::intermediate();
    let roots = plug_in.root_cert.clone();
    let rig = Rig::start(&cluster, plug_in, &toml, |_| (), None).await;

    has(&cluster, one, &roots).await;
    assert!(configmaps(&cluster, &other).get_opt(NAME).await.unwrap().is_none(), "the namespace does not match");
    assert!(configmaps(&cluster, &ignored).get_opt(NAME).await.unwrap().is_none(), "the namespace is ignored");
    label(&cluster, &other).await;
    has(&cluster, &other, &roots).await;

    let api = configmaps(&cluster, one);
    let edits = [
        json!({"data": {KEY: "nothing"}}),
        json!({"data": {KEY: roots.trim_end()}}),
        json!({"data": {KEY: null, "stray": "x"}}),
        json!({"metadata": {"labels": {LABEL.0: null}}, "binaryData": {"more": "eA=="}}),
    ];
    for edit in edits {
        api.patch(NAME, &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
        has(&cluster, one, &roots).await;
    }
    api.delete(NAME, &DeleteParams::default()).await.unwrap();
    has(&cluster, one, &roots).await;

    // Another CA, with the old root and its own.
    let mut new = PlugIn::intermediate();
    new.root_cert.push_str(&roots);
    let both = new.root_cert.clone();
    rig.replace(new);
    has(&cluster, one, &both).await;
    has(&cluster, &other, &both).await;

    // A replica that does not lead changes nothing.
    rig.leading.send_replace(false);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    api.delete(NAME, &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(api.get_opt(NAME).await.unwrap().is_none());
    rig.leading.send_replace(true);
    has(&cluster, one, &both).await;
    rig.end().await;
}
