//! `token-host`: replaces this process with istio-hsm-ca-token-host, optionally with limits derived from the daemon's
//! configuration.

use std::{ffi::OsString, fs::File, io::Write, os::fd::AsRawFd, path::PathBuf};

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{config::Config, token_pool};
use process::files::open_input;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Derive what --config leaves out (bundle, lifetime, names) from this configuration of the daemon
    #[arg(long, value_name = "FILE", requires = "config")]
    derive_from: Option<PathBuf>,
    /// The token host's configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The token host's other arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Returns only if the token host cannot be started.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { derive_from, config, mut arguments } = args;
    let mut derived = None;
    match (derive_from, config) {
        (Some(daemon), Some(host)) => {
            let unreadable = || format!("cannot read {}", host.display());
            let own = std::io::read_to_string(open_input(&host).with_context(unreadable)?).with_context(unreadable)?;
            let settings = Config::read(&daemon, "")?.supervised_host(&own);
            let settings = settings.with_context(|| format!("the token host's configuration {}", host.display()))?;
            // The token host reads a file; this one is in memory, since the file system may be read-only.
            let mut file = File::from(memfd_create("token-host.toml", MFdFlags::empty())?);
            file.write_all(toml::to_string(&settings)?.as_bytes())?;
            arguments.push(format!("--config=/proc/self/fd/{}", file.as_raw_fd()).into());
            derived = Some(file);
        }
        (None, Some(host)) => arguments.extend(["--config".into(), host.into()]),
        (_, None) => {}
    }
    let error = token_pool::exec_host(&arguments);
    drop(derived);
    Err(error.into())
}
