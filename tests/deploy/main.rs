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

mod chart;
mod dry_run;
mod guide;
mod image;
mod import;
mod manifests;
mod rendered;
mod systemd;
mod tools;
