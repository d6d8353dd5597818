//! The daemon over a longer time, under load of real clients: killed repeatedly, with a token that fails at random, and
//! when all agents of a mesh start at once.
//!
//! Each test has its own token, log and daemon. `SOAK_SECONDS` makes them longer, `SOAK_SEED` repeats a run, and
//! `STORM_AGENTS` sets the number of agents; `make test-long` uses larger values.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod books;
mod clients;
mod faults;
mod killed;
mod proc_status;
mod random;
mod storm;
