//! The daemon over time, under load of real clients: killed again and again, with a token that fails at random, and
//! when all agents of a mesh come at once.
//!
//! Each test has a token, a log and a daemon of its own. `SOAK_SECONDS`, `SOAK_SEED` and `STORM_AGENTS` make them
//! longer, repeat one, or larger: `make test-long` does.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "soak/books.rs"]
mod books;
#[path = "soak/clients.rs"]
mod clients;
#[path = "soak/faults.rs"]
mod faults;
#[path = "soak/killed.rs"]
mod killed;
#[path = "soak/proc_status.rs"]
mod proc_status;
#[path = "soak/random.rs"]
mod random;
#[path = "soak/storm.rs"]
mod storm;
