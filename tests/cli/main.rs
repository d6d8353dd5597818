//! The commands as operators run them, including mistakes: the real binary, each test with its own SoftHSM directory.
//! Certificates and CSRs are verified with openssl.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod adopt;
mod ceremony;
mod check;
mod documentation;
mod generate;
mod harness;
mod import;
mod inspect;
mod install;
mod refused;
mod revoke;
mod split_pin;
mod terminal;
