//! `bench`: what the token alone signs, and what a running daemon makes of it.
//!
//! Measures from outside, through the same doors as everybody: `token` logs in to the token as the host does, `endpoint`
//! is an Istio agent many times over. Figures are for people on standard output, or JSON for machines; the progress bar
//! goes to standard error, and only on a terminal.

pub mod agent;
mod endpoint;
mod load;
mod process_usage;
mod queue;
mod report;
mod speed;
mod storm;
mod token_bench;

use std::{io::IsTerminal, process::ExitCode};

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

pub use endpoint::EndpointArguments;
pub use token_bench::{TokenArguments, TokenChoice};

use process::output::Output;

/// Arguments of `istio-hsm-ca-bench`.
#[derive(Debug, Parser)]
#[command(name = "istio-hsm-ca-bench", version, about = "Measure a token, or a running daemon")]
pub struct BenchArguments {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
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

/// Parses the command line, runs the measurement, prints it, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match BenchArguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap's own text and status: 0 for help and version, 2 for wrong usage.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let output = arguments.output;
    let done = match process::hardening::no_core_dumps() {
        Ok(()) => run(arguments),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    }
}

/// Runs a measurement and prints it.
///
/// # Errors
/// When the token or the daemon cannot be reached, or nothing could be measured.
pub fn run(BenchArguments { output, what }: BenchArguments) -> anyhow::Result<()> {
    match what {
        What::Endpoint(arguments) => endpoint::run(&arguments, output),
        What::Token(arguments) => token_bench::run(&arguments, output),
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
