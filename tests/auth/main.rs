//! Authentication: all reasons for rejection, and the methods that succeed.

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
