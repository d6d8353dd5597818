//! Scenario 1: from the Secret `cacerts` to the token and back, by docs/GUIDE.md and deploy/istio/sidecar.

use super::{mesh::Mesh, node::inside, story::Story};

/// Runs the blocks of a section of the page for sidecars, each as a step with its name.
async fn sidecar(mesh: &Mesh, story: &mut Story<'_>, from: &str, to: &str, names: &[&str]) {
    let blocks = Mesh::istio_page("sidecar/README.md", from, to);
    assert_eq!(blocks.len(), names.len(), "{blocks:#?}");
    for (block, name) in blocks.iter().zip(names) {
        mesh.istio_block(block).await;
        story.step(&format!("sidecar, {name}")).await;
    }
}

/// A mesh whose istiod has the key from the Secret `cacerts`. The agents have further environment variables.
pub async fn with_the_secret(scenario: &str, environment: &[(&str, &str)]) -> Mesh {
    let mesh = Mesh::empty(scenario).await;
    mesh.guide("## 1.", "## 3.").await;
    mesh.crds().await;
    mesh.istiod("").await;
    mesh.workloads(environment).await;
    mesh
}

/// The key goes to the token, the workloads to istio-hsm-ca, and istiod loses its CA.
pub async fn to_the_token(mesh: &Mesh, story: &mut Story<'_>) {
    assert_eq!(story.ours().await, 0, "istiod has a CA, and no certificate is ours");
    mesh.guide("## 3.", "## 4.").await;
    story.step("GUIDE 3: import").await;
    mesh.guide("## 4.", "## 5.").await;
    story.step("GUIDE 4: test certificate").await;
    mesh.open_token();
    mesh.guide("## 5.", "## 7.").await;
    mesh.ca_rolled().await;
    story.step("GUIDE 5 and 6: install, both CAs compared").await;
    let steps = ["step 1: address", "step 1: workloads restarted", "step 2: istiod's CA disabled"];
    sidecar(mesh, story, "## Switch", "## Verify", &steps).await;
    assert!(story.all_ours().await, "{:#?}", mesh.workload_certificates().await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn migration_to_the_token_and_back_fails_no_request() {
    if !inside("migration::migration_to_the_token_and_back_fails_no_request") {
        return;
    }
    let mesh = with_the_secret("1-migration", &[]).await;
    let mut story = mesh.story("1", "From the Secret `cacerts` to the token and back").await;
    to_the_token(&mesh, &mut story).await;
    sidecar(&mesh, &mut story, "## Verify", "## Roll", &["verified"]).await;
    mesh.restart_workloads().await;
    assert!(story.all_ours().await);
    story.step("workloads restarted without istiod's CA").await;
    mesh.guide("## 7.", "## Troubleshooting").await;
    story.step("GUIDE 7: key removed from the Secret").await;
    story.note("Every certificate after the switch is in the issuance log, and none before it.");

    // From the backup.
    mesh.shell(
        "kubectl -n istio-system patch secret cacerts --type merge \
           -p \"{\\\"data\\\":{\\\"ca-key.pem\\\":\\\"$(base64 -w0 cacerts/ca-key.pem)\\\"}}\"",
    )
    .await;
    sidecar(&mesh, &mut story, "## Roll back", "## Nothing", &["rolled back"]).await;
    mesh.shell("kubectl -n istio-system rollout restart deployment/istiod").await;
    mesh.shell("kubectl -n istio-system rollout status deployment/istiod --timeout=240s").await;
    mesh.restart_workloads().await;
    story.step("istiod and workloads restarted").await;
    assert_eq!(story.ours().await, 0, "istiod has its CA again");
    mesh.shell("helm uninstall istio-hsm-ca -n istio-system --wait").await;
    story.step("istio-hsm-ca removed").await;
    story.note("After the way back, no certificate is ours.");
    story.end().await;
}
