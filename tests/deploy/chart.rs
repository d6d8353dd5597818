//! The chart with Helm itself: lint, values rejected by the schema, up-to-date manifests, Istio's overlays.

use std::{fs, path::PathBuf, process::Command};

use istio_hsm_ca::config::Config;
use serde_json::Value;

use crate::{
    rendered::{objects, of_kind, root},
    tools::{chart, helm, minimal_below, template, tool, values_file},
};

/// All values files for the chart as it is.
pub fn values() -> Vec<PathBuf> {
    let directory = root().join("deploy/manifests/values");
    let mut found: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Values files of an Istio mode, each with the files that it overrides.
pub fn overlays() -> Vec<PathBuf> {
    let modes = fs::read_dir(root().join("deploy/istio")).unwrap().map(|entry| entry.unwrap().path());
    let files = modes.filter(|mode| mode.is_dir()).flat_map(|mode| fs::read_dir(mode).unwrap());
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with("ca"));
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    files
}

/// Values the chart must reject: a value on top of `minimal.yaml`, and a word of the reason.
const REFUSED: [(&str, &str); 34] = [
    ("replicas=0", "replicas"),
    ("replicas=two", "replicas"),
    ("replicaCount=2", "replicaCount"),
    ("trustDomains[0]=cluster.local", "trustDomains"),
    ("tokens[0].name=Not A Name", "name"),
    ("tokens[0].uri=http://example.com", "uri"),
    ("tokens[0].uri=pkcs11:token=a", "uri"),
    ("tokens[0].uri=pkcs11:slot-id=1?module-path=/a.so", "uri"),
    ("tokens[0].uri=pkcs11:token=a?module-path=/a.so&pin-value=1234", "uri"),
    ("tokens[0].uri=pkcs11:token=a?module-path=/a.so&pin-source=file:/pin", "uri"),
    ("tokens[0].pin=1234", "pin"),
    ("tokens[0].pin.value=1234", "pin"),
    ("tokens[0].env.PIN=1234", "env"),
    ("tokens[0].env.VENDOR_PASSWORD=1234", "env"),
    ("tokens[0].sessions=0", "sessions"),
    ("tokens[0].callTimeout=5", "callTimeout"),
    ("tokens=null", "no token"),
    ("tokenHost.runAsUser=0", "runAsUser"),
    ("tokenHost.runAsUser=10001", "one user"),
    ("tokenHost.runAsGroup=10001", "one user"),
    ("daemon.runAsUser=0", "runAsUser"),
    ("fsGroup=10002", "fsGroup"),
    ("config.listen.address=[::]:443", "1024"),
    ("config.listen.address=127.0.0.1:15012", "outside the pod"),
    ("config.kubernetes.cluster[0].kubeconfig=/west,config.kubernetes.checkpoints.configmap=a", "need this cluster"),
    ("config.ca.bundle=/elsewhere", "bundle"),
    ("config.token[0].name=a", "token"),
    ("config.log.directory=/elsewhere", "directory"),
    ("logVolume.retention=Keep", "retention"),
    ("authFiles.a=-----BEGIN PRIVATE KEY-----", "authFiles"),
    ("bundle.files.ca-key\\.pem=-----BEGIN PRIVATE KEY-----", "files"),
    ("bundle.files.ca-cert\\.pem=-----BEGIN CERTIFICATE-----", "files"),
    ("podDisruptionBudget.maxUnavailable=0", "maxUnavailable"),
    ("image.digest=sha256:1", "digest"),
];

/// Values the program must reject in the rendered configuration: a value on top of `minimal.yaml`, and words of the
/// reason.
const REFUSED_BY_PROGRAM: [(&str, &str); 20] = [
    ("config.ca.trust_domains=", "[ca] trust_domains"),
    ("config.ca.trust_domains[0]=Cluster Local", "[ca] trust_domains"),
    ("config.ca.trustDomains[0]=a", "[ca] trustDomains: unknown field"),
    (
        "config.auth.jwt[0].keys.discovery=null,config.auth.jwt[0].keys.url.url=http://issuer.example.com",
        "a key URL starts with https://",
    ),
    ("config.auth.jwt[0].keys.url.url=https://issuer.example.com", "[auth] jwt"),
    ("config.kubernetes.cluster[0].token_review.issuers={}", "token_review.issuers"),
    ("config.kubernetes.cluster[0].node_impersonation.trusted_accounts[0]=ztunnel", "trusted_accounts"),
    (
        "config.kubernetes.cluster[0].signer[0].name=istio,config.kubernetes.cluster[0].signer[0].requester[0].username=u,config.kubernetes.cluster[0].signer[0].requester[0].may=itself",
        "signer",
    ),
    (
        "config.kubernetes.cluster[0].signer[0].name=kubernetes.io/kubelet-serving,config.kubernetes.cluster[0].signer[0].requester[0].username=u,config.kubernetes.cluster[0].signer[0].requester[0].may=itself",
        "signer",
    ),
    (
        "config.kubernetes.cluster[0].signer[0].name=a.example/b,config.kubernetes.cluster[0].signer[0].requester[0].username=u",
        "requester",
    ),
    ("config.kubernetes.cluster[0].intermediate.ttl=60s,config.token_host.allow_intermediate=true", "intermediate.ttl"),
    ("config.kubernetes.cluster[0].istiod_certificate.ttl=60s", "istiod_certificate.ttl"),
    ("config.kubernetes.cluster[0].workload_secrets.ttl=24h", "workload_secrets"),
    ("config.kubernetes.cluster[0].cert_manager.class=a", "has no profile"),
    (
        "config.kubernetes.cluster[0].cert_manager.profile[0].name=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].namespaces[0]=*,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may=itself",
        "is for everyone in every namespace",
    ),
    (
        "config.kubernetes.cluster[0].cert_manager.profile[0].name=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].namespaces[0]=Web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may=itself",
        "is not a valid namespace",
    ),
    (
        "config.kubernetes.cluster[0].cert_manager.profile[0].name=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].namespaces[0]=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may.any_workload.trust_domain=other.example",
        "other.example is not in [ca] trust_domains",
    ),
    (
        "config.kubernetes.cluster[0].cert_manager.profile[0].name=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].namespaces[0]=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].max_ttl=24h,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may.ca.organization=A",
        "allow_intermediate",
    ),
    (
        "config.kubernetes.cluster[0].cert_manager.profile[0].name=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].namespaces[0]=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may.ca.organization=A,config.token_host.allow_intermediate=true",
        "needs a max_ttl",
    ),
    (
        "config.kubernetes.cluster[0].cert_manager.profile[0].name=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].namespaces[0]=web,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].max_ttl=24h,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may.ca.organization=A,config.kubernetes.cluster[0].cert_manager.profile[0].rule[0].may.ca.ignored_uris[0]=example.org,config.token_host.allow_intermediate=true",
        "is not a SPIFFE ID",
    ),
];

#[test]
#[ignore = "needs Helm: make test-deploy"]
fn invalid_value_is_refused_with_its_name() {
    let minimal = &*values_file("minimal");
    template(&["--values", minimal]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (set, word) in REFUSED {
        // A comma inside a value separates two values.
        match template(&["--values", &minimal_below(set, directory.path()), "--set", set]) {
            Ok(_) => panic!("{set} is accepted"),
            Err(reason) => assert!(reason.contains(word), "{set}: {reason}"),
        }
    }
    for (set, words) in REFUSED_BY_PROGRAM {
        let rendered = objects(&template(&["--values", &minimal_below(set, directory.path()), "--set", set]).unwrap());
        let maps = of_kind(&rendered, "ConfigMap");
        let config = maps.iter().find_map(|map| map["data"]["config.toml"].as_str()).unwrap();
        let problems = Config::parse(config, "").expect_err(set);
        assert!(problems.iter().any(|problem| problem.to_string().contains(words)), "{set}: {problems:#?}");
    }
    let monitor = helm(&[
        "template",
        chart().to_str().unwrap(),
        "--kube-version=1.33.0",
        "--values",
        minimal,
        "--set",
        "serviceMonitor.enabled=true",
    ]);
    assert!(!monitor.status.success(), "a ServiceMonitor without the API");
    assert!(
        !helm(&["template", chart().to_str().unwrap(), "--kube-version=1.28.0", "--values", minimal]).status.success()
    );
}

#[test]
#[ignore = "needs Helm: make test-deploy"]
fn every_file_of_values_passes_the_linter() {
    let hsm = PathBuf::from(values_file("sidecar"));
    let over = overlays().into_iter().map(|file| vec![hsm.clone(), file]);
    for files in values().into_iter().map(|file| vec![file]).chain(over) {
        let chart = chart();
        let mut arguments = vec!["lint", "--strict", "--kube-version=1.33.0", chart.to_str().unwrap()];
        for file in &files {
            arguments.extend(["--values", file.to_str().unwrap()]);
        }
        let output = helm(&arguments);
        assert!(output.status.success(), "{files:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
#[ignore = "needs Helm: make test-deploy"]
fn the_manifests_are_what_the_chart_renders() {
    let output = Command::new(root().join("deploy/manifests/render.sh"))
        .arg("--check")
        .env("HELM", tool("helm"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs Helm: make test-deploy"]
fn the_notes_warn_of_what_is_dangerous() {
    let notes = |arguments: &[&str]| {
        let chart = chart();
        let mut all = vec!["install", "istio-hsm-ca", chart.to_str().unwrap(), "--dry-run=client"];
        all.extend(["--namespace", "istio-system"]);
        all.extend(arguments);
        let output = helm(&all);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        text.split_once("NOTES:").unwrap().1.to_owned()
    };
    assert!(!notes(&["--values", &values_file("minimal")]).contains("WARNING"));
    assert!(notes(&["--values", &values_file("trial")]).contains("WARNING: softhsm.trial"));
    assert!(notes(&["--values", &values_file("ra")]).contains("as powerful as the CA"));
    let profile = r#"config.kubernetes={"cluster": [{"cert_manager": {"profile": [{"name": "spire", "rule": [{"namespaces": ["spire"], "may": {"ca": {"organization": "SPIRE"}}}]}]}}]}"#;
    let warned = notes(&["--values", &values_file("minimal"), "--set-json", profile]);
    assert!(
        warned.contains("WARNING: cert_manager's profile spire makes a requester in spire as powerful"),
        "{warned}"
    );
}

/// The schema has every value that has a default, and no others.
#[test]
fn the_schema_and_the_values_name_the_same_things() {
    fn names(schema: &Value, values: &Value, path: &str) {
        let (Some(properties), Some(values)) = (schema["properties"].as_object(), values.as_object()) else { return };
        // The program validates `config`, not the schema.
        for (name, value) in values.iter().filter(|(name, _)| *name != "config") {
            assert!(properties.contains_key(name), "values.schema.json lacks {path}{name}");
            names(&properties[name], value, &format!("{path}{name}."));
        }
        let optional = ["global", "keys"];
        for name in properties.keys().filter(|name| !values.is_empty() && !optional.contains(&name.as_str())) {
            assert!(values.contains_key(name), "values.yaml lacks {path}{name}");
        }
    }
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let values = objects(&fs::read_to_string(chart().join("values.yaml")).unwrap());
    names(&schema, &values[0], "");
}

/// Istio's values contain the address in our certificate.
#[test]
fn istios_values_lead_to_the_endpoint() {
    let rendered = crate::rendered::all().remove(1).1;
    let service =
        of_kind(&rendered, "Service").into_iter().find(|service| service["metadata"]["name"] == "istio-hsm-ca");
    let service = service.unwrap();
    let port = &service["spec"]["ports"][0]["port"];
    let address = format!("istio-hsm-ca.{}.svc:{port}", service["metadata"]["namespace"].as_str().unwrap());
    let mut seen = 0;
    for mode in ["sidecar", "ambient"] {
        for entry in fs::read_dir(root().join("deploy/istio").join(mode)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let values = &objects(&fs::read_to_string(&path).unwrap())[0];
            for named in [&values["caAddress"], &values["global"]["caAddress"]] {
                if let Some(named) = named.as_str() {
                    assert_eq!(named, address, "{}", path.display());
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, 5);
    // RA mode: Istio and we use the same signer name.
    let signer = |path: &str| objects(&fs::read_to_string(root().join(path)).unwrap()).remove(0);
    let (ours, istios) = (signer("deploy/istio/ra/ca.yaml"), signer("deploy/istio/ra/istiod.yaml"));
    let name = &ours["config"]["kubernetes"]["cluster"][0]["signer"][0]["name"];
    assert_eq!(&istios["pilot"]["env"]["K8S_SIGNER"], name);
    assert_eq!(&istios["global"]["certSigners"][0], name);
    // So do mounted certificates.
    let (ours, istios) =
        (signer("deploy/istio/pod-certificates/ca.yaml"), signer("deploy/istio/pod-certificates/istiod.yaml"));
    let template = istios["sidecarInjectorWebhook"]["templates"]["pod-certificate"].as_str().unwrap();
    let sources = &objects(template)[0]["spec"]["volumes"][0]["projected"]["sources"];
    let cluster = &ours["config"]["kubernetes"]["cluster"][0];
    let name = cluster["pod_signer"][0]["name"].as_str().unwrap();
    assert_eq!(sources[0]["podCertificate"]["signerName"], name);
    assert_eq!(cluster["cluster_trust_bundle"]["signers"][0], name);
    assert_eq!(sources[1]["clusterTrustBundle"]["name"], format!("{}:root-cert", name.replace('/', ":")));
}
