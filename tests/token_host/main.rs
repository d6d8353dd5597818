//! The token host as a process, and the pool that keeps it alive: real processes, a real module, real kills.
//!
//! The hosts are the built program; each test has SoftHSM tokens of its own.
//! `suite` runs on other modules as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod faulty;
mod first_process;
mod forged;
mod harness;
mod killed;
mod pin;
mod several;
mod signing;
mod suite;
mod supervised;
