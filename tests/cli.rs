//! The commands as an operator drives them, also wrongly: the real binary, each test with a SoftHSM directory of its
//! own. Certificates and requests are judged by openssl.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests: a failure here is a failed test"
)]

#[path = "cli/check.rs"]
mod check;
mod common;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/import.rs"]
mod import;
#[path = "cli/inspect.rs"]
mod inspect;
#[path = "cli/install.rs"]
mod install;
#[path = "cli/refused.rs"]
mod refused;
#[path = "cli/terminal.rs"]
mod terminal;
