//! Kubernetes, by a real API server: etcd and kube-apiserver as built by tests/kube/api-server.sh.
//!
//! Every test is ignored, so that `make test` needs no Go; `make test-kube` builds what they need and runs them. `istio` needs
//! Istio's code besides: `make test-istio`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "kube/harness.rs"]
mod harness;
#[path = "kube/servers.rs"]
mod servers;

#[path = "kube/rig.rs"]
mod rig;

#[path = "kube/controllers.rs"]
mod controllers;
#[path = "kube/csrs.rs"]
mod csrs;
#[path = "kube/cuts.rs"]
mod cuts;
#[path = "kube/imports.rs"]
mod imports;
#[path = "kube/istio.rs"]
mod istio;
#[path = "kube/kinds.rs"]
mod kinds;
#[path = "kube/leader.rs"]
mod leader;
#[path = "kube/nodes.rs"]
mod nodes;
#[path = "kube/outage.rs"]
mod outage;
#[path = "kube/proxy.rs"]
mod proxy;
#[path = "kube/replicas.rs"]
mod replicas;
#[path = "kube/rights.rs"]
mod rights;
#[path = "kube/roots.rs"]
mod roots;
#[path = "kube/scale.rs"]
mod scale;
#[path = "kube/secrets.rs"]
mod secrets;
#[path = "kube/tokens.rs"]
mod tokens;
#[path = "kube/workloads.rs"]
mod workloads;
