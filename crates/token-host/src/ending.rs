//! Ends a supervised host on SIGTERM or SIGINT after closing its sessions.
//!
//! Without a handler, the first process of a container ignores both signals and would be killed after a timeout,
//! leaving its sessions open on the token. Only for supervised hosts; a child is ended by its daemon.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    socket::{Shutdown, shutdown},
};

use super::watchdog;

/// Maximum time for closing the sessions.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the host is ending, and the sockets to be shut down for that.
#[derive(Debug)]
pub(super) struct Ending {
    begun: AtomicBool,
    listener: OwnedFd,
    connection: Mutex<Option<Arc<OwnedFd>>>,
}

impl Ending {
    /// Waits for the signals on a separate thread. Must be called before any other thread is started, since threads
    /// inherit the blocked signals.
    pub(super) fn on_signals(listener: &UnixListener) -> io::Result<Arc<Self>> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let ending = Arc::new(Self {
            begun: AtomicBool::new(false),
            listener: listener.as_fd().try_clone_to_owned()?,
            connection: Mutex::new(None),
        });
        let signalled = Arc::clone(&ending);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if let Ok(signal) = signals.wait() {
                tracing::info!(%signal, "the token host stops on a signal");
                signalled.begin();
            }
            std::thread::sleep(GRACE);
            watchdog::end("it was asked to end, but its sessions do not close");
        })?;
        Ok(ending)
    }

    /// Whether the host has been asked to end.
    pub(super) fn begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Sets the connection being served, if any.
    pub(super) fn serving(&self, connection: Option<Arc<OwnedFd>>) {
        let mut serving = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        *serving = connection;
        if self.begun() {
            hang_up(serving.as_deref());
        }
    }

    /// Wakes the thread that waits for a connection or a request.
    fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
        hang_up(Some(&self.listener));
        hang_up(self.connection.lock().unwrap_or_else(PoisonError::into_inner).as_deref());
    }
}

fn hang_up(socket: Option<&OwnedFd>) {
    if let Some(socket) = socket {
        // It may be shut down already.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }
}
