//! `bench`: what the token alone signs, and what a running daemon makes of it.
//!
//! Measures from outside, through the same doors as everybody: `token` logs in to the token as the host does, `endpoint`
//! is an Istio agent many times over. Figures are for people on standard output, or JSON for machines; the progress bar
//! goes to standard error, and only on a terminal.

mod endpoint;
mod load;
mod process;
mod queue;
mod report;
mod token;

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

pub use endpoint::EndpointArguments;
pub use token::{TokenArguments, TokenChoice};

use super::output::Output;

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
    /// Measure what the token signs alone, by number of sessions
    Token(Box<TokenArguments>),
}

/// Runs a measurement and prints it.
///
/// # Errors
/// When token or daemon cannot be reached, or nothing could be measured.
pub fn run(arguments: BenchArguments, output: Output) -> anyhow::Result<()> {
    match arguments.what {
        What::Endpoint(arguments) => endpoint::run(&arguments, output),
        What::Token(arguments) => token::run(&arguments, output),
    }
}

/// A bar on a terminal's standard error, nothing elsewhere.
fn progress_bar(steps: u64) -> anyhow::Result<ProgressBar> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("measuring {bar:40} {percent} %")?);
    Ok(bar)
}

/// A positive number of a size that a clock can hold.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("a number above 0 and at most 1e9 is expected".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positive_numbers_are_taken() {
        for good in ["1", "0.5", "1e9"] {
            assert!(positive(good).is_ok(), "{good}");
        }
        for bad in ["0", "-1", "nan", "inf", "2e9", "x", ""] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
