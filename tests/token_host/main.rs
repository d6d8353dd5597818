//! The token host as a process, and the pool that supervises it: real processes, a real module, real kills.
//!
//! The hosts run the built program; each test has its own SoftHSM tokens. `suite` runs with other modules as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod crls;
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
