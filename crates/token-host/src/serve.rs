//! One connection to a daemon: a reader, a thread for each session, and a bounded queue between them.
//!
//! A session thread takes a frame, checks it, signs and answers. It holds answers back only while more frames wait.

mod answers;
mod inbox;
mod outbox;
mod queue;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use inbox::Inbox;
use outbox::Outbox;
use queue::{Queue, Queued};

use super::{
    HostError,
    login::{LoginContext, Worker, last_word},
    share,
};
use crate::protocol::{Fault, ProtocolError, Recovery, Reply, Request};

/// Queue length per session: twice the number of requests that a daemon sends in advance.
const QUEUE_PER_SESSION: usize = 64;

/// Interval at which a thread without a session tries to open one; meanwhile it leaves the requests to the others.
const NO_SESSION_INTERVAL: Duration = Duration::from_millis(200);

/// A connection to a daemon.
#[derive(Debug)]
pub(super) struct Connection {
    inbox: Inbox,
    socket: UnixStream,
}

/// The daemon's first frame.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) correlation: u64,
    pub(super) settings: Vec<u8>,
}

/// Result of a connection.
#[derive(Debug)]
pub(super) enum Served {
    /// The token or its module is broken.
    Broken(String),
    /// The daemon closed the connection.
    HungUp,
}

impl Connection {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self { inbox: Inbox::new(socket.try_clone()?), socket })
    }

    /// The socket for the watchdog.
    pub(super) fn socket(&self) -> io::Result<Arc<OwnedFd>> {
        share(&self.socket)
    }

    /// Waits for the first frame. `None` if it does not arrive in time.
    pub(super) fn hello(&mut self, timeout: Duration) -> Result<Option<Hello>, HostError> {
        let frame = match self.inbox.next(Some(timeout)) {
            Ok(Some((frame, _))) => frame,
            Ok(None) => return Ok(None),
            Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
            Err(ConnectionError::Io(source)) => return Err(HostError::System { what: "read from its socket", source }),
            Err(ConnectionError::Protocol(error)) => return Err(error.into()),
        };
        match Request::decode(&frame)? {
            // A daemon of another version learns this host's version from the reply, and decides.
            Request::Hello { settings, .. } => {
                Ok(Some(Hello { correlation: frame.correlation, settings: settings.to_vec() }))
            }
            Request::Cancel { .. }
            | Request::Discard { .. }
            | Request::Open { .. }
            | Request::Ping
            | Request::Sign(_) => Err(ProtocolError::Malformed("first frame").into()),
        }
    }

    /// Reports to the daemon why the host cannot serve, with its call statistics.
    pub(super) fn give_up(&mut self, correlation: u64, fault: Fault) {
        self.send(&[(0, Reply::Status(Box::new(last_word()))), (correlation, Reply::Fault(fault))]);
    }

    /// Reports to the daemon why the host does not serve it.
    pub(super) fn refuse(&mut self, correlation: u64, fault: Fault) {
        self.send(&[(correlation, Reply::Fault(fault))]);
    }

    fn send(&mut self, replies: &[(u64, Reply)]) {
        let Ok(socket) = self.socket.try_clone() else { return };
        let writer = Mutex::new(socket);
        let mut outbox = Outbox::new(&writer);
        // An error means that the daemon has disconnected.
        let pushed = replies.iter().try_for_each(|(correlation, reply)| outbox.push(*correlation, reply));
        let _ = pushed.and_then(|()| outbox.flush());
    }

    /// Answers the hello, and serves until one side ends the connection.
    pub(super) fn serve(mut self, hello: u64, login: &LoginContext) -> Served {
        let sessions: Vec<_> =
            (1..=login.session_count()).map(|thread| Mutex::new(Worker::new(login, thread))).collect();
        let first = lock(&sessions[0]).touch();
        // Tokens hide private objects before login, and only the first call shows that the login is lost.
        if let Err(fault) = first {
            let text = fault.text.clone();
            let broken = is_broken(&fault);
            self.give_up(hello, fault);
            return if broken { Served::Broken(text) } else { Served::HungUp };
        }
        login.look_for_own_keys();
        self.send(&[(hello, Reply::Status(Box::new(login.status())))]);
        let Ok(writer) = self.socket.try_clone() else { return Served::HungUp };
        let service = Service {
            login,
            queue: Queue::new(QUEUE_PER_SESSION * sessions.len()),
            sessions,
            writer: Mutex::new(writer),
            socket: &self.socket,
            broken: Mutex::new(None),
        };
        std::thread::scope(|scope| {
            let mut started = 0;
            for index in 0..service.sessions.len() {
                let service = &service;
                let name = format!("session-{}", index + 1);
                match std::thread::Builder::new().name(name).spawn_scoped(scope, move || service.work(index)) {
                    Ok(_) => started += 1,
                    Err(error) => tracing::error!(%error, "a session thread cannot be started"),
                }
            }
            if started > 0
                && let Err(error) = service.read(&mut self.inbox)
            {
                tracing::info!(%error, kind = "connection", "a connection to the daemon has ended");
            }
            service.end();
        });
        let broken = service.broken.into_inner().unwrap_or_else(PoisonError::into_inner);
        broken.map_or(Served::HungUp, Served::Broken)
    }
}

/// State shared by the threads of a connection.
struct Service<'a> {
    login: &'a LoginContext,
    queue: Queue,
    /// One per session thread. Other threads lock it only to keep an idle session alive.
    sessions: Vec<Mutex<Worker<'a>>>,
    writer: Mutex<UnixStream>,
    socket: &'a UnixStream,
    broken: Mutex<Option<String>>,
}

impl Service<'_> {
    /// Reads frames until the daemon disconnects.
    fn read(&self, inbox: &mut Inbox) -> Result<(), ConnectionError> {
        let mut batch = Vec::new();
        while let Some(first) = inbox.next(None)? {
            let mut next = Some(first);
            while let Some((frame, read_at)) = next {
                match Request::decode(&frame)? {
                    Request::Cancel { correlation } => {
                        self.queue.push_all(&mut batch);
                        self.queue.cancel(correlation);
                    }
                    Request::Discard { session } => self.login.discard(session),
                    Request::Hello { .. } | Request::Open { .. } | Request::Ping | Request::Sign(_) => {
                        batch.push(Queued { frame, read_at, cancelled: false });
                    }
                }
                next = inbox.next_read()?;
            }
            self.queue.push_all(&mut batch);
        }
        Ok(())
    }

    /// Ends all threads of the connection.
    fn end(&self) {
        self.queue.close();
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// A session thread.
    fn work(&self, index: usize) {
        if let Err(error) = self.answer_all(index) {
            tracing::info!(%error, kind = "connection", "a connection to the daemon has ended");
        }
        self.end();
    }

    fn answer_all(&self, index: usize) -> Result<(), ConnectionError> {
        let mut outbox = Outbox::new(&self.writer);
        loop {
            let next = match self.queue.try_pop() {
                Some(next) => Some(next),
                None => {
                    outbox.flush()?;
                    self.queue.pop()
                }
            };
            let Some((next, waiting)) = next else { return Ok(()) };
            // The token may have no room for this session while the others work.
            if !lock(&self.sessions[index]).has_session() && self.login.live.load(Ordering::Relaxed) > 0 {
                self.queue.put_back(next);
                outbox.flush()?;
                if self.queue.closes_within(NO_SESSION_INTERVAL) {
                    return Ok(());
                }
                continue;
            }
            let correlation = next.frame.correlation;
            let request = Request::decode(&next.frame)?;
            let began = Instant::now();
            match self.answer(index, &request, &next) {
                Some(Reply::Fault(fault)) if is_broken(&fault) => {
                    let reason = fault.text.clone();
                    // The daemon disconnects after the fault.
                    outbox.push(0, &Reply::Status(Box::new(last_word())))?;
                    outbox.push(correlation, &Reply::Fault(fault))?;
                    outbox.flush()?;
                    *lock(&self.broken) = Some(reason);
                    return Ok(());
                }
                Some(reply) => outbox.push(correlation, &reply)?,
                None => {}
            }
            let now = Instant::now();
            if outbox.is_due(now, now.saturating_duration_since(began), waiting) {
                outbox.flush()?;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether only a new host process helps.
fn is_broken(fault: &Fault) -> bool {
    fault.recovery == Recovery::NewProcess
}

/// The connection ended before the daemon disconnected.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the socket broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}
