//! Hardening of all processes at start, since they may hold keys or a PIN in memory; and the daemon's limit of open
//! files.

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

/// The process could not be hardened.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed; see what limits or filters the process is started with")]
pub struct HardeningError {
    step: &'static str,
    #[source]
    source: nix::Error,
}

/// Disables core files, and thereby ptrace by the same user (PR_SET_DUMPABLE in prctl(2)).
///
/// # Errors
/// If the system call fails.
pub fn no_core_dumps() -> Result<(), HardeningError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|source| HardeningError { step: "setrlimit(RLIMIT_CORE)", source })?;
    prctl::set_dumpable(false).map_err(|source| HardeningError { step: "prctl(PR_SET_DUMPABLE)", source })
}

/// Raises the soft limit of open files to the hard limit and returns it. Each connection is an open file; the usual
/// soft limit of 1,024 exists only for programs that use select(2).
///
/// # Errors
/// If the system call fails.
pub fn raise_open_files() -> Result<u64, HardeningError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|source| HardeningError { step: "getrlimit(RLIMIT_NOFILE)", source })?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|source| HardeningError { step: "setrlimit(RLIMIT_NOFILE)", source })?;
    }
    Ok(hard)
}
