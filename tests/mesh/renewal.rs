//! Scenario 2: many renewals.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    mesh::{Mesh, WORKLOADS},
    node::inside,
};

/// Renewals of each workload.
const RENEWALS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn fifty_renewals_fail_no_request() {
    if !inside("renewal::fifty_renewals_fail_no_request") {
        return;
    }
    // Agents renew at half the lifetime.
    let mesh = Mesh::after_the_guide("2-renewal", &[("SECRET_TTL", "6s")]).await;
    let mut story = mesh.story("2", "Fifty renewals of each workload").await;
    let issued = || {
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, names) in mesh.issued() {
            if let Some(name) = WORKLOADS.iter().find(|name| names.contains(&format!("/sa/{name}\""))) {
                *count.entry(name).or_default() += 1;
            }
        }
        count
    };
    let (before, started) = (issued(), Instant::now());
    let renewals = loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = issued();
        let renewals: BTreeMap<_, _> = now.iter().map(|(name, count)| (*name, count - before[name])).collect();
        if renewals.values().all(|count| *count >= RENEWALS) {
            break renewals;
        }
        assert!(started.elapsed() < Duration::from_secs(900), "{renewals:?}\n{}", mesh.logs.tails(10));
    };
    story.step("certificates valid for six seconds").await;
    story.note(format!("Renewals by the issuance log: {renewals:?}."));
    assert!(story.all_ours().await);
    story.end().await;
}
