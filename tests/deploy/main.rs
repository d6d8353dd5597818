//! deploy/: the chart and the manifests, the systemd units, the images.
//!
//! Tests that need only Rust and SoftHSM run in `make test`; those that need Helm, an API server, systemd or an image
//! are ignored there and run in `make test-deploy`.
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
mod package;
mod rendered;
mod systemd;
mod tools;
