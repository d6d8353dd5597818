//! Scenarios 6 and 7: compliance policies of agents, and many agents.

use std::{fs, time::Duration};

use serde_json::Value;
use testkit::daemon::{BENCH_PROGRAM, issuer, new_issuer_key};

use super::{mesh::Mesh, node::inside, story::Story};

/// Sets istiod's policy, which it applies to itself and to what it injects.
async fn policy(mesh: &Mesh, policy: &str) {
    mesh.shell(&format!(
        "helm upgrade istiod istio/istiod -n istio-system --reuse-values --set pilot.env.COMPLIANCE_POLICY={policy}\n\
         kubectl -n istio-system rollout status deployment/istiod --timeout=120s"
    ))
    .await;
}

/// Ends a step in which the policy changed, and one in which it did not.
async fn between(story: &mut Story<'_>, title: &str) {
    story.step(&format!("change to {title}")).await;
    story.expected();
    tokio::time::sleep(Duration::from_secs(5)).await;
    story.step(title).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn agents_under_each_compliance_policy_get_certificates() {
    if !inside("agents::agents_under_each_compliance_policy_get_certificates") {
        return;
    }
    let mesh = Mesh::after_the_guide("6-compliance", &[]).await;
    let mut story = mesh.story("6", "Compliance policies").await;
    for (name, title) in [("fips-140-3", "`COMPLIANCE_POLICY=fips-140-3`"), ("pqc", "`COMPLIANCE_POLICY=pqc`")] {
        policy(&mesh, name).await;
        mesh.restart_workloads().await;
        assert!(story.all_ours().await);
        between(&mut story, title).await;
    }

    policy(&mesh, "fips-140-2").await;
    mesh.shell("kubectl -n demo rollout restart deployment/httpbin").await;
    let refused = mesh.try_shell("kubectl -n demo rollout status deployment/httpbin --timeout=15s").await;
    assert!(refused.is_err(), "TLS 1.2 alone is refused by default");
    let logs = mesh.logs.tails(400);
    assert!(logs.contains("allow_tls12"), "the daemon says what to set:\n{logs}");
    story.step("`COMPLIANCE_POLICY=fips-140-2`: the agent of a new pod is refused").await;
    story.note("The daemon's log names `[listen.tls] allow_tls12`; the pods that run are not affected.");
    mesh.shell(
        "helm upgrade istio-hsm-ca $CHART -n istio-system --reuse-values --set config.listen.tls.allow_tls12=true",
    )
    .await;
    mesh.ca_rolled().await;
    mesh.restart_workloads().await;
    assert!(story.all_ours().await);
    between(&mut story, "`fips-140-2` with `allow_tls12`").await;
    story.note(
        "While workloads of two policies run next to each other, their proxies may have no TLS version or key exchange in \
         common; requests between them fail whatever the CA is. All of one policy fail no request.",
    );
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn a_thousand_agents_do_not_disturb_the_traffic() {
    if !inside("agents::a_thousand_agents_do_not_disturb_the_traffic") {
        return;
    }
    const ISSUER: &str = "https://agents.test";
    let mesh = Mesh::after_the_guide("7-agents", &[("SECRET_TTL", "60s")]).await;
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
