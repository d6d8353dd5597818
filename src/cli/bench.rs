//! `bench`: what the token alone signs, and what a running daemon makes of it.
//!
//! Measures from outside, through the same doors as everybody: `token` logs in to the token as the host does, `endpoint`
//! is an Istio agent many times over. Figures are for people on standard output, or JSON for machines; the progress bar
//! goes to standard error, and only on a terminal.

mod endpoint;
mod load;
mod process;
mod report;

use clap::{Args, Subcommand, ValueEnum};

pub use endpoint::EndpointArguments;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// JSON, one object.
    Json,
    /// Text for people.
    #[default]
    Text,
}

/// Arguments of `istio-hsm-ca bench`.
#[derive(Args, Debug)]
pub struct BenchArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Drive a running daemon as many Istio agents would
    Endpoint(Box<EndpointArguments>),
}

/// Runs a measurement and prints it.
///
/// # Errors
/// When token or daemon cannot be reached, or nothing could be measured.
pub fn run(arguments: BenchArguments) -> anyhow::Result<()> {
    match arguments.what {
        What::Endpoint(arguments) => endpoint::run(&arguments),
    }
}
