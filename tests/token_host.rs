//! The token host as a process, and the pool that keeps it alive: real processes, a real module, real kills.
//!
//! The hosts are the built program; each test has SoftHSM tokens of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "token_host/faulty.rs"]
mod faulty;
#[path = "token_host/first_process.rs"]
mod first_process;
#[path = "token_host/forged.rs"]
mod forged;
#[path = "token_host/harness.rs"]
mod harness;
#[path = "token_host/killed.rs"]
mod killed;
#[path = "token_host/pin.rs"]
mod pin;
#[path = "token_host/several.rs"]
mod several;
#[path = "token_host/signing.rs"]
mod signing;
#[path = "token_host/supervised.rs"]
mod supervised;
