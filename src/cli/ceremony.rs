//! `ceremony`: the splitting of PINs.

pub(super) mod shares;
mod split_pin;

use clap::Subcommand;

use process::output::Output;

/// Subcommands of `ceremony`.
#[derive(Debug, Subcommand)]
pub enum CeremonyCommand {
    /// Split a token's PIN into shares, of which several are needed to restore it.
    SplitPin(split_pin::Args),
}

/// Runs a subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(command: CeremonyCommand, output: Output) -> anyhow::Result<()> {
    match command {
        CeremonyCommand::SplitPin(args) => split_pin::run(&args, output),
    }
}
