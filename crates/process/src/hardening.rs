//! What every process of ours gives up at its start, since it may hold keys or a PIN in memory; and the open files that
//! the daemon takes.

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

/// Switches core files off, and with them ptrace by the same user (PR_SET_DUMPABLE in prctl(2)).
///
/// # Errors
/// When the kernel refuses.
pub fn no_core_dumps() -> Result<(), HardeningError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|source| HardeningError { step: "setrlimit(RLIMIT_CORE)", source })?;
    prctl::set_dumpable(false).map_err(|source| HardeningError { step: "prctl(PR_SET_DUMPABLE)", source })
}

/// Raises the soft limit of open files to the hard one, and tells it: each connection is one, and the soft limit is 1,024
/// by habit, for the sake of programs that use select(2).
///
/// # Errors
/// When the kernel refuses.
pub fn raise_open_files() -> Result<u64, HardeningError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|source| HardeningError { step: "getrlimit(RLIMIT_NOFILE)", source })?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|source| HardeningError { step: "setrlimit(RLIMIT_NOFILE)", source })?;
    }
    Ok(hard)
}
