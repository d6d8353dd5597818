//! Kubernetes with a real API server: etcd and kube-apiserver as built by tests/kube/api-server.sh.
//!
//! Every test is ignored, so that `make test` needs no Go; `make test-kube` builds what they need and runs them.
//! `istio` also needs Istio's code: `make test-istio`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cert_manager;
mod cert_manager_itself;
mod controllers;
mod crls;
mod csrs;
mod cuts;
mod harness;
mod imports;
mod istio;
mod kinds;
mod kubelet;
mod leader;
mod nodes;
mod outage;
mod pod_certificates;
mod proxy;
mod replicas;
mod revocations;
mod rig;
mod rights;
mod roots;
mod scale;
mod secrets;
mod sidecar;
mod tokens;
mod trust_bundles;
mod workloads;
