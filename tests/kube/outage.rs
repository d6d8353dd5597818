//! An API server that hangs, is killed, and comes back; and the watches interrupted by it.

use std::{sync::LazyLock, time::Duration};

use nix::sys::signal::Signal;

use super::harness::{Cluster, ask, ask_for, cluster_toml, eventually, may_review, may_see_pods, rule, site};
use testkit::{api_server::ApiServer, daemon::Daemon};

/// An API server used by no other test.
static AWAY: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://away.kube.test"));

/// Duration of the API server's outage; `KUBE_OUTAGE_SECONDS` overrides it.
pub fn outage() -> Duration {
    let seconds = std::env::var("KUBE_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Callers whose authentication needs no API server are served all the time.
async fn served_on(daemon: &Daemon, time: Duration) {
    let end = std::time::Instant::now() + time;
    while std::time::Instant::now() < end {
        let answer = daemon.send(daemon.ask()).await;
        assert!(answer.is_ok(), "{answer:?}");
        assert_eq!(daemon.get("/readyz").0, 200, "{}", daemon.get("/readyz").1);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn an_api_server_comes_back_and_everything_with_it() {
    let cluster = Cluster::new(&AWAY, "outage").await;
    for account in ["ztunnel", "web", "new"] {
        cluster.account(account).await;
    }
    let pod = cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    cluster.pod("web-1", "web", "node-1").await;
    let leases = rule("coordination.k8s.io", &["leases"], &["create", "get", "update"]);
    let kubeconfig = cluster.user("daemon", &[may_review(), may_see_pods()], &[(&cluster.namespace, leases)]).await;
    let site = site();
    let daemon = site.serve(&cluster_toml(
        "Kubernetes",
        &kubeconfig,
        &format!(
            "[kubernetes.cluster.token_review]\nissuers = ['{}']\ncache = '1s'\ntimeout = '2s'\n\
             [kubernetes.cluster.node_impersonation]\ntrusted_accounts = ['{}/ztunnel']",
            AWAY.issuer, cluster.namespace
        ),
    ));
    let id = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", cluster.namespace);
    let ztunnel = cluster.token("ztunnel", "istio-ca", Some(&pod)).await;
    let web = cluster.token("web", "istio-ca", None).await;
    daemon.wait_line(|line| line["message"] == "all pods are cached");
    assert_eq!(ask_for(&daemon, &ztunnel, &id("web")).await, "issued");
    assert_eq!(ask(&daemon, &web, "Kubernetes", &id("web")).await, "issued");

    // Stopped: it accepts connections but does not answer. Requests that need it fail temporarily.
    AWAY.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ask(&daemon, &web, "Kubernetes", &id("web")).await, "Unavailable");
    served_on(&daemon, outage() / 2).await;
    word(&daemon, false).await;
    AWAY.signal(Signal::SIGCONT);
    back(&daemon, &ztunnel, &web, &id).await;

    // Killed, and its store with it.
    AWAY.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ask(&daemon, &web, "Kubernetes", &id("web")).await, "Unavailable");
    served_on(&daemon, outage() / 2).await;
    let text = daemon.get("/readyz").1;
    assert!(text.contains("cluster Kubernetes: ") && text.starts_with("ready"), "{text}");
    AWAY.run();
    back(&daemon, &ztunnel, &web, &id).await;

    // The interrupted watch recovers: a pod deleted later is removed, a new one is added.
    cluster.delete_pod("web-1").await;
    cluster.pod("new-1", "new", "node-1").await;
    eventually("the new pod", async || (ask_for(&daemon, &ztunnel, &id("new")).await == "issued").then_some(())).await;
    eventually("the end of the deleted pod", async || {
        (ask_for(&daemon, &ztunnel, &id("web")).await == "PermissionDenied").then_some(())
    })
    .await;
}

async fn back(daemon: &Daemon, ztunnel: &str, web: &str, id: &impl Fn(&str) -> String) {
    eventually("its return", async || (ask(daemon, web, "Kubernetes", &id("web")).await == "issued").then_some(()))
        .await;
    eventually("ztunnel", async || (ask_for(daemon, ztunnel, &id("web")).await == "issued").then_some(())).await;
    word(daemon, true).await;
}

/// Waits until `/readyz` reports the API server's state: it is probed every 10 s with a timeout of 5 s.
async fn word(daemon: &Daemon, good: bool) {
    eventually("the API server in /readyz", async || {
        daemon.get("/readyz").1.contains("cluster Kubernetes: ok") == good
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn a_daemon_starts_while_the_api_server_is_away() {
    let site = site();
    let kubeconfig = site.softhsm.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        r#"{"apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}"#,
    )
    .unwrap();
    let more = "[kubernetes.cluster.token_review]\nissuers = ['https://nowhere.kube.test']";
    let daemon = site.serve(&cluster_toml("Kubernetes", &kubeconfig, more));
    served_on(&daemon, Duration::from_secs(1)).await;
}
