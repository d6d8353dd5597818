//! The state of revocation in a ConfigMap: two replicas with exactly the permissions that the program reports, and one that
//! loses the API server.

use std::{fs, process::Output};

use k8s_openapi::api::{core::v1::ConfigMap, rbac::v1::PolicyRule};
use testkit::{
    api_server::EAST,
    daemon::{Ask, Daemon, IDENTITY, Site},
};
use tonic::Code;

use super::{
    harness::{Cluster, cluster_toml, eventually, rule, site},
    proxy::Proxy,
};

const CONFIGMAP: &str = "revocations";

async fn code(daemon: &Daemon) -> Code {
    daemon.send(daemon.ask()).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

fn revoke(site: &Site, words: &str) -> Output {
    let config = site.softhsm.path().join("istio-hsm-ca.toml");
    let mut arguments = vec!["revoke", "--config", config.to_str().unwrap(), "--yes"];
    arguments.extend(words.split_whitespace());
    site.run(&arguments)
}

fn section(cluster: &Cluster, kubeconfig: &std::path::Path) -> String {
    format!(
        "[revocation]\nstore = {{ config_map = '{CONFIGMAP}' }}\n[kubernetes]\nnamespace = '{}'\n{}",
        cluster.namespace,
        cluster_toml("Kubernetes", kubeconfig, "")
    )
}

fn permitted() -> [PolicyRule; 2] {
    let named = PolicyRule {
        resource_names: Some(vec![CONFIGMAP.to_owned()]),
        ..rule("", &["configmaps"], &["get", "list", "watch", "patch"])
    };
    [rule("", &["configmaps"], &["create"]), named]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn replicas_share_the_state_of_revocation_in_a_configmap() {
    let cluster = Cluster::new(&EAST, "revocations").await;
    let rules = permitted().map(|rule| (cluster.namespace.as_str(), rule));
    let kubeconfig = cluster.user("daemon", &[], &rules).await;
    // The second replica reaches the API server through a proxy that the test cuts.
    let proxy = Proxy::start(EAST.url.trim_start_matches("https://").parse().unwrap()).await;
    let through = kubeconfig.with_extension("through");
    fs::copy(&kubeconfig, &through).unwrap();
    proxy.redirect(&through, &EAST.url);
    let one = site();
    let two = one.duplicate();
    let (first, second) = (one.serve(&section(&cluster, &kubeconfig)), two.serve(&section(&cluster, &through)));
    assert_eq!((code(&first).await, code(&second).await), (Code::Ok, Code::Ok));

    let done = revoke(&one, &format!("--identity {IDENTITY} --no-revoke"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for daemon in [&first, &second] {
        eventually("the block is applied", async || code(daemon).await == Code::PermissionDenied).await;
    }
    let object = cluster.api::<ConfigMap>().get(CONFIGMAP).await.unwrap();
    let document = &object.data.unwrap()["revocations.json"];
    assert!(document.contains(&format!("identity={IDENTITY}")), "{document}");

    // Cut off, the second replica keeps the state and signs no further CRL; then it catches up.
    proxy.close(true);
    proxy.cut();
    let done = revoke(&one, "--unblock 1");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    eventually("the block is lifted", async || code(&first).await == Code::Ok).await;
    assert_eq!(code(&second).await, Code::PermissionDenied);
    assert_eq!(second.get("/readyz").0, 200, "it issues all the same");
    let done = revoke(&two, "--serial 0a --expires 2035-01-01");
    assert!(!done.status.success(), "a replica that is cut off revokes nothing");
    proxy.close(false);
    eventually("the second replica catches up", async || code(&second).await == Code::Ok).await;
    let elsewhere = Ask::new("spiffe://cluster.local/ns/shop/sa/web").token(&one.token("shop", "web"));
    assert!(second.send(elsewhere).await.is_ok());
}
