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

mod books;
mod clients;
mod faults;
mod killed;
mod proc_status;
mod random;
mod storm;
