//! Who calls: every way to be refused, and the ways to be known.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test relies on may fail it"
)]

#[path = "auth/certificates.rs"]
mod certificates;
#[path = "auth/composed.rs"]
mod composed;
#[path = "auth/fetching.rs"]
mod fetching;
#[path = "auth/handshake.rs"]
mod handshake;
#[path = "auth/keys.rs"]
mod keys;
#[path = "auth/tokens.rs"]
mod tokens;
