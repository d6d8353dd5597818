//! Checks of the repository's own files: module boundaries, dashboard and alerts, sample configurations, inputs of the
//! fuzzers.

#![allow(
    clippy::expect_used,
    clippy::never_loop,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, at the first finding"
)]

mod architecture;
mod corpus;
mod dashboard;
mod hsm_config;
