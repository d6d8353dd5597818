//! The chart's permissions: everything works with them, and something fails without any one of them.

use std::{collections::BTreeSet, path::Path, time::Duration};

use istio_hsm_ca::{
    config::Config,
    kubernetes::permissions::{self, Permission},
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;

use super::{
    harness::{ask, ask_for},
    nodes::serve,
};

/// The objects of a file in deploy/manifests, which another test compares with the chart.
fn manifest(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests").join(name);
    let text = std::fs::read_to_string(&file).unwrap();
    let parse = |document| serde_saphyr::from_str::<Value>(document).unwrap();
    format!("\n{text}").split("\n---").map(parse).filter(|object| !object.is_null()).collect()
}

/// The chart's cluster-wide rules for TokenReview and node impersonation, one verb each.
fn rules() -> Vec<PolicyRule> {
    let mut rules = Vec::new();
    let objects = manifest("all-features.yaml");
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
        let all: Vec<PolicyRule> = serde_json::from_value(role["rules"].clone()).unwrap();
        for rule in all {
            let resources = rule.resources.clone().unwrap_or_default();
            if resources == ["tokenreviews"] || resources == ["pods"] {
                rules.extend(rule.verbs.iter().map(|verb| PolicyRule { verbs: vec![verb.clone()], ..rule.clone() }));
            }
        }
    }
    assert_eq!(rules.len(), 4, "{rules:?}");
    rules
}

/// What fails with these permissions.
async fn broken(name: &str, rights: &[PolicyRule]) -> Vec<&'static str> {
    let (cluster, _site, daemon) = serve(name, rights).await;
    let id = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", cluster.namespace);
    let pod = cluster.pod("ztunnel-1", "ztunnel", "node-1").await;
    let ztunnel = cluster.token("ztunnel", "istio-ca", Some(&pod)).await;
    let web = cluster.token("web", "istio-ca", None).await;
    let mut broken = Vec::new();
    daemon.wait_line(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message == "all pods are cached" || message == "the watch of pods failed; will retry"
    });
    if ask(&daemon, &web, "Kubernetes", &id("web")).await != "issued" {
        broken.push("workloads are not authenticated");
        return broken;
    }
    if ask_for(&daemon, &ztunnel, &id("web")).await != "issued" {
        broken.push("ztunnel is not served");
        return broken;
    }
    // A pod that the cache omits and that is therefore looked up by name.
    cluster.phase("ztunnel-1", "Failed").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    if ask_for(&daemon, &ztunnel, &id("web")).await != "PermissionDenied" {
        broken.push("a pod is not looked up by name");
    }
    if daemon.lines().iter().any(|line| line["message"] == "the watch of pods failed; will retry") {
        broken.push("the watch of pods failed");
    }
    broken
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn each_right_is_needed_and_no_other() {
    let all = rules();
    assert_eq!(broken("rights", &all).await, Vec::<&str>::new());
    for index in 0..all.len() {
        let mut fewer = all.clone();
        let without = fewer.remove(index);
        let broken = broken(&format!("without-{index}"), &fewer).await;
        assert!(!broken.is_empty(), "nothing fails without {without:?}");
    }
}

/// With all features on, the chart grants exactly the permissions that the program reports.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: make test-kube"]
async fn the_chart_grants_what_the_program_says_it_needs() {
    let objects = manifest("all-features.yaml");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("istio-hsm-ca.toml");
    let text = objects.iter().find_map(|object| object["data"]["config.toml"].as_str()).unwrap();
    std::fs::write(&file, text).unwrap();
    let config = Config::read(&file, "").unwrap();
    let settings = config.kubernetes.as_ref().unwrap();
    let own = settings.namespace.clone().or_else(|| "istio-system".parse().ok());
    let needed: BTreeSet<Permission> =
        settings.clusters.iter().flat_map(|cluster| permissions::needed(settings, cluster, own.as_ref())).collect();

    let mut granted = BTreeSet::new();
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role") {
        let name = role["metadata"]["name"].as_str().unwrap();
        if name.contains("import") {
            continue;
        }
        let namespace = role["metadata"]["namespace"].as_str();
        let rules: Vec<PolicyRule> = serde_json::from_value(role["rules"].clone()).unwrap();
        for rule in rules {
            granted.extend(texts(&rule, namespace));
        }
    }
    let needed: BTreeSet<String> = needed.iter().map(ToString::to_string).collect();
    assert_eq!(granted, needed);
}

/// A rule's permissions in the format of [`Permission`].
fn texts(rule: &PolicyRule, namespace: Option<&str>) -> Vec<String> {
    let mut all = Vec::new();
    let names = rule.resource_names.clone().unwrap_or_default();
    let names: Vec<Option<String>> = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                for name in &names {
                    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
                    let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
                    let place = match namespace {
                        Some(namespace) => format!("namespace {namespace}"),
                        None => "all namespaces".to_owned(),
                    };
                    all.push(format!("{verb} {resource}{group}{name} in {place}"));
                }
            }
        }
    }
    all
}
