//! `bench`: measures how fast a token signs, and how fast a running daemon issues.
//!
//! Measures from outside: `token` logs in to the token like the token host, `endpoint` simulates many Istio agents.
//! Results go to standard output as text or JSON; the progress bar is shown on standard error, only on a terminal.

pub mod agent;
mod endpoint;
mod load;
mod process_usage;
mod queue;
mod report;
mod speed;
mod storm;
mod summary;
mod token_bench;

use std::{io::IsTerminal, process::ExitCode};

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

pub use endpoint::EndpointArguments;
pub use summary::SummaryArguments;
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
    /// Load a running daemon like many Istio agents
    Endpoint(Box<EndpointArguments>),
    /// Summarize the results that a script of benches/ has collected
    Summary(summary::SummaryArguments),
    /// Measure the signing speed of a token by number of sessions
    Token(Box<TokenArguments>),
}

/// Parses the command line, runs the measurement, prints the result, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match BenchArguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap's own text and exit status: 0 for help and version, 2 for usage errors.
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
/// If the token or the daemon cannot be reached, or nothing could be measured.
pub fn run(BenchArguments { output, what }: BenchArguments) -> anyhow::Result<()> {
    match what {
        What::Endpoint(arguments) => endpoint::run(&arguments, output),
        What::Summary(arguments) => summary::run(&arguments, output),
        What::Token(arguments) => token_bench::run(&arguments, output),
    }
}

/// A progress bar on standard error if it is a terminal.
fn progress_bar(steps: u64) -> anyhow::Result<ProgressBar> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("measuring {bar:40} {percent} %")?);
    Ok(bar)
}

/// A positive number within the range of a duration.
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
    fn only_positive_numbers_are_accepted() {
        for good in ["1", "0.5", "1e9"] {
            assert!(positive(good).is_ok(), "{good}");
        }
        for bad in ["0", "-1", "nan", "inf", "2e9", "x", ""] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
