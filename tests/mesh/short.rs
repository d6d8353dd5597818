//! A short form of scenarios 1 to 3, for each change: one mesh, fewer renewals, and not the way back.

use super::{
    migration::{to_the_token, with_the_secret},
    node::inside,
    rotation::{new_certificate, new_key},
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh-short"]
async fn migration_renewals_and_rotation_fail_no_request() {
    if !inside("short::migration_renewals_and_rotation_fail_no_request") {
        return;
    }
    let mesh = with_the_secret("short", &[("SECRET_TTL", "12s")]).await;
    let mut story = mesh.story("1 to 3", "Migration to the token, renewals, rotation").await;
    to_the_token(&mesh, &mut story).await;
    for _ in 0..3 {
        story.renewed().await;
    }
    assert!(story.all_ours().await);
    story.step("three renewals").await;
    new_certificate(&mesh, &mut story).await;
    new_key(&mesh, &mut story).await;
    story.passed();
}
