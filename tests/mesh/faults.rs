//! Scenarios 4 and 5: parts that are away at the time of renewal.

use std::{collections::BTreeMap, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    mesh::{Mesh, REPLICAS},
    node::inside,
    story::Story,
    traffic::Shown,
};

/// Signals a container of a pod.
fn signal(mesh: &Mesh, pod: &str, container: &str, signal: Signal) {
    let process = mesh.kubelet.process(pod, container);
    let process = process.unwrap_or_else(|| panic!("{container} of {pod} is not running"));
    kill(Pid::from_raw(process), signal).unwrap();
}

/// Waits until a few seconds before the next renewal, which is at half of the certificates' lifetime; returns the
/// certificates until then.
async fn before_renewal(mesh: &Mesh, lifetime: Duration) -> BTreeMap<String, Shown> {
    let all = mesh.workload_certificates().await;
    let oldest = all.values().map(|shown| age(&shown.to, lifetime)).max().unwrap();
    let wait = (lifetime / 2).saturating_sub(oldest + Duration::from_secs(4));
    tokio::time::sleep(wait).await;
    all
}

/// How long ago a certificate was issued that expires at this time.
fn age(expires: &str, lifetime: Duration) -> Duration {
    let expires: k8s_openapi::jiff::Timestamp = expires.parse().unwrap();
    let left = expires.duration_since(k8s_openapi::jiff::Timestamp::now());
    lifetime.saturating_sub(Duration::try_from(left).unwrap_or_default())
}

async fn renewed(story: &mut Story<'_>, old: &BTreeMap<String, Shown>, step: &str) {
    story.renewed_since(old).await;
    story.step(step).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn absence_of_a_part_at_renewal_fails_no_request() {
    if !inside("faults::absence_of_a_part_at_renewal_fails_no_request") {
        return;
    }
    let lifetime = Duration::from_secs(150);
    let mesh = Mesh::after_the_guide("4-faults", &[("SECRET_TTL", "150s")]).await;
    let mut story = mesh.story("4", "Parts that are away at the time of renewal").await;
    story.note("Certificates are valid for 150 s, and agents renew them after 75 s; each step includes a renewal.");

    let old = before_renewal(&mesh, lifetime).await;
    for pod in REPLICAS {
        signal(&mesh, pod, "token-hsm", Signal::SIGSTOP);
    }
    tokio::time::sleep(Duration::from_secs(25)).await;
    for pod in REPLICAS {
        signal(&mesh, pod, "token-hsm", Signal::SIGCONT);
    }
    renewed(&mut story, &old, "no token answers for 25 s").await;

    let old = before_renewal(&mesh, lifetime).await;
    for pod in REPLICAS {
        signal(&mesh, pod, "token-hsm", Signal::SIGKILL);
    }
    renewed(&mut story, &old, "all token hosts killed").await;

    let old = before_renewal(&mesh, lifetime).await;
    for pod in REPLICAS {
        signal(&mesh, pod, "daemon", Signal::SIGKILL);
    }
    renewed(&mut story, &old, "both daemons killed").await;

    let old = before_renewal(&mesh, lifetime).await;
    mesh.shell("kubectl -n istio-system delete pod istio-hsm-ca-0 --grace-period=0 --force").await;
    renewed(&mut story, &old, "one replica killed").await;

    let old = before_renewal(&mesh, lifetime).await;
    mesh.shell("kubectl -n istio-system rollout restart statefulset/istio-hsm-ca").await;
    mesh.ca_rolled().await;
    renewed(&mut story, &old, "replicas rolled").await;

    let old = before_renewal(&mesh, lifetime).await;
    mesh.node.server.kill();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let node = std::sync::Arc::clone(&mesh.node);
    tokio::task::spawn_blocking(move || node.server.run()).await.unwrap();
    renewed(&mut story, &old, "API server and etcd away for 30 s").await;
    assert!(story.all_ours().await);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn restart_of_istiod_without_a_ca_fails_no_request() {
    if !inside("faults::restart_of_istiod_without_a_ca_fails_no_request") {
        return;
    }
    let mesh = Mesh::after_the_guide("5-istiod", &[("SECRET_TTL", "40s")]).await;
    let mut story = mesh.story("5", "istiod without a CA: restarts").await;
    story.note(
        "`ENABLE_CA_SERVER=false`; the ConfigMap `istio-ca-root-cert` and istiod's certificate are those of istio-hsm-ca.",
    );
    let old = mesh.workload_certificates().await;
    mesh.shell("kubectl -n istio-system rollout restart deployment/istiod").await;
    mesh.shell("kubectl -n istio-system rollout status deployment/istiod --timeout=240s").await;
    renewed(&mut story, &old, "istiod restarted").await;

    let old = mesh.workload_certificates().await;
    let pods = mesh.kubelet.pods("istio-system");
    let (istiod, _) = pods.iter().find(|(pod, _)| pod.starts_with("istio-system/istiod-")).unwrap();
    signal(&mesh, istiod, "discovery", Signal::SIGKILL);
    renewed(&mut story, &old, "istiod killed").await;
    mesh.shell("kubectl -n istio-system wait --for=condition=available deployment/istiod --timeout=240s").await;

    mesh.shell("kubectl -n istio-system delete secret istiod-tls").await;
    mesh.shell("kubectl -n demo delete configmap istio-ca-root-cert").await;
    mesh.shell("until kubectl -n istio-system get secret istiod-tls; do sleep 0.5; done").await;
    mesh.shell("until kubectl -n demo get configmap istio-ca-root-cert; do sleep 0.5; done").await;
    mesh.restart_workloads().await;
    assert!(story.all_ours().await);
    story.step("istiod's certificate and the roots deleted; workloads restarted").await;
    story.end().await;
}
