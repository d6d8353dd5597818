//! A whole mesh on one machine: an API server and its controllers, istiod, and pods with pilot-agent and Envoy, injected
//! by istiod and run in network namespaces, whose workloads send each other requests all the time.
//!
//! Each scenario is a test that can be run alone; all need root and programs that `make test-mesh` builds once.

mod agents;
mod container;
mod controllers;
mod faults;
mod image;
mod kubelet;
mod mesh;
mod migration;
mod modes;
mod node;
mod page;
mod renewal;
mod revocation;
mod rotation;
mod short;
mod story;
mod traffic;
mod volumes;

use std::time::Duration;

use mesh::Mesh;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Istio and Envoy: make test-mesh"]
async fn workloads_reach_each_other() {
    if !node::inside("workloads_reach_each_other") {
        return;
    }
    let mesh = Mesh::after_the_guide("start", &[]).await;
    let before = mesh.counts();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let since = mesh.counts().since(&before);
    assert!(since.ok > 60 && since.failed == 0 && since.failed_handshakes() == 0, "{since:#?}");
    assert!(since.handshakes > 60 && since.resumed == 0, "each request has a full handshake: {since:#?}");
    assert!(mesh.sampler.certificates().await.len() >= 3);
}

/// `make mesh`: a mesh to look at.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs until it is interrupted: make mesh"]
#[allow(clippy::disallowed_methods, reason = "the environment of a test")]
async fn stays_until_interrupted() {
    if std::env::var_os("MESH_STAY").is_none() || !node::inside("stays_until_interrupted") {
        return;
    }
    let mesh = Mesh::after_the_guide("stay", &[]).await;
    println!("{}", mesh.where_to_look());
    tokio::signal::ctrl_c().await.unwrap();
}
