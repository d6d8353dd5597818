//! What the host's process does to itself before it reads a secret.

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

/// No core dump, no debugger, no `/proc/PID/mem` for others of the same user.
pub(super) fn harden() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}

/// Lowers the soft limit of open files, which the daemon raised for its connections, to the usual 1,024: vendors'
/// libraries are written for it, and some use select(2) or close every possible descriptor.
pub(super) fn limit_open_files() -> io::Result<()> {
    const USUAL: u64 = 1024;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(USUAL), hard)?)
}

/// Closes every descriptor but the standard ones, and puts standard output where a vendor's library may write what it
/// likes. To be called before anything else is opened.
pub(super) fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        match unistd::close(fd) {
            // The directory that was just read is among them.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    unistd::dup2_stdout(io::stderr().as_fd())?;
    Ok(())
}

/// Takes the socket that stands in the place of standard input, and puts nothing in its place.
pub(super) fn take_stdin() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    unistd::dup2_stdin(null.as_fd())?;
    Ok(socket)
}

/// Lets this process go before the daemon where they share a core, if the system allows it (root, CAP_SYS_NICE, or a limit
/// RLIMIT_NICE): everybody waits for the token, and work that is done in its breaks comes in larger groups. To be called
/// before a thread is started, which takes over the nice value of the one that starts it.
pub(super) fn go_first() {
    const LOWER: i32 = 10;
    let lowered = getpriority_process(None).and_then(|nice| setpriority_process(None, nice - LOWER));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the token host has the daemon's priority");
    }
}

/// Ends this process when its parent does, even when it is stopped; and leaves it to the daemon to end it, when
/// somebody signals the whole group.
pub(super) fn follow_parent() -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(())
}
