//! Two daemons with tokens, one of them the leader: all its objects exist, and the other takes over.

use std::time::Duration;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Secret, Service},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    harness::{Cluster, eventually, site},
    kubelet::Kubelet,
    trust_bundles,
};
use testkit::{api_server::EAST, daemon::Site};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn other_replica_leads_after_the_leader_is_killed() {
    let cluster = Cluster::new(&EAST, "replicas").await;
    let namespace = &cluster.namespace;
    let label = Patch::Merge(json!({"metadata": {"labels": {"mesh": namespace}}}));
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.patch(namespace, &PatchParams::default(), &label).await.unwrap();
    let signer = format!("{namespace}.example.com/istio");
    let bundle = format!("{namespace}.example.com:istio:root-cert");
    let toml = |identity: &str| {
        format!(
            "[admin]\nstatus_address = '127.0.0.1:0'\n[token_host]\nallow_intermediate = true\n[log]\ncheckpoint_interval = '1s'\n\
             [kubernetes]\nnamespace = '{namespace}'\nidentity = '{identity}'\n[kubernetes.checkpoints]\n\
             [[kubernetes.cluster]]\nkubeconfig = '{}'\n\
             [kubernetes.cluster.root_configmap]\nnamespace_selector = 'mesh={namespace}'\n\
             [kubernetes.cluster.istiod_certificate]\nnamespace = '{namespace}'\n\
             [kubernetes.cluster.intermediate]\nnamespace = '{namespace}'\n\
             [kubernetes.cluster.cluster_trust_bundle]\nsigners = ['{signer}']\n\
             [[kubernetes.cluster.pod_signer]]\nname = '{signer}'\n\
             [[kubernetes.cluster.pod_signer]]\nname = '{signer}-services'\n\
             [[kubernetes.cluster.pod_signer.service]]\naccount = '{namespace}/web'\nnames = ['web']\n",
            cluster.admin().display()
        )
    };
    let one = site();
    let two = one.duplicate();
    let mut first = one.serve(&toml("one"));
    let holder = async || {
        let lease = cluster.api::<Lease>().get_opt("istio-hsm-ca").await.unwrap()?;
        lease.spec?.holder_identity
    };
    eventually("a leader", async || holder().await.filter(|holder| holder == "one")).await;
    let second = two.serve(&toml("two"));

    let (secrets, configmaps): (Api<Secret>, Api<ConfigMap>) = (cluster.api(), cluster.api());
    // The token host, too, permits istiod's names and this intermediate.
    for name in ["istiod-tls", "cacerts"] {
        eventually(name, async || secrets.get_opt(name).await.unwrap()).await;
    }
    eventually("the roots", async || configmaps.get_opt("istio-ca-root-cert").await.unwrap()).await;
    // Nor does it forbid the certificates of pods, with either kind of name.
    let kubelet = Kubelet::start(&cluster).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let service: Service = serde_json::from_value(service).unwrap();
    cluster.api::<Service>().create(&PostParams::default(), &service).await.unwrap();
    let pod = kubelet.pod("web-1", "web", &signer, json!({})).await;
    let named = kubelet.pod("web-2", "web", &format!("{signer}-services"), json!({"app": "web"})).await;
    for pod in [&pod, &named] {
        kubelet.certificate(pod, json!({})).await.chain();
    }
    eventually("the trust bundle", async || trust_bundles::read(&cluster, &bundle).await).await;
    // Each replica's checkpoint, whether it leads or not.
    eventually("two checkpoints", async || {
        let found = configmaps.get_opt("istio-hsm-ca-checkpoints").await.unwrap()?;
        let data = found.data.unwrap_or_default();
        ["one", "two"]
            .iter()
            .all(|replica| data.get(*replica).is_some_and(|note| note.contains('\u{2014}')))
            .then_some(())
    })
    .await;

    let page = tokio::task::block_in_place(|| second.status_page());
    assert!(page.contains("one holds the Lease"), "{page}");
    first.signal(Signal::SIGKILL);
    first.ended();
    for name in ["istiod-tls", "cacerts"] {
        secrets.delete(name, &DeleteParams::default()).await.unwrap();
    }
    configmaps.delete("istio-ca-root-cert", &DeleteParams::default()).await.unwrap();
    trust_bundles::delete(&cluster, &bundle).await;
    // Open while nobody leads; answered once, by the next leader.
    let request = kubelet.request(&pod, json!({})).await.unwrap();
    assert!(kubelet.status(&request).await.get("conditions").is_none());
    let answer = second.send(second.ask()).await;
    assert!(answer.is_ok(), "the endpoint needs no leader: {answer:?}");
    eventually("another leader", async || holder().await.filter(|holder| holder == "two")).await;
    for name in ["istiod-tls", "cacerts"] {
        eventually(name, async || secrets.get_opt(name).await.unwrap()).await;
    }
    eventually("the roots", async || configmaps.get_opt("istio-ca-root-cert").await.unwrap()).await;
    eventually("the trust bundle", async || trust_bundles::read(&cluster, &bundle).await).await;
    kubelet.answer(&request).await.chain();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let signed = |site: &Site| {
        let of_pod = |line: &serde_json::Value| line["caller"]["method"] == "pod_certificate_request";
        site.intents().into_values().filter(of_pod).count()
    };
    assert_eq!((signed(&one), signed(&two)), (2, 1));
    assert_eq!(second.get("/readyz").0, 200);
}
