//! Kubernetes, by a real API server: etcd and kube-apiserver as built by tests/kube/api-server.sh.
//!
//! Every test is ignored, so that `make test` needs no Go; `make test-kube` builds what they need and runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "kube/harness.rs"]
mod harness;
#[path = "kube/servers.rs"]
mod servers;

#[path = "kube/leader.rs"]
mod leader;
#[path = "kube/nodes.rs"]
mod nodes;
#[path = "kube/outage.rs"]
mod outage;
#[path = "kube/tokens.rs"]
mod tokens;
