//! What people are told about inputs that are refused: each case with its message and remedy, as a table test. The page
//! docs/ERRORS.md is made of the same table, so that the message that somebody searches for is found there.
//!
//! `ERRORS_PAGE=write cargo test --test errors` writes the page. A further section is a module with a function that
//! returns a [`page::Section`], listed in [`page::sections`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod chains;
mod desk;
mod files;
mod keys;
mod page;
mod requests;
