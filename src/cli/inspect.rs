//! stub
/// x
#[derive(Debug, clap::Args)]
pub struct Args {}
/// x
/// # Errors
/// x
pub fn run(_args: Args, _output: super::output::Output) -> anyhow::Result<()> {
    Ok(())
}
