//! Scenarios 8 and 9: the other modes of deploy/istio.

use super::{mesh::Mesh, node::inside};

/// Runs a section of a mode's page.
async fn run(mesh: &Mesh, page: &str, from: &str, to: &str) {
    for block in Mesh::istio_page(page, from, to) {
        mesh.istio_block(&block).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn istiod_as_registration_authority_fails_no_request() {
    if !inside("modes::istiod_as_registration_authority_fails_no_request") {
        return;
    }
    let mesh = Mesh::empty("8-ra").await;
    mesh.imported().await;
    mesh.istiod("").await;
    mesh.workloads(&[]).await;
    let mut story = mesh.story("8", "istiod as registration authority (`deploy/istio/ra`)").await;
    run(&mesh, "ra/README.md", "## Switch", "## Verify").await;
    assert!(story.all_ours().await, "{:#?}", mesh.workload_certificates().await);
    story.step("switch").await;
    run(&mesh, "ra/README.md", "## Roll", "## Nothing").await;
    mesh.shell("kubectl -n istio-system rollout status deployment/istiod --timeout=240s").await;
    mesh.restart_workloads().await;
    assert_eq!(story.ours().await, 0);
    story.step("roll back").await;
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn istiod_with_an_intermediate_fails_no_request() {
    if !inside("modes::istiod_with_an_intermediate_fails_no_request") {
        return;
    }
    let mesh = Mesh::empty("9-intermediate").await;
    mesh.imported().await;
    mesh.istiod("").await;
    mesh.workloads(&[]).await;
    let mut story = mesh.story("9", "istiod with an intermediate (`deploy/istio/intermediate`)").await;
    run(&mesh, "intermediate/README.md", "## Switch", "## Verify").await;
    mesh.shell("kubectl -n istio-system rollout restart deployment/istiod").await;
    mesh.shell("kubectl -n istio-system rollout status deployment/istiod --timeout=240s").await;
    mesh.restart_workloads().await;
    story.step("switch").await;
    run(&mesh, "intermediate/README.md", "## Roll", "## Nothing").await;
    mesh.shell("kubectl -n istio-system rollout status deployment/istiod --timeout=240s").await;
    mesh.restart_workloads().await;
    story.step("roll back").await;
    story.end().await;
}
