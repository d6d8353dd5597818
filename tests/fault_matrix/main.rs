//! The fault matrix: each PKCS#11 function that a token host calls, times each class of return code, times once, three
//! seconds and for good; each cell under the load of real clients of a real daemon, with a token of its own.
//!
//! What each cell proves is in `cell`; what a daemon's books must say after its cells, in `books`. CI runs a sample of
//! one code a class, drawn by a seed that is printed (`FAULT_SEED=N` repeats it); `make faults` and `make test-long`
//! run every code of the standard, and `make faults` writes docs/FAULTS.md.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod books;
mod cell;
mod clients;
mod crowd;
mod lane;
mod others;
mod page;
mod plan;
mod run;
