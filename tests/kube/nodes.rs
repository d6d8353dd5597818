//! Node impersonation: ztunnel requests certificates for workloads on its node; all other requests are rejected.

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::harness::{Cluster, ask, ask_for, cluster_toml, eventually, may_review, may_see_pods, site};
use testkit::{
    api_server::EAST,
    daemon::{Daemon, Site},
};

/// A cluster with a ztunnel and a workload on node-1, a workload on node-2, and the daemon.
pub async fn serve(name: &str, rights: &[PolicyRule]) -> (Cluster, Site, Daemon) {
    let cluster = Cluster::new(&EAST, name).await;
    for account in ["ztunnel", "web", "far", "idle"] {
        cluster.account(account).await;
    }
    cluster.pod("web-1", "web", "node-1").await;
    cluster.pod("far-1", "far", "node-2").await;
    let kubeconfig = cluster.user("daemon", rights, &[]).await;
    let site = site();
    let daemon = site.serve(&cluster_toml(
        "Kubernetes",
        &kubeconfig,
        &format!(
            "[kubernetes.cluster.token_review]\nissuers = ['{}']\ncache = '1s'\n\
             [kubernetes.cluster.node_impersonation]\ntrusted_accounts = ['{}/ztunnel']",
            EAST.issuer, cluster.namespace
        ),
    ));
    (cluster, site, daemon)
}

fn last_refusal(daemon: &Daemon) -> String {
    let lines = daemon.lines();
    let refusal = lines.iter().rev().find(|line| line["message"] == "refused");
    refusal.and_then(|line| line["reason"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn a_nodes_proxy_gets_what_its_node_runs_and_nothing_else() {
    let (cluster, site, daemon) = serve("nodes", &[may_review(), may_see_pods()]).await;
    let ns = &cluster.namespace;
    let id = |account: &str| format!("spiffe://cluster.local/ns/{ns}/sa/{account}");
    let pod = cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    let ztunnel = cluster.token("ztunnel", "istio-ca", Some(&pod)).await;
    daemon.wait_line(|line| line["message"] == "all pods are cached");

    assert_eq!(ask_for(&daemon, &ztunnel, &id("web")).await, "issued");
    let line = daemon.wait_line(|line| line["message"] == "issued" && line["names"] == format!("URI:{}", id("web")));
    assert_eq!(line["identity"], id("ztunnel").as_str(), "the line has the caller");
    let recorded = std::fs::read_dir(site.log()).unwrap().flat_map(|entry| {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    let record = recorded.into_iter().find(|line| line.contains(&id("web")) && line.contains(&id("ztunnel")));
    assert!(record.is_some(), "the issuance log lacks one of them");
    assert_eq!(ask(&daemon, &ztunnel, "Kubernetes", &id("ztunnel")).await, "issued", "for itself");

    let refused = [
        (id("far"), "PermissionDenied", "no pod of"),
        (id("idle"), "PermissionDenied", "no pod of"),
        (format!("spiffe://other.local/ns/{ns}/sa/web"), "PermissionDenied", "trust domain"),
        (format!("spiffe://cluster.local/ns/{ns}/sa/"), "InvalidArgument", "is not a"),
        ("spiffe://cluster.local/ns//sa/web".to_owned(), "InvalidArgument", "is not a"),
        (format!("{},{}", id("web"), id("far")), "InvalidArgument", "is not a"),
    ];
    for (asked, code, reason) in refused {
        assert_eq!(ask_for(&daemon, &ztunnel, &asked).await, code, "{asked}");
        assert!(last_refusal(&daemon).contains(reason), "{}", last_refusal(&daemon));
    }

    let unbound = cluster.token("ztunnel", "istio-ca", None).await;
    assert_eq!(ask_for(&daemon, &unbound, &id("web")).await, "PermissionDenied");
    assert!(last_refusal(&daemon).contains("not bound"), "{}", last_refusal(&daemon));
    let web = cluster.api::<k8s_openapi::api::core::v1::Pod>().get("web-1").await.unwrap();
    let untrusted = cluster.token("web", "istio-ca", Some(&web)).await;
    assert_eq!(ask_for(&daemon, &untrusted, &id("ztunnel")).await, "PermissionDenied");

    // A pod that was just created: looked up, not rejected.
    cluster.pod("idle-1", "idle", "node-1").await;
    assert_eq!(ask_for(&daemon, &ztunnel, &id("idle")).await, "issued");
    // Pods that failed or are not on a node yet are ignored.
    cluster.phase("idle-1", "Failed").await;
    eventually("the failed pod's end", async || {
        (ask_for(&daemon, &ztunnel, &id("idle")).await == "PermissionDenied").then_some(())
    })
    .await;
    cluster.account("late").await;
    cluster.pod("late-1", "late", "").await;
    assert_eq!(ask_for(&daemon, &ztunnel, &id("late")).await, "PermissionDenied");

    // The caller's own pod was replaced by another one of the same name: the old JWT does not match it.
    cluster.delete_pod("ztunnel-1").await;
    cluster.pod("ztunnel-1", "ztunnel", "node-2").await;
    eventually("the end of the old pod's rights", async || {
        (ask_for(&daemon, &ztunnel, &id("web")).await != "issued").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn a_token_checked_by_published_keys_serves_as_well() {
    let cluster = Cluster::new(&EAST, "jwtnodes").await;
    for account in ["ztunnel", "web"] {
        cluster.account(account).await;
    }
    let pod = cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    cluster.pod("web-1", "web", "node-1").await;
    let kubeconfig = cluster.user("daemon", &[may_see_pods()], &[]).await;
    let request = http::Request::get("/openid/v1/jwks").body(Vec::new()).unwrap();
    let keys = cluster.client.request_text(request).await.unwrap();
    let site = site();
    let file = site.softhsm.path().join("east.json");
    std::fs::write(&file, keys).unwrap();
    let daemon = site.serve(&format!(
        "[[auth.jwt]]\nissuer = '{}'\nkeys.file.path = '{}'\ntrust_domain = 'cluster.local'\n{}",
        EAST.issuer,
        file.display(),
        cluster_toml(
            "Kubernetes",
            &kubeconfig,
            &format!("[kubernetes.cluster.node_impersonation]\ntrusted_accounts = ['{}/ztunnel']", cluster.namespace),
        ),
    ));
    let id = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", cluster.namespace);
    let ztunnel = cluster.token("ztunnel", "istio-ca", Some(&pod)).await;
    assert_eq!(ask_for(&daemon, &ztunnel, &id("web")).await, "issued");
    let line = daemon.wait_line(|line| line["message"] == "issued" && line["names"] == format!("URI:{}", id("web")));
    assert_eq!(line["method"], "jwt");
    // Such a JWT outlives its pod, since the API server does not review it; its permissions on the node do not.
    cluster.delete_pod("ztunnel-1").await;
    eventually("the end of the deleted pod's rights", async || {
        (ask_for(&daemon, &ztunnel, &id("web")).await == "PermissionDenied").then_some(())
    })
    .await;
    cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    assert_eq!(ask_for(&daemon, &ztunnel, &id("web")).await, "PermissionDenied", "another pod of the same name");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn empty_pod_cache_refuses_no_request() {
    // Without permission to watch and list, the cache stays empty; each pod is still looked up by name.
    let (cluster, _site, daemon) =
        serve("nowatch", &[may_review(), super::harness::rule("", &["pods"], &["get", "list"])]).await;
    let pod = cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    let ztunnel = cluster.token("ztunnel", "istio-ca", Some(&pod)).await;
    let id = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", cluster.namespace);
    daemon.wait_line(|line| line["message"] == "the watch of pods failed; will retry");
    assert_eq!(ask_for(&daemon, &ztunnel, &id("web")).await, "issued");
    assert_eq!(ask_for(&daemon, &ztunnel, &id("far")).await, "PermissionDenied");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn without_the_right_to_see_pods_nothing_is_decided() {
    let (cluster, _site, daemon) = serve("nopods", &[may_review()]).await;
    let pod = cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    let ztunnel = cluster.token("ztunnel", "istio-ca", Some(&pod)).await;
    let id = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", cluster.namespace);
    assert_eq!(ask_for(&daemon, &ztunnel, &id("web")).await, "Unavailable");
    assert_eq!(ask(&daemon, &ztunnel, "Kubernetes", &id("ztunnel")).await, "issued", "pods are needed for itself");
    assert!(
        daemon.lines().iter().any(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("forbidden")))
    );
}
