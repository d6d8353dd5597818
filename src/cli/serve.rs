//! `serve`: the daemon.

use super::configured::ConfigArgs;
use crate::daemon;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// If the configuration is invalid, or the daemon cannot start.
pub fn run(args: Args) -> anyhow::Result<()> {
    daemon::start_random();
    let config = args.config.read()?;
    let _lines = process::logging::init_in_background(&config.logging)?;
    let runtime = daemon::runtime::start(config.listen.threads)?;
    Ok(runtime.block_on(daemon::run(config))?)
}
