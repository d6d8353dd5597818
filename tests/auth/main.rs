//! Who calls: every way to be refused, and the ways to be known.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test relies on may fail it"
)]

mod certificates;
mod composed;
mod fetching;
mod handshake;
mod keys;
mod tokens;
