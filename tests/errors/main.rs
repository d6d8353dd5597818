//! Messages and remedies for refused input, as a table test. docs/ERRORS.md is generated from the same table, so that a
//! search for a message finds it there.
//!
//! `ERRORS_PAGE=write cargo test --test errors` writes the page. A further section is a module with a function that
//! returns a [`page::Section`], listed in [`page::sections`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod authentication;
mod chains;
mod commands;
mod configuration;
mod desk;
mod files;
#[path = "../auth/keys.rs"]
#[expect(dead_code, reason = "a part of the helpers of another target")]
mod jwts;
mod keys;
mod page;
mod requests;
