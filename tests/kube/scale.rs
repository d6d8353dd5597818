//! A large cluster: how much memory the daemon uses, and how long it takes to list everything. Prints figures; run by
//! benches/kube-scale.sh.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
        core::v1::{Namespace, Pod, ServiceAccount},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    csrs::{USAGES, pem},
    harness::{Cluster, ask_for, cluster_toml, eventually, may_review, may_see_pods, named, site},
    kubelet::Kubelet,
};
use testkit::{
    api_server::{ApiServer, resident},
    daemon::Daemon,
};

/// An API server used by no other test.
static LARGE: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://large.kube.test"));

const AT_ONCE: usize = 32;

fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn pods_of(daemon: &Daemon) -> Option<usize> {
    let metrics = daemon.get("/metrics").1;
    let line = metrics.lines().find(|line| line.starts_with("istio_hsm_ca_pods{"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn mebibytes(daemon: &Daemon) -> f64 {
    resident(daemon.pid()) as f64 / 1024.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: benches/kube-scale.sh"]
async fn pods_of_a_large_cluster_are_followed() {
    let (namespaces, each) = (number("KUBE_NAMESPACES", 1000), number("KUBE_PODS_EACH", 10));
    let cluster = Cluster::new(&LARGE, "scale").await;
    cluster.account("ztunnel").await;
    let ztunnel = cluster.pod("ztunnel-1", "ztunnel", "node-0").await;
    let kubeconfig = cluster.user("daemon", &[may_review(), may_see_pods()], &[]).await;
    let site = site();
    let more = format!(
        "[kubernetes.cluster.token_review]\nissuers = ['{}']\n\
         [kubernetes.cluster.node_impersonation]\ntrusted_accounts = ['{}/ztunnel']",
        LARGE.issuer, cluster.namespace
    );
    let toml = cluster_toml("Kubernetes", &kubeconfig, &more);
    let empty = site.serve(&toml);
    empty.wait_line(|line| line["message"] == "all pods are cached");
    println!("daemon, next to no pods: {:.1} MiB", mebibytes(&empty));
    drop(empty);

    let began = Instant::now();
    let made = PostParams::default();
    stream::iter((0..namespaces).map(Ok::<_, kube::Error>))
        .try_for_each_concurrent(AT_ONCE, |index| {
            let (client, made) = (cluster.client.clone(), &made);
            async move {
                let name = format!("scale-ns-{index}");
                let namespace = Namespace { metadata: named(&name), ..Namespace::default() };
                Api::<Namespace>::all(client.clone()).create(made, &namespace).await?;
                let account = ServiceAccount { metadata: named("web"), ..ServiceAccount::default() };
                Api::<ServiceAccount>::namespaced(client.clone(), &name).create(made, &account).await?;
                let pods: Api<Pod> = Api::namespaced(client, &name);
                for number in 0..each {
                    pods.create(made, &pod(number, (index + number) % 100)).await?;
                }
                Ok(())
            }
        })
        .await
        .unwrap();
    println!("{namespaces} namespaces with {each} pods each, made in {:.0} s", began.elapsed().as_secs_f64());

    let started = Instant::now();
    let daemon = site.serve(&toml);
    daemon.wait_line(|line| line["message"] == "all pods are cached");
    println!(
        "start to every pod known: {:.2} s (of that, to ready, a part); daemon {:.1} MiB",
        started.elapsed().as_secs_f64(),
        mebibytes(&daemon)
    );
    let all = namespaces * each;
    assert!(pods_of(&daemon).unwrap() >= all);

    let token = cluster.token("ztunnel", "istio-ca", Some(&ztunnel)).await;
    let web = "spiffe://cluster.local/ns/scale-ns-0/sa/web";
    assert_eq!(ask_for(&daemon, &token, web).await, "issued");
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(ask_for(&daemon, &token, web).await, "issued");
        times.push(began.elapsed());
    }
    times.sort();
    println!("a certificate for ztunnel, on a connection of its own: {:.1} ms (median of 50)", millis(times[25]));

    // A rollout: every pod changes once.
    let began = Instant::now();
    stream::iter(0..namespaces)
        .for_each_concurrent(AT_ONCE, |index| {
            let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &format!("scale-ns-{index}"));
            async move {
                for number in 0..each {
                    let patch = Patch::Merge(json!({"metadata": {"labels": {"rollout": "1"}}}));
                    pods.patch(&format!("web-{number}"), &PatchParams::default(), &patch).await.unwrap();
                }
            }
        })
        .await;
    println!("every pod changed within {:.0} s: daemon {:.1} MiB", began.elapsed().as_secs_f64(), mebibytes(&daemon));

    // The API server is restarted: time from its readiness until a new pod is known.
    LARGE.kill();
    tokio::time::sleep(Duration::from_secs(5)).await;
    LARGE.run();
    let began = Instant::now();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "scale-ns-0");
    let before = pods_of(&daemon).unwrap();
    eventually("a pod", async || pods.create(&made, &pod(each, 0)).await.ok()).await;
    eventually("the pod's sight", async || (pods_of(&daemon) == Some(before + 1)).then_some(())).await;
    println!(
        "API server restarted: the watch goes on {:.1} s after it is ready; daemon {:.1} MiB",
        began.elapsed().as_secs_f64(),
        mebibytes(&daemon)
    );
    println!("API server: {:.0} MiB", LARGE.resident() as f64 / 1024.0);
}

/// The objects that a controller has changed.
fn changed(daemon: &Daemon, controller: &str) -> usize {
    let metrics = daemon.get("/metrics").1;
    let is_it = |line: &&str| {
        line.starts_with("istio_hsm_ca_reconciles_total{") && line.contains(controller) && line.contains("changed")
    };
    let changed = metrics.lines().filter(is_it).find(|line| !line.contains("unchanged"));
    changed.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
}

/// Requests that wait when the daemon starts, as after an outage: CertificateSigningRequests, then
/// PodCertificateRequests. They are for a hundred service accounts, so that no rate limit applies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: benches/kube-scale.sh"]
async fn waiting_requests_are_signed() {
    const ACCOUNTS: usize = 100;
    let count = number("KUBE_REQUESTS", 10_000);
    let cluster = Cluster::new(&LARGE, "requests").await;
    let signer = format!("{}.example.com/istio", cluster.namespace);
    let account = |index: usize| format!("web-{}", index % ACCOUNTS);

    let began = Instant::now();
    let csrs: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let approved = Patch::Merge(json!({"status": {"conditions": [
        {"type": "Approved", "status": "True", "reason": "Test", "message": "by the test"}
    ]}}));
    stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, async |index| {
            let id = format!("spiffe://cluster.local/ns/{}/sa/{}", cluster.namespace, account(index));
            let name = format!("{}-{index}", cluster.namespace);
            let request = CertificateSigningRequest {
                metadata: named(&name),
                spec: CertificateSigningRequestSpec {
                    request: ByteString(pem(&[&id]).into_bytes()),
                    signer_name: signer.clone(),
                    usages: Some(USAGES.map(str::to_owned).to_vec()),
                    ..CertificateSigningRequestSpec::default()
                },
                ..CertificateSigningRequest::default()
            };
            csrs.create(&PostParams::default(), &request).await.unwrap();
            csrs.patch_subresource("approval", &name, &PatchParams::default(), &approved).await.unwrap();
        })
        .await;
    println!("{count} approved CertificateSigningRequests, made in {:.0} s", began.elapsed().as_secs_f64());

    let began = Instant::now();
    let kubelet = Kubelet::start(&cluster).await;
    let pods: Vec<Pod> = stream::iter(0..ACCOUNTS)
        .then(async |index| kubelet.pod(&account(index), &account(index), &signer, json!({})).await)
        .collect()
        .await;
    stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, async |index| {
            kubelet.request(&pods[index % ACCOUNTS], json!({})).await.unwrap();
        })
        .await;
    println!("{count} PodCertificateRequests, made in {:.0} s", began.elapsed().as_secs_f64());

    let csr_signer = format!(
        "[[kubernetes.cluster.signer]]\nname = '{signer}'\n[[kubernetes.cluster.signer.requester]]\nusername = 'admin'\n\
         may = {{ any_workload = {{ trust_domain = 'cluster.local' }} }}\n"
    );
    let pod_signer = format!("[[kubernetes.cluster.pod_signer]]\nname = '{signer}'\n");
    for (controller, section) in [("csr_signer", csr_signer), ("pod_certificates", pod_signer)] {
        let site = site();
        let toml = |section: &str| {
            format!("[kubernetes]\nnamespace = '{}'\n", cluster.namespace)
                + &cluster_toml("Kubernetes", &cluster.admin(), section)
        };
        let idle = site.serve(&toml(""));
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("daemon without a controller: {:.1} MiB", mebibytes(&idle));
        drop(idle);
        let daemon = site.serve(&toml(&section));
        let signed = async |wanted: usize| loop {
            if changed(&daemon, controller) >= wanted {
                return Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let first = signed(1).await;
        let last = signed(count).await;
        let seconds = last.duration_since(first).as_secs_f64();
        println!("{controller}: {:.0} per second; daemon {:.1} MiB", (count - 1) as f64 / seconds, mebibytes(&daemon));
        let of_others = |line: &serde_json::Value| line["caller"]["method"] != "internal";
        assert_eq!(site.intents().into_values().filter(of_others).count(), count);
    }
    println!("API server: {:.0} MiB", LARGE.resident() as f64 / 1024.0);
}

fn pod(number: usize, node: usize) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": format!("web-{number}"), "labels": {"app": "web"}},
        "spec": {
            "serviceAccountName": "web",
            "nodeName": format!("node-{node}"),
            "containers": [{"name": "c", "image": "none.invalid/none", "ports": [{"containerPort": 8080}]}],
        },
    }))
    .unwrap()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
