//! Every rendering, with each feature on and off, is applied to a real API server as a dry run under the restricted Pod
//! Security Standard, without any warning.

use std::fs;

use istio_hsm_ca::config::Config;

use crate::{
    chart::{overlays, values},
    rendered::{objects, of_kind, root},
    tools::{Cluster, minimal_below, template, values_file},
};

/// Each feature alone on top of `minimal.yaml`, and each removed from `all-features.yaml`.
const FEATURES: [(&str, &str); 19] = [
    ("config.kubernetes.cluster[0].token_review.issuers[0]=i", "config.kubernetes.cluster[0].token_review=null"),
    (
        "config.kubernetes.cluster[0].node_impersonation.trusted_accounts[0]=a/b",
        "config.kubernetes.cluster[0].node_impersonation=null",
    ),
    ("config.kubernetes.cluster[0].root_configmap.name=a", "config.kubernetes.cluster[0].root_configmap=null"),
    ("config.kubernetes.cluster[0].istiod_certificate.ttl=12h", "config.kubernetes.cluster[0].istiod_certificate=null"),
    (
        "config.kubernetes.cluster[0].signer[0].name=a.example/b,config.kubernetes.cluster[0].signer[0].requester[0].username=u,config.kubernetes.cluster[0].signer[0].requester[0].may=itself",
        "config.kubernetes.cluster[0].signer=null",
    ),
    (
        "config.kubernetes.cluster[0].intermediate.ttl=48h,config.token_host.allow_intermediate=true",
        "config.kubernetes.cluster[0].intermediate=null",
    ),
    (
        "config.kubernetes.cluster[0].workload_secrets.namespaces={legacy}",
        "config.kubernetes.cluster[0].workload_secrets=null",
    ),
    (
        "config.kubernetes.cluster[0].pod_signer[0].name=a.example/b,config.kubernetes.cluster[0].pod_signer[0].service[0].account=apps/web,config.kubernetes.cluster[0].pod_signer[0].service[0].names={web}",
        "config.kubernetes.cluster[0].pod_signer=null",
    ),
    (
        "config.kubernetes.cluster[0].cluster_trust_bundle.signers={a.example/b}",
        "config.kubernetes.cluster[0].cluster_trust_bundle=null",
    ),
    (
        "config.kubernetes.cluster[0].token_review.issuers[0]=i,config.kubernetes.checkpoints.configmap=a",
        "config.kubernetes.checkpoints=null",
    ),
    (
        "config.kubernetes.cluster[0].name=Kubernetes,config.kubernetes.cluster[1].name=west,config.kubernetes.cluster[1].kubeconfig=/etc/istio-hsm-ca/clusters/west/config,config.kubernetes.cluster[1].root_configmap.name=a,kubeconfigs[0].name=west,kubeconfigs[0].secret=west",
        "kubeconfigs=null",
    ),
    ("import.enabled=true", "import.enabled=false"),
    ("softhsm.trial=true,import.enabled=true,tokens=null", "softhsm.trial=true"),
    ("rbac.create=true", "rbac.create=false"),
    ("serviceAccount.name=other", "serviceAccount.create=false,serviceAccount.name=other"),
    ("podDisruptionBudget.enabled=true", "podDisruptionBudget.enabled=false"),
    ("networkPolicy.enabled=true", "networkPolicy.enabled=false"),
    ("serviceMonitor.enabled=true", "serviceMonitor.enabled=false"),
    ("service.trafficDistribution=PreferSameZone", "service.type=LoadBalancer"),
];

#[test]
#[ignore = "needs Helm and an API server: make test-deploy"]
fn the_api_server_takes_every_rendering_without_a_warning() {
    let server = Cluster::start();
    for namespace in ["istio-system", "legacy", "demo", "apps", "shop"] {
        server.must(&["create", "namespace", namespace]);
        server.must(&["label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted"]);
        server.must(&["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]);
    }
    let monitors = root().join("tests/deploy/servicemonitor-crd.yaml");
    server.must(&["apply", "--filename", monitors.to_str().unwrap()]);
    server.must(&["wait", "--for=condition=Established", "crd/servicemonitors.monitoring.coreos.com"]);

    let directory = tempfile::tempdir().unwrap();
    let (all, hsm) = (values_file("all-features"), values_file("sidecar"));
    let mut renderings = Vec::new();
    for path in values() {
        renderings.push(vec!["--values".to_owned(), path.to_str().unwrap().to_owned()]);
    }
    for path in overlays() {
        let over = path.to_str().unwrap().to_owned();
        renderings.push(vec!["--values".to_owned(), hsm.clone(), "--values".to_owned(), over]);
    }
    for (on, off) in FEATURES {
        let minimal = minimal_below(on, directory.path());
        renderings.push(vec!["--values".to_owned(), minimal, "--set".to_owned(), on.to_owned()]);
        renderings.push(vec!["--values".to_owned(), all.clone(), "--set".to_owned(), off.to_owned()]);
    }
    for (number, arguments) in renderings.iter().enumerate() {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let text = template(&arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        for map in of_kind(&objects(&text), "ConfigMap") {
            if let Some(config) = map["data"]["config.toml"].as_str() {
                Config::parse(config, "").unwrap_or_else(|problems| panic!("{arguments:?}: {problems:#?}\n{config}"));
            }
        }
        let path = directory.path().join(format!("{number}.yaml"));
        fs::write(&path, &text).unwrap();
        let output =
            server.kubectl(&["apply", "--dry-run=server", "--warnings-as-errors", "-f", path.to_str().unwrap()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    }
    // The check can fail: an unrestricted pod causes a warning, an unknown field an error.
    let path = directory.path().join("0.yaml");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
        ("readOnlyRootFilesystem:", "readOnlyRoot:"),
    ] {
        fs::write(&path, good.replace(from, to)).unwrap();
        let output =
            server.kubectl(&["apply", "--dry-run=server", "--warnings-as-errors", "-f", path.to_str().unwrap()]);
        assert!(!output.status.success(), "{to} passes");
    }
}
