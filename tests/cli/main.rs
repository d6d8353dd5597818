//! The commands as an operator drives them, also wrongly: the real binary, each test with a SoftHSM directory of its
//! own. Certificates and requests are judged by openssl.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod adopt;
mod check;
mod documentation;
mod generate;
mod harness;
mod import;
mod inspect;
mod install;
mod refused;
mod terminal;
