//! deploy/: the chart and what is rendered from it, the units, the images.
//!
//! Tests that need no more than Rust and SoftHSM run in `make test`; what needs Helm, an API server, systemd or an
//! image is ignored there and runs in `make test-deploy`.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends at the first thing that fails"
)]

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/dry_run.rs"]
mod dry_run;
#[path = "deploy/guide.rs"]
mod guide;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/rendered.rs"]
mod rendered;
#[path = "kube/servers.rs"]
#[allow(dead_code, reason = "the Kubernetes tests use the rest")]
mod servers;
#[path = "deploy/systemd.rs"]
mod systemd;
#[path = "deploy/tools.rs"]
mod tools;
