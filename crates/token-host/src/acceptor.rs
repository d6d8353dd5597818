//! Accepts connections for a supervised host: checks the peer, serves one daemon at a time and rejects others with a reason.
//!
//! Runs on a separate thread, so that a second daemon gets its answer at once instead of waiting for the first one to
//! disconnect. It never uses the token.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::serve::Connection;
use crate::protocol::{Fault, Recovery};

/// Timeout for the hello of a daemon that is to be rejected.
const HELLO: Duration = Duration::from_millis(500);

/// The answer to a second daemon.
const TAKEN: &str = "the token host serves another daemon; start a token host of its own for each daemon";

#[derive(Debug)]
pub(super) struct Acceptor {
    taken: Arc<AtomicBool>,
    admitted: mpsc::Receiver<io::Result<UnixStream>>,
}

impl Acceptor {
    /// Accepts daemons of this process's user and of the listed users.
    pub(super) fn open(listener: UnixListener, uids: Vec<u32>) -> io::Result<Self> {
        let (admit, admitted) = mpsc::channel();
        let taken = Arc::new(AtomicBool::new(false));
        let occupied = Arc::clone(&taken);
        std::thread::Builder::new().name("acceptor".to_owned()).spawn(move || {
            loop {
                let connection =
                    listener.accept().and_then(|(socket, _)| known(&socket, &uids).map(|known| (socket, known)));
                let sent = match connection {
                    Ok((_, false)) => continue,
                    Ok((socket, true)) if occupied.swap(true, Ordering::AcqRel) => {
                        turn_away(socket);
                        continue;
                    }
                    Ok((socket, true)) => admit.send(Ok(socket)),
                    // The host ends then, also after it shut down the socket itself.
                    Err(error) => {
                        let _ = admit.send(Err(error));
                        return;
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { taken, admitted })
    }

    /// Waits for the next daemon; the previous one has disconnected.
    pub(super) fn next(&self) -> io::Result<UnixStream> {
        self.taken.store(false, Ordering::Release);
        self.admitted.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that accepts connections is gone")))
    }
}

fn known(socket: &UnixStream, uids: &[u32]) -> io::Result<bool> {
    let peer = getsockopt(socket, PeerCredentials)?.uid();
    let known = peer == nix::unistd::geteuid().as_raw() || uids.contains(&peer);
    if !known {
        tracing::warn!(uid = peer, kind = "foreign_user", "a user who may not use the token host connected");
    }
    Ok(known)
}

fn turn_away(socket: UnixStream) {
    tracing::warn!(kind = "second_daemon", "{TAKEN}");
    let Ok(mut connection) = Connection::new(socket) else { return };
    if let Ok(Some(hello)) = connection.hello(HELLO) {
        let fault = Fault { recovery: Recovery::Retry, code: 0, function: String::new(), text: TAKEN.to_owned() };
        connection.refuse(hello.correlation, fault);
    }
}
