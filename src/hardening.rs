//! What every process of ours gives up at its start, since it may hold keys or a PIN in memory.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// The process could not be hardened.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed; without it a crash could write keys to a core file")]
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
