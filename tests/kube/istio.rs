//! Istio itself as the client: a sidecar's agent, istiod as a registration authority, and istiod as the CA, all with
//! the code of istio.io/istio (tests/istio) and a real API server. Run by `make test-istio`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::{
    harness::{Cluster, cluster_toml, eventually, may_review, rule, site},
    kinds::Kind,
    rig::Rig,
};
use testkit::{api_server::EAST, daemon::SERVER, plug_in::PlugIn};

/// Runs Istio's code; returns the certificates that it accepted.
///
/// # Panics
/// If it rejects one.
fn istio(arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(judge()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Its packages log to standard output as well.
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn judge() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/istio/build.sh");
    let output = Command::new(script).arg("--where").output().unwrap();
    let judge = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    assert!(judge.is_file(), "{} is missing: run `make test-istio`, or tests/istio/build.sh", judge.display());
    judge
}

fn steps(reported: &[Value]) -> Vec<&str> {
    reported.iter().map(|reported| reported["step"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Istio's code and an API server: make test-istio"]
async fn the_agent_of_a_sidecar_asks_by_token_rotates_and_asks_by_certificate() {
    let cluster = Cluster::new(&EAST, "agents").await;
    let namespace = cluster.namespace.as_str();
    cluster.account("web").await;
    let pod = cluster.pod("web-1", "web", "node-1").await;
    let kubeconfig = cluster.user("daemon", &[may_review()], &[]).await;
    let review = format!("[kubernetes.cluster.token_review]\nissuers = ['{}']\n", EAST.issuer);
    let site = site();
    let daemon = site.serve(&cluster_toml("Kubernetes", &kubeconfig, &review));
    let files = tempfile::tempdir().unwrap();
    let token = files.path().join("istio-token");
    fs::write(&token, cluster.token("web", "istio-ca", Some(&pod)).await).unwrap();
    let (endpoint, roots) = (daemon.address.to_string(), site.bundle().join("root-cert.pem"));

    for key in ["", "ECDSA"] {
        let out = files.path().join(format!("out{key}"));
        fs::create_dir(&out).unwrap();
        let reported = istio(&[
            "agent",
            &format!("--endpoint={endpoint}"),
            &format!("--san={SERVER}"),
            &format!("--roots={}", roots.display()),
            &format!("--token={}", token.display()),
            &format!("--namespace={namespace}"),
            "--account=web",
            &format!("--out={}", out.display()),
            &format!("--ecc={key}"),
            "--rotations=2",
        ]);
        assert_eq!(steps(&reported), ["token", "rotation", "rotation", "certificate"], "{reported:#?}");
        for one in &reported {
            assert_eq!(one["identity"], format!("spiffe://cluster.local/ns/{namespace}/sa/web"));
            let seconds = one["seconds"].as_i64().unwrap();
            assert!((3500..=3600).contains(&seconds), "{one}");
            // The agent's chain is the whole reply: leaf, CA, root; its roots are the last element.
            assert_eq!((&one["certificates"], &one["roots"]), (&Value::from(3), &Value::from(1)));
        }
        let serials: BTreeSet<&str> = reported.iter().map(|reported| reported["serial"].as_str().unwrap()).collect();
        assert_eq!(serials.len(), 4, "serial numbers repeat");
        // The files that the agent wrote for the proxy, verified with openssl.
        let file = |name: &str| out.join(name).display().to_string();
        let (anchors, chain) = (file("root-cert.pem"), file("cert-chain.pem"));
        let verify = ["verify", "-CAfile", &anchors, "-untrusted", &chain, &chain];
        assert!(Command::new("openssl").args(verify).status().unwrap().success());
    }
    let methods: Vec<String> = daemon
        .lines()
        .into_iter()
        .filter(|line| line["message"] == "issued")
        .map(|line| line["method"].as_str().unwrap().to_owned())
        .collect();
    let half = ["token_review", "token_review", "token_review", "client_certificate"];
    assert_eq!(methods, half.repeat(2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Istio's code and an API server: make test-istio"]
async fn istiod_as_a_registration_authority_has_its_workloads_signed() {
    let cluster = Cluster::new(&EAST, "ra").await;
    let namespace = cluster.namespace.as_str();
    let signer = format!("{namespace}.example.com/istio");
    // As Istio's chart grants them to istiod.
    let rights = [
        rule("certificates.k8s.io", &["certificatesigningrequests"], &["update", "create", "get", "delete", "watch"]),
        rule("certificates.k8s.io", &["certificatesigningrequests/approval"], &["update"]),
        istio_signers(&signer),
    ];
    let istiod = cluster.user("istiod", &rights, &[]).await;
    let toml = format!(
        "[[kubernetes.cluster.signer]]\nname = '{signer}'\n[[kubernetes.cluster.signer.requester]]\n\
         username = 'system:serviceaccount:{namespace}:istiod'\n\
         may = {{ any_workload = {{ trust_domain = 'cluster.local' }} }}\n"
    );
    let plug_in = PlugIn::intermediate();
    let files = tempfile::tempdir().unwrap();
    let roots = files.path().join("root-cert.pem");
    fs::write(&roots, &plug_in.root_cert).unwrap();
    let _rig = Rig::start(&cluster, plug_in, &toml, |_| (), None).await;
    let identity = "spiffe://cluster.local/ns/foo/sa/bar";
    let arguments = [
        "ra".to_owned(),
        format!("--kubeconfig={}", istiod.display()),
        format!("--signer={signer}"),
        format!("--roots={}", roots.display()),
        format!("--identity={identity}"),
    ];
    let reported = tokio::task::spawn_blocking(move || istio(&arguments.each_ref().map(String::as_str))).await.unwrap();
    assert_eq!(steps(&reported), ["ra"]);
    assert_eq!(reported[0]["identity"], identity);
    assert_eq!(reported[0]["roots"], 1);
}

/// Istio's chart permits istiod to approve for the configured signers.
fn istio_signers(name: &str) -> k8s_openapi::api::rbac::v1::PolicyRule {
    let mut signers = rule("certificates.k8s.io", &["signers"], &["approve"]);
    signers.resource_names = Some(vec![name.to_owned()]);
    signers
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Istio's code and an API server: make test-istio"]
async fn istiod_as_the_ca_takes_the_intermediate_that_it_is_given() {
    let cluster = Cluster::new(&EAST, "plugged").await;
    let plug_in = PlugIn::intermediate();
    let _rig = Rig::start(&cluster, plug_in, &Kind::Intermediate.toml(&cluster), |_| (), None).await;
    let secret = eventually("the Secret", async || cluster.api::<Secret>().get_opt("cacerts").await.unwrap()).await;
    let files = tempfile::tempdir().unwrap();
    for (name, bytes) in secret.data.unwrap() {
        fs::write(files.path().join(name), bytes.0).unwrap();
    }
    let identity = "spiffe://cluster.local/ns/foo/sa/bar";
    let reported =
        istio(&["plugged", &format!("--from={}", files.path().display()), &format!("--identity={identity}")]);
    assert_eq!(steps(&reported), ["plugged"]);
    assert_eq!(reported[0]["identity"], identity);
    // The leaf, the intermediate, and the CA in the token, whose root is the trust anchor.
    assert!(reported[0]["certificates"].as_i64().unwrap() >= 3, "{reported:?}");
}
