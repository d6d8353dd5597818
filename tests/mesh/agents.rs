//! Scenarios 6 and 7: compliance policies of agents, and many agents.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;
use testkit::daemon::{BENCH_PROGRAM, issuer, new_issuer_key};

use super::{
    mesh::{Mesh, SOON},
    node::inside,
    story::Story,
};

/// Sets istiod's policy, which it applies to itself and to what it injects.
async fn policy(mesh: &Mesh, policy: &str) {
    mesh.shell(&format!(
        "helm upgrade istiod istio/istiod -n istio-system --reuse-values --set pilot.env.COMPLIANCE_POLICY={policy}\n\
         kubectl -n istio-system rollout status deployment/istiod --timeout=240s"
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn agents_under_each_compliance_policy_get_certificates() {
    if !inside("agents::agents_under_each_compliance_policy_get_certificates") {
        return;
    }
    let mesh = Mesh::after_the_guide("6-compliance", &[("SECRET_TTL", "20s")]).await;
    let mut story = mesh.story("6", "Compliance policies").await;
    story.note("Certificates are valid for 20 s; each step of one policy includes a renewal under it.");
    policy(&mesh, "fips-140-3").await;
    mesh.restart_workloads().await;
    story.step("change to `COMPLIANCE_POLICY=fips-140-3`").await;
    under_policy(&mut story, "`COMPLIANCE_POLICY=fips-140-3`").await;

    story.note(
        "Proxies under `pqc` have no key exchange in common with those of another policy, and those under `fips-140-2` no TLS \
         version in common with `pqc`: requests between them fail whatever the CA is. All workloads were stopped before such a \
         change and started after it.",
    );
    story.stop_workloads_during(policy(&mesh, "pqc")).await;
    under_policy(&mut story, "`COMPLIANCE_POLICY=pqc`").await;

    policy(&mesh, "fips-140-2").await;
    mesh.shell("kubectl -n demo rollout restart deployment/httpbin").await;
    let started = Instant::now();
    while !mesh.logs.tails(400).contains("[listen.tls] allow_tls12 = true") {
        assert!(started.elapsed() < SOON, "the daemon does not say what to set:\n{}", mesh.logs.tails(400));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let refused = mesh.try_shell("kubectl -n demo rollout status deployment/httpbin --timeout=10s").await;
    assert!(refused.is_err(), "TLS 1.2 alone is refused by default");
    story.step("`COMPLIANCE_POLICY=fips-140-2`: the agent of a new pod is refused").await;
    story.note("The daemon's log names `[listen.tls] allow_tls12`; the pods that run are not affected.");
    story
        .stop_workloads_during(async {
            mesh.shell(
                "helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values \
                   --set config.listen.tls.allow_tls12=true",
            )
            .await;
            mesh.ca_rolled().await;
        })
        .await;
    under_policy(&mut story, "`fips-140-2` with `allow_tls12`").await;
    story.end().await;
}

/// Ends a step in which all workloads have one policy, and renew.
async fn under_policy(story: &mut Story<'_>, title: &str) {
    story.renewed().await;
    assert!(story.all_ours().await);
    story.step(title).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn a_thousand_agents_do_not_disturb_the_traffic() {
    if !inside("agents::a_thousand_agents_do_not_disturb_the_traffic") {
        return;
    }
    const ISSUER: &str = "https://agents.test";
    let mesh = Mesh::after_the_guide("7-agents", &[("SECRET_TTL", "40s")]).await;
    let key = new_issuer_key();
    let keys = serde_json::to_vec(&issuer(&key, ISSUER, "istio-ca").key_set()).unwrap();
    let directory = mesh.logs.directory().join("checkout");
    fs::write(directory.join("keys.json"), keys).unwrap();
    fs::write(directory.join("issuer.pem"), key).unwrap();
    fs::write(
        directory.join("agents.yaml"),
        format!(
            "config:\n  auth:\n    jwt:\n      - issuer: {ISSUER}\n        trust_domain: cluster.local\n        \
             keys: {{ file: {{ path: /etc/istio-hsm-ca/auth/keys.json }} }}\n"
        ),
    )
    .unwrap();
    mesh.shell(
        "helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values -f agents.yaml \
           --set-file 'authFiles.keys\\.json=keys.json'",
    )
    .await;
    mesh.ca_rolled().await;

    let mut story = mesh.story("7", "A thousand agents next to the mesh").await;
    let address = mesh.shell("kubectl -n istio-system get service istio-hsm-ca -o jsonpath='{.spec.clusterIP}'").await;
    for round in 1..=2 {
        let output = mesh
            .shell(&format!(
                "{} --output json endpoint --address {}:15012 --server-name istio-hsm-ca.istio-system.svc \
                 --roots cacerts/root-cert.pem --token-key issuer.pem --issuer {ISSUER} --namespace agents --storm 1000",
                BENCH_PROGRAM.display(),
                address.trim(),
            ))
            .await;
        let report: Value = serde_json::from_str(&output).unwrap_or_else(|_| panic!("{output}"));
        assert_eq!(report["served"].as_u64(), Some(1000), "{report}");
        story.step(&format!("a thousand agents at once, {round}")).await;
        story.note(format!("All were served in {} s.", report["seconds"]));
    }
    story.renewed().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    story.step("renewal after that").await;
    story.end().await;
}
