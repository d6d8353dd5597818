//! Ends a supervised host on SIGTERM or SIGINT, its sessions closed.
//!
//! Without a handler the first process of a container ignores both, and would be killed when its time is over, its
//! sessions left behind at the token. Used by the supervised form alone; a child is ended by its daemon.

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

/// How long the sessions may take to close.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the host ends, and what has to be hung up for it.
#[derive(Debug)]
pub(super) struct Ending {
    begun: AtomicBool,
    listener: OwnedFd,
    connection: Mutex<Option<Arc<OwnedFd>>>,
}

impl Ending {
    /// Waits for the signals in a thread of its own. To be called before any other thread is started: each inherits
    /// that they are blocked.
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
        let told = Arc::clone(&ending);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if let Ok(signal) = signals.wait() {
                tracing::info!(%signal, "the token host stops on a signal");
                told.begin();
            }
            std::thread::sleep(GRACE);
            watchdog::end("it was told to end, and its sessions do not close");
        })?;
        Ok(ending)
    }

    /// Whether the host was told to end.
    pub(super) fn begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Notes the connection that is served from now on, or that none is.
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
        // It may be hung up already.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }
}
