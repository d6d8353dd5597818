//! Hostile clients against the program as it is run, next to agents that must be served all the same.
//!
//! Attackers and agents come from the loopback addresses that a test gives them. Each attack lasts seconds by default;
//! `HOSTILE_SECONDS` makes it longer. What a test prints are the figures of SECURITY.md.
#![allow(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends at the first thing that fails"
)]

mod admin;
mod agents;
mod attacker;
mod floods;
mod handshakes;
mod load;
mod requests;
