//! The roots as ClusterTrustBundles, in both versions of the interface.

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use serde_json::json;

use super::{
    harness::{Cluster, eventually},
    kubelet::resource,
    rig::Rig,
};
use testkit::{
    api_server::{ApiServer, EAST, NEWEST},
    plug_in::PlugIn,
};

/// The API, for the administrator.
fn bundles(cluster: &Cluster) -> Api<DynamicObject> {
    Api::all_with(cluster.client.clone(), &resource(cluster, "ClusterTrustBundle", "clustertrustbundles"))
}

/// Creates a bundle.
pub async fn create(cluster: &Cluster, name: &str, signer: &str, roots: &str) {
    let resource = resource(cluster, "ClusterTrustBundle", "clustertrustbundles");
    let spec = json!({"spec": {"signerName": signer, "trustBundle": roots}});
    let object = DynamicObject::new(name, &resource).data(spec);
    bundles(cluster).create(&PostParams::default(), &object).await.unwrap();
}

/// The roots in a bundle.
pub async fn read(cluster: &Cluster, name: &str) -> Option<String> {
    let found = bundles(cluster).get_opt(name).await.unwrap()?;
    Some(found.data["spec"]["trustBundle"].as_str().unwrap().to_owned())
}

/// Overwrites the roots in a bundle.
pub async fn write(cluster: &Cluster, name: &str, roots: &str) {
    let patch = Patch::Merge(json!({"spec": {"trustBundle": roots}}));
    bundles(cluster).patch(name, &PatchParams::default(), &patch).await.unwrap();
}

/// Deletes a bundle.
pub async fn delete(cluster: &Cluster, name: &str) {
    bundles(cluster).delete(name, &DeleteParams::default()).await.unwrap();
}

/// Waits until a bundle has exactly these roots.
async fn has(cluster: &Cluster, name: &str, roots: &str) {
    eventually("the roots", async || (read(cluster, name).await? == roots).then_some(())).await;
}

async fn roots_are_published_and_restored(server: &'static ApiServer) {
    let cluster = Cluster::new(server, "bundles").await;
    let ns = &cluster.namespace;
    // The second signer's name stands for istio.io/istiod-ca, which all tests of a cluster would share.
    let names = [format!("{ns}.example.com:istio:root-cert"), format!("{ns}.istio.io:istiod-ca:root-cert")];
    let toml = format!(
        "[kubernetes.cluster.cluster_trust_bundle]\nsigners = ['{ns}.example.com/istio', '{ns}.istio.io/istiod-ca']"
    );
    let plug_in = PlugIn::intermediate();
    let roots = plug_in.root_cert.clone();
    let rig = Rig::start(&cluster, plug_in, &toml, |_| (), None).await;
    for name in &names {
        has(&cluster, name, &roots).await;
        let found = bundles(&cluster).get(name).await.unwrap();
        let signer = found.data["spec"]["signerName"].as_str().unwrap();
        assert_eq!(format!("{}:root-cert", signer.replace('/', ":")), *name);
    }

    // Edited, with foreign roots, with more roots, with other text around them; deleted.
    let foreign = PlugIn::intermediate().root_cert;
    for edit in [foreign.clone(), format!("{roots}{foreign}"), format!("# mine\n{roots}")] {
        write(&cluster, &names[0], &edit).await;
        has(&cluster, &names[0], &roots).await;
    }
    delete(&cluster, &names[1]).await;
    has(&cluster, &names[1], &roots).await;

    // Another CA, with the old root and its own.
    let mut new = PlugIn::intermediate();
    new.root_cert.push_str(&roots);
    let both = new.root_cert.clone();
    rig.replace(new);
    for name in &names {
        has(&cluster, name, &both).await;
    }

    // A replica that does not lead changes nothing.
    rig.leading.send_replace(false);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    write(&cluster, &names[0], &foreign).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(read(&cluster, &names[0]).await.unwrap(), foreign);
    rig.leading.send_replace(true);
    has(&cluster, &names[0], &both).await;

    // Another writer that does not stop: left alone, and reported.
    for round in 0..20 {
        write(&cluster, &names[0], &format!("# {round}\n{both}")).await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    eventually("word of the other writer", async || {
        rig.status("cluster_trust_bundle").problem()?.contains("another writer keeps changing it").then_some(())
    })
    .await;
    assert_eq!(rig.intents(), 0);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn roots_are_published_and_restored_in_the_beta_version() {
    roots_are_published_and_restored(&EAST).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn roots_are_published_and_restored_in_the_stable_version() {
    roots_are_published_and_restored(&NEWEST).await;
}
