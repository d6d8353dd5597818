//! Every rendering, each feature on and off, against a real API server: a dry run on its side, under the restricted Pod
//! Security Standard, no warning allowed.

use std::fs;

use crate::{
    chart::{overlays, values},
    rendered::root,
    tools::{Cluster, template},
};

/// Each feature alone over `minimal.yaml`, and each taken out of `all-features.yaml`.
const FEATURES: [(&str, &str); 17] = [
    ("kubernetes.tokenReview.enabled=true", "kubernetes.tokenReview.enabled=false"),
    ("kubernetes.nodeImpersonation.enabled=true", "kubernetes.nodeImpersonation.enabled=false"),
    ("kubernetes.rootConfigMap.enabled=true", "kubernetes.rootConfigMap.enabled=false"),
    ("kubernetes.istiodCertificate.enabled=true", "kubernetes.istiodCertificate.enabled=false"),
    (
        "kubernetes.signers[0].name=a.example/b,kubernetes.signers[0].requesters[0].username=u,kubernetes.signers[0].requesters[0].itself=true",
        "kubernetes.signers=null",
    ),
    ("kubernetes.intermediate.enabled=true", "kubernetes.intermediate.enabled=false"),
    (
        "kubernetes.workloadSecrets.enabled=true,kubernetes.workloadSecrets.namespaces={legacy}",
        "kubernetes.workloadSecrets.enabled=false",
    ),
    ("kubernetes.checkpoints.enabled=true", "kubernetes.checkpoints.enabled=false"),
    (
        "kubernetes.remoteClusters[0].clusterName=west,kubernetes.remoteClusters[0].kubeconfig.secret=west,kubernetes.remoteClusters[0].kubeconfig.key=config,kubernetes.remoteClusters[0].rootConfigMap.enabled=true",
        "kubernetes.remoteClusters=null",
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
    for namespace in ["istio-system", "legacy", "demo"] {
        server.must(&["create", "namespace", namespace]);
        server.must(&["label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted"]);
        server.must(&["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]);
    }
    let monitors = root().join("tests/deploy/servicemonitor-crd.yaml");
    server.must(&["apply", "--filename", monitors.to_str().unwrap()]);
    server.must(&["wait", "--for=condition=Established", "crd/servicemonitors.monitoring.coreos.com"]);

    let file = |name: &str| root().join("deploy/manifests/values").join(name).to_str().unwrap().to_owned();
    let (minimal, all, hsm) = (file("minimal.yaml"), file("all-features.yaml"), file("sidecar.yaml"));
    let mut renderings = Vec::new();
    for path in values() {
        renderings.push(vec!["--values".to_owned(), path.to_str().unwrap().to_owned()]);
    }
    for path in overlays() {
        let over = path.to_str().unwrap().to_owned();
        renderings.push(vec!["--values".to_owned(), hsm.clone(), "--values".to_owned(), over]);
    }
    for (on, off) in FEATURES {
        renderings.push(vec!["--values".to_owned(), minimal.clone(), "--set".to_owned(), on.to_owned()]);
        renderings.push(vec!["--values".to_owned(), all.clone(), "--set".to_owned(), off.to_owned()]);
    }
    let directory = tempfile::tempdir().unwrap();
    for (number, arguments) in renderings.iter().enumerate() {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let text = template(&arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let path = directory.path().join(format!("{number}.yaml"));
        fs::write(&path, &text).unwrap();
        let output =
            server.kubectl(&["apply", "--dry-run=server", "--warnings-as-errors", "-f", path.to_str().unwrap()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    }
    // The judge can say no: what is not restricted is warned about, and what is unknown is refused.
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
