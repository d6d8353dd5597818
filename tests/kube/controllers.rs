//! Each permission of each controller: without it, the controller reports which one is missing, the CA continues to
//! sign, and no certificates are wasted; once it is granted, the controller recovers automatically.

use std::sync::Arc;

use istio_hsm_ca::kubernetes::{
    Clusters,
    controllers::checkpoints,
    permissions::{self, Permission},
};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{
    harness::{Cluster, eventually},
    kinds::Kind,
    rig::{self, Rig},
};
use testkit::{api_server::EAST, plug_in::PlugIn};

/// The permissions that a controller needs in its cluster.
async fn needed(kind: Kind, cluster: &Cluster) -> Vec<Permission> {
    rig::permissions(&rig::configuration(&cluster.admin(), cluster, &kind.toml(cluster)))
}

/// Runs a controller without its permission number `number`, or with all of them if there is no such number. Returns
/// whether there is.
async fn without(kind: Kind, number: usize) -> bool {
    let cluster = Cluster::new(&EAST, &format!("right-{}", kind.name().replace('_', "-"))).await;
    let needed = needed(kind, &cluster).await;
    let lacking = needed.get(number);
    let there = lacking.is_some();
    // By Kubernetes' default roles, every service account may read ClusterTrustBundles; other users may not.
    let lacking = lacking.filter(|right| kind != Kind::TrustBundles || !["list", "watch"].contains(&right.verb));
    kind.prepare(&cluster).await;
    if lacking.is_some_and(|right| right.verb == "patch") {
        kind.prepare_to_mend(&cluster).await;
    }
    // All tests share the metrics, so each uses another cluster name.
    let name = |config: &mut istio_hsm_ca::config::Config| {
        config.kubernetes.as_mut().unwrap().clusters[0].name = cluster.namespace.clone().try_into().unwrap();
    };
    let rig = Rig::start(&cluster, PlugIn::intermediate(), &kind.toml(&cluster), name, lacking).await;
    let all_well = async || {
        kind.serials(&cluster).await?;
        (rig.status(kind.name()).failures.is_empty() && rig.remark(kind.name()).is_none()).then_some(())
    };
    let mut certificates = kind.certificates();
    if kind == Kind::Workloads {
        // The rig's own account, in the namespace where every account has a Secret.
        certificates += 1;
    }
    if let Some(right) = lacking {
        let words = match (right.resource, right.verb, kind) {
            ("signers", "attest", _) => "not permitted to attest for signerName".to_owned(),
            ("signers", _, Kind::Pods) => "is not permitted to \"sign\" for signer".to_owned(),
            ("signers", ..) => "not permitted to sign requests with signerName".to_owned(),
            _ => format!("cannot {} resource \"{}\" in API group \"{}\"", right.verb, right.resource, right.group),
        };
        let reported = eventually(&format!("word of {right}"), async || {
            let reported = rig.remark(kind.name())?;
            reported.contains(&words).then_some(reported)
        })
        .await;
        let place = format!("in the namespace \"{}", cluster.namespace);
        assert!(
            right.resource == "signers" || reported.contains(&place) || reported.contains("at the cluster scope"),
            "{reported}"
        );
        let status = rig.status(kind.name());
        assert!(status.running > 0 && status.last_error.is_some(), "{status:?}");
        assert!(rig.in_error() >= 1.0, "the metric");
        // What `check` reports, and the daemon's own log at its start.
        let missing = permissions::missing(rig.account.clone(), needed.clone()).await.unwrap();
        assert_eq!(missing, std::slice::from_ref(right));
        // Nothing else is affected, however often it is retried.
        for _ in 0..8 {
            rig.sign().await;
            certificates += 1;
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        rig.grant(&cluster, right).await;
    }
    let what = lacking.map_or_else(|| kind.name().to_owned(), |right| format!("{} after {right}", kind.name()));
    eventually(&what, all_well).await;
    assert!(rig.status(kind.name()).last_success.is_some());
    eventually("the metric", async || (rig.in_error() == 0.0).then_some(())).await;
    assert_eq!(rig.intents(), certificates, "{what}: a certificate for each object, and no other");
    rig.end().await;
    there
}

async fn each(kind: Kind, count: usize) {
    let all = futures_util::future::join_all((0..=count).map(|number| without(kind, number))).await;
    let there = all.iter().filter(|there| **there).count();
    assert_eq!(there, count, "{kind:?} needs another number of rights; say so here");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn root_configmap_reports_each_missing_permission() {
    each(Kind::Roots, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn crl_configmap_reports_each_missing_permission() {
    each(Kind::Crls, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn istiod_certificate_reports_each_missing_permission() {
    each(Kind::Istiod, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn intermediate_reports_each_missing_permission() {
    each(Kind::Intermediate, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn csr_signer_reports_each_missing_permission() {
    each(Kind::Signer, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn workload_secrets_report_each_missing_permission() {
    each(Kind::Workloads, 8).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn pod_certificates_report_each_missing_permission() {
    each(Kind::Pods, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn cluster_trust_bundle_reports_each_missing_permission() {
    each(Kind::TrustBundles, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn certificate_requests_report_each_missing_permission() {
    each(Kind::CertManager, 9).await;
}

/// The copies of checkpoints, which every replica writes, whether it leads or not.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn checkpoints_report_each_missing_permission() {
    for lacking in ["create", "patch", ""] {
        let cluster = Cluster::new(&EAST, "right-checkpoints").await;
        let config = rig::configuration(&cluster.admin(), &cluster, "[kubernetes.checkpoints]\n");
        let needed = rig::permissions(&config);
        assert_eq!(needed.iter().map(|right| right.verb).collect::<Vec<_>>(), ["create", "patch"]);
        let (rest, without): (Vec<_>, Vec<_>) = needed.iter().partition(|right| right.verb != lacking);
        let rules: Vec<_> = rest.iter().map(|right| (cluster.namespace.as_str(), rig::rule(right).1)).collect();
        let mut settings = config.kubernetes.clone().unwrap();
        settings.clusters[0].kubeconfig = Some(cluster.user("copier", &[], &rules).await);
        let clusters = Clusters::new(&settings, &config.ca.trust_domains).await.unwrap();
        let one = Arc::clone(clusters.first().unwrap());
        let status = one.controller_status(checkpoints::NAME);
        let newest = Arc::new(|| Some("a checkpoint".to_owned()));
        let copies = settings.checkpoints.clone().unwrap();
        let task = tokio::spawn(checkpoints::run(one, cluster.namespace.clone(), "a".into(), copies, newest));
        if let [right] = without.as_slice() {
            let words = format!("cannot {lacking} resource \"configmaps\"");
            eventually(&words, async || status.borrow().problem()?.contains(&words).then_some(())).await;
            cluster.grant("copier", "more", &[], &[(&cluster.namespace, rig::rule(right).1)]).await;
        }
        let api = cluster.api::<ConfigMap>();
        eventually("the copy", async || {
            let data = api.get_opt("istio-hsm-ca-checkpoints").await.unwrap()?.data?;
            (data.get("a")? == "a checkpoint" && status.borrow().problem().is_none()).then_some(())
        })
        .await;
        task.abort();
    }
}
