//! The command line: clap types and dispatch; one file per command.

pub mod activate;
pub mod bundle_dir;
pub mod ceremony;
pub mod check;
pub mod configured;
pub mod documentation;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod install;
pub mod issue;
pub mod log;
pub mod revoke;
pub mod serve;
pub mod token;
mod token_host;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use process::output::Output;

/// A certificate authority for Istio whose signing key lives in a PKCS#11 token.
#[derive(Debug, Parser)]
#[command(name = "istio-hsm-ca", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hand the PIN to a running token host that waits for its operators.
    Activate(activate::Args),
    /// Take a key into service that other tools have made in, or imported into, the token.
    Adopt(install::AdoptArgs),
    /// Perform a reviewed act with an offline CA's key, and split PINs.
    #[command(subcommand)]
    Ceremony(ceremony::CeremonyCommand),
    /// Report everything that would stop `serve`, with remedies.
    Check(check::Args),
    /// Print completions for a shell.
    Completions(documentation::CompletionsArgs),
    /// Generate a CA key in the token, with a self-signed root or a certificate request.
    Generate(generate::Args),
    /// Import a plug-in CA (ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem) into a token.
    Import(import::Args),
    /// List the keys and certificates in a token.
    Inspect(inspect::Args),
    /// Install the signed certificate of a generated key.
    Install(install::Args),
    /// Issue one certificate for a request file, as the operator.
    Issue(issue::Args),
    /// Verify and show the issuance log, and prove inclusion and consistency.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Write the man pages of all commands.
    Man(documentation::ManArgs),
    /// Revoke certificates, and deny further ones to those who obtained them.
    Revoke(Box<revoke::Args>),
    /// Run the daemon.
    Serve(serve::Args),
    /// Run the token host: the program istio-hsm-ca-token-host, with these arguments.
    #[command(disable_help_flag = true)]
    TokenHost(token_host::Args),
}

/// Parses the command line, runs the command, and returns the exit status: 0 success, 1 refused or failed, 2 usage
/// error.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, output } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own text and exit status: 0 for help and version, 2 for usage errors.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    // The token host hardens itself after it has taken its socket.
    let command = match command {
        Command::TokenHost(args) => {
            return token_host::run(args).map_or_else(|error| output.fail(&error), |()| ExitCode::SUCCESS);
        }
        command => command,
    };
    if let Err(error) = process::hardening::no_core_dumps() {
        return output.fail(&error.into());
    }
    let done = match command {
        Command::Activate(args) => activate::run(args, output),
        Command::Adopt(args) => install::adopt(args, output),
        Command::Ceremony(command) => ceremony::run(command, output),
        Command::Check(args) => check::run(args, output),
        Command::Completions(args) => documentation::completions(&args),
        Command::Generate(args) => generate::run(args, output),
        Command::Import(args) => import::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::Install(args) => install::run(args, output),
        Command::Issue(args) => issue::run(args, output),
        Command::Log(args) => log::run(args, output),
        Command::Man(args) => documentation::man(&args),
        Command::Revoke(args) => revoke::run(*args, output),
        Command::Serve(args) => serve::run(args),
        Command::TokenHost(_) => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ceremony::AlreadyReported>() => ExitCode::FAILURE,
        Err(error) => output.fail_with(&error, ::token::advice(error.as_ref())),
    }
}

/// An error with its causes, and what to do about the PKCS#11 call that it comes from.
fn with_advice(error: &(dyn std::error::Error + 'static)) -> String {
    let text = process::error::chain(error);
    match ::token::advice(error) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}
