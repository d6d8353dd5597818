//! Secrets for service accounts, as in Istio until 1.5.

use std::time::Duration;

use istio_hsm_ca::kubernetes::controllers::workload_secrets::ACCOUNT;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    harness::{Cluster, eventually, named},
    rig::{Rig, certificate, openssl},
};
use testkit::{api_server::EAST, plug_in::PlugIn};

fn value(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().and_then(|data| data.get(key)).map(|ByteString(bytes)| bytes.clone()).unwrap_or_default()
}

async fn another(api: &Api<Secret>, name: &str, last: &str) -> (Secret, String) {
    eventually("another certificate", async || {
        let found = api.get_opt(name).await.unwrap()?;
        let chain = value(&found, "cert-chain.pem");
        let serial = chain.starts_with(b"-----BEGIN").then(|| certificate(&chain).0)?;
        (serial != last).then_some((found, serial))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_service_account_has_a_secret_and_foreign_ones_are_untouched() {
    let cluster = Cluster::new(&EAST, "workloads").await;
    let namespace = &cluster.namespace;
    let (secrets, accounts): (Api<Secret>, Api<ServiceAccount>) = (cluster.api(), cluster.api());
    let foreign = Secret { metadata: named("istio.taken"), ..Secret::default() };
    let foreign = secrets.create(&PostParams::default(), &foreign).await.unwrap();
    cluster.account("taken").await;
    cluster.account("web").await;
    let toml = format!("[kubernetes.cluster.workload_secrets]\nnamespaces = ['{namespace}']");
    let short = |config: &mut istio_hsm_ca::config::Config| {
        let cluster = &mut config.kubernetes.as_mut().unwrap().clusters[0];
        cluster.workload_secrets.as_mut().unwrap().ttl = Duration::from_secs(60);
    };
    let plug_in = PlugIn::intermediate();
    let roots = plug_in.root_cert.clone();
    let rig = Rig::start(&cluster, plug_in, &toml, short, None).await;

    let (made, mut last) = another(&secrets, "istio.web", "").await;
    assert_eq!(made.type_.as_deref(), Some("istio.io/key-and-cert"));
    assert_eq!(made.annotations().get(ACCOUNT).map(String::as_str), Some("web"));
    let keys: Vec<_> = made.data.as_ref().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["cert-chain.pem", "key.pem", "root-cert.pem"]);
    let chain = value(&made, "cert-chain.pem");
    openssl(&[roots.as_bytes(), &chain], &["verify", "-CAfile", "0", "-untrusted", "1", "1"]).unwrap();
    let text = openssl(&[&chain], &["x509", "-in", "0", "-noout", "-text"]).unwrap();
    assert!(text.contains(&format!("spiffe://cluster.local/ns/{namespace}/sa/web")), "{text}");
    // A namespace without controllers has only these two accounts (and the daemon's own).
    cluster.account("later").await;
    another(&secrets, "istio.later", "").await;

    // Deleted, edited, and at half its lifetime.
    let began = std::time::Instant::now();
    secrets.delete("istio.web", &DeleteParams::default()).await.unwrap();
    last = another(&secrets, "istio.web", &last).await.1;
    assert!(began.elapsed() < Duration::from_secs(10), "within seconds");
    let edit = Patch::Merge(json!({"data": {"key.pem": "eA=="}}));
    secrets.patch("istio.web", &PatchParams::default(), &edit).await.unwrap();
    last = another(&secrets, "istio.web", &last).await.1;
    last = another(&secrets, "istio.web", &last).await.1;

    let mut new = PlugIn::intermediate();
    new.root_cert.push_str(&roots);
    let both = new.root_cert.clone();
    rig.replace(new);
    let (of_new, _) = another(&secrets, "istio.web", &last).await;
    assert_eq!(value(&of_new, "root-cert.pem"), both.as_bytes());

    accounts.delete("web", &DeleteParams::default()).await.unwrap();
    eventually("the end of the Secret", async || secrets.get_opt("istio.web").await.unwrap().is_none().then_some(()))
        .await;
    accounts.delete("taken", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(secrets.get("istio.taken").await.unwrap().resource_version(), foreign.resource_version());
    rig.end().await;
}
