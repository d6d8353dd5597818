//! The fault matrix: each PKCS#11 function that a token host calls, with each class of return code, once, for three
//! seconds and permanently; each cell under the load of real clients of a real daemon with its own token.
//!
//! `cell` describes what each cell verifies, `books` what the daemon's records must show afterwards. CI runs a sample
//! with one code per class, selected by a seed that is printed (`FAULT_SEED=N` repeats it); `make faults` and `make
//! test-long` run all codes of the standard, and `make faults` writes docs/FAULTS.md.

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
