//! Isolation of the host's process, applied before it reads a secret.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
    },
    unistd,
};
use rustix::process::{getpriority_process, setpriority_process};

/// Prevents core dumps, debuggers, and access to `/proc/PID/mem` by other processes of the same user.
pub(super) fn harden() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}

/// Lowers the soft limit of open files, which the daemon raised for its connections, to the usual 1,024: vendors'
/// libraries expect it, and some use select(2) or close every possible descriptor.
pub(super) fn limit_open_files() -> io::Result<()> {
    const USUAL: u64 = 1024;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(USUAL), hard)?)
}

/// Closes all descriptors except the standard ones, and redirects standard output, to which a vendor's library may
/// write. Must be called before anything else is opened.
pub(super) fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        match unistd::close(fd) {
            // The descriptor of the directory being read is among them.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    unistd::dup2_stdout(io::stderr().as_fd())?;
    Ok(())
}

/// Takes the socket on standard input, and replaces it with /dev/null.
pub(super) fn take_stdin() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    unistd::dup2_stdin(null.as_fd())?;
    Ok(socket)
}

/// Raises this process's priority above the daemon's, if the system permits it (root, CAP_SYS_NICE, or RLIMIT_NICE): on
/// a shared core all requests wait for the token, and the daemon's work is then batched. Must be called before a thread
/// is started, since threads inherit the nice value.
pub(super) fn go_first() {
    const LOWER: i32 = 10;
    let lowered = getpriority_process(None).and_then(|nice| setpriority_process(None, nice - LOWER));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the token host has the daemon's priority");
    }
}

/// Ends this process when its parent ends, even while it is stopped; and blocks the signals that a terminal or a
/// supervisor sends to the whole group, so that only the daemon ends it.
pub(super) fn follow_parent() -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(())
}
