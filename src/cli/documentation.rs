//! `completions` and `man`: shell completions and man pages, generated from the definition of the command line.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::CommandFactory;

use super::Cli;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory for the pages, one per command. Existing pages are replaced.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the completions of a shell.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "istio-hsm-ca", &mut script);
    io::stdout().write_all(&script).context("cannot write the completions")
}

/// Writes the man pages.
///
/// # Errors
/// If the directory is missing or cannot be written.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let directory = args.directory.display();
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .with_context(|| format!("cannot write man pages to {directory}; it must be an existing directory"))
}
