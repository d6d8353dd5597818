//! `ceremony`: acts with the key of an offline CA, one reviewed file each, and the splitting of PINs (docs/CEREMONIES.md).

pub(super) mod books;
mod document;
mod inputs;
mod perform;
mod plan;
mod rehearsal;
mod run;
pub(super) mod shares;
pub(super) mod signing;
mod software_key;
mod split_pin;
mod ssh;
mod stage;
mod transcript;

use clap::Subcommand;

use process::output::Output;

/// A rehearsal has failed; its own process has reported why.
#[derive(Debug, thiserror::Error)]
#[error("the rehearsal has failed")]
pub(super) struct AlreadyReported;

/// Subcommands of `ceremony`.
#[derive(Debug, Subcommand)]
pub enum CeremonyCommand {
    /// Perform the act of a ceremony file, or rehearse it.
    Run(run::Args),
    /// Split a token's PIN into shares, of which several are needed to restore it.
    SplitPin(split_pin::Args),
}

/// Runs a subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(command: CeremonyCommand, output: Output) -> anyhow::Result<()> {
    match command {
        CeremonyCommand::Run(args) => run::run(&args, output),
        CeremonyCommand::SplitPin(args) => split_pin::run(&args, output),
    }
}
