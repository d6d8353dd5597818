//! Ends the process if a PKCS#11 call exceeds its timeout, or if the daemon has disconnected and a signing thread
//! hangs.
//!
//! A thread that hangs in a vendor's library cannot be ended individually, but its process can. This thread calls no
//! vendor code and takes no lock of a signing thread, so it cannot hang with them.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Interval of checking the calls.
const TICK: Duration = Duration::from_millis(50);

/// Time for signing threads to end after the daemon has disconnected.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);

/// Start times of all threads' calls, and the socket being watched.
#[derive(Debug)]
pub(super) struct Watchdog {
    start: Instant,
    limit: Duration,
    /// Start in milliseconds from `start`, plus one; 0 if no call is in progress.
    calls: Vec<AtomicU64>,
    socket: Mutex<Option<Arc<OwnedFd>>>,
}

/// A call in progress; it ends when this value is dropped.
#[derive(Debug)]
pub(super) struct Call<'a>(&'a AtomicU64);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl Watchdog {
    /// Starts the thread, for calls of this number of threads.
    pub(super) fn start(threads: usize, limit: Duration) -> io::Result<Arc<Self>> {
        let watchdog = Arc::new(Self {
            start: Instant::now(),
            limit,
            calls: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            socket: Mutex::new(None),
        });
        let watching = Arc::clone(&watchdog);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watching.watch())?;
        Ok(watchdog)
    }

    /// Watches a connection from now on: after a disconnect, the process must end soon.
    pub(super) fn watch_socket(&self, socket: Option<Arc<OwnedFd>>) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Records that a thread begins a call. `None` for a thread that was not counted at the start.
    pub(super) fn call(&self, thread: usize) -> Option<Call<'_>> {
        let call = self.calls.get(thread)?;
        call.store(self.now() + 1, Ordering::Release);
        Some(Call(call))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn watch(&self) {
        let limit = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        // The watched connection, and since when it is disconnected.
        let mut watched: Option<(Arc<OwnedFd>, Option<Instant>)> = None;
        loop {
            let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone();
            watched = match (socket, watched.take()) {
                (Some(socket), Some((same, hung_up))) if Arc::ptr_eq(&socket, &same) => Some((same, hung_up)),
                // Another connection starts a new period, however soon it follows.
                (Some(socket), _) => Some((socket, None)),
                (None, _) => None,
            };
            match &mut watched {
                Some((socket, hung_up @ None)) => *hung_up = is_hung_up(socket).then(Instant::now),
                Some(_) | None => std::thread::sleep(TICK),
            }
            let hung_up = watched.as_ref().and_then(|(_, hung_up)| *hung_up);
            if hung_up.is_some_and(|since| since.elapsed() > HANG_UP_GRACE) {
                end("the daemon is gone and a thread does not end");
            }
            let now = self.now();
            for call in &self.calls {
                let began = call.load(Ordering::Acquire);
                if began != 0 && now.saturating_sub(began - 1) > limit {
                    end("a call of the PKCS#11 module has outlived its limit");
                }
            }
        }
    }
}

fn is_hung_up(socket: &OwnedFd) -> bool {
    // POLLHUP and POLLERR are reported without being requested.
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
    match poll(&mut polled, timeout) {
        Ok(0) => false,
        Ok(_) => polled
            .iter()
            .any(|fd| fd.revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))),
        Err(_) => {
            std::thread::sleep(TICK);
            false
        }
    }
}

/// Ends the process at once with SIGKILL, which no signal handler or exit hook of the vendor can delay.
pub(super) fn end(reason: &str) -> ! {
    tracing::error!(reason, "the token host ends itself");
    let _ = kill(Pid::this(), Signal::SIGKILL);
    // The first process of a container gets no SIGKILL from within the container, but abort works.
    std::process::abort()
}
