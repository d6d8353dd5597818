//! One connection: threads that read a frame, check it, have it signed and write the answer, without a hop.
//!
//! A thread for each session, and some that read ahead where the token is slow (`sessions`). All threads share the
//! socket. Whoever has nothing to do holds the reading end; a thread that holds answers back in order to write several
//! at once never waits for that end with them: it tries, and writes them first when it fails.

mod answers;
mod inbox;
mod outbox;
mod sessions;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use inbox::{Inbox, Taken};
use outbox::Outbox;
use sessions::Sessions;

use super::{
    HostError, share,
    vault::{Vault, Worker, last_word},
};
use crate::protocol::{Fault, FaultClass, Frame, ProtocolError, Reply, Request};

/// How long the last request must have taken for what has come meanwhile to be read before the next one: a system call
/// that is worth it where signatures are slow.
const LONG: Duration = Duration::from_millis(1);

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

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Served {
    /// The token or its module is broken.
    Broken(String),
    /// The daemon hung up.
    HungUp,
}

impl Connection {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self { inbox: Inbox::new(socket.try_clone()?), socket })
    }

    /// The socket, for the watchdog.
    pub(super) fn socket(&self) -> io::Result<Arc<OwnedFd>> {
        share(&self.socket)
    }

    /// Waits for the first frame. `None` when nobody says anything.
    pub(super) fn hello(&mut self, patience: Duration) -> Result<Option<Hello>, HostError> {
        let system = |source| HostError::System { what: "read from its socket", source };
        while !self.inbox.has_frame()? {
            match self.inbox.fill(Some(patience)) {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                result => result.map_err(system)?,
            };
        }
        let mut bytes = Vec::new();
        self.inbox.take(&mut bytes)?;
        let Some((frame, _)) = Frame::split(&bytes)? else { return Ok(None) };
        match Request::decode(&frame)? {
            // An older or newer daemon learns this host's version from the answer, and decides.
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

    /// Tells the daemon why there will be no service, and how the calls went that were made for it.
    pub(super) fn give_up(&mut self, correlation: u64, fault: Fault) {
        self.tell(&[(0, Reply::Status(Box::new(last_word()))), (correlation, Reply::Fault(fault))]);
    }

    /// Tells the daemon why there will be no service.
    pub(super) fn refuse(&mut self, correlation: u64, fault: Fault) {
        self.tell(&[(correlation, Reply::Fault(fault))]);
    }

    fn tell(&mut self, replies: &[(u64, Reply)]) {
        let Ok(socket) = self.socket.try_clone() else { return };
        let writer = Mutex::new(socket);
        let mut outbox = Outbox::new(&writer);
        // The daemon may be gone already, and then nobody needs to know.
        let pushed = replies.iter().try_for_each(|(correlation, reply)| outbox.push(*correlation, reply));
        let _ = pushed.and_then(|()| outbox.flush());
    }

    /// Answers the hello, and serves until one side ends it.
    pub(super) fn serve(mut self, hello: u64, vault: &Vault) -> Served {
        let sessions = Sessions::new(vault);
        let first = sessions.with(Some(0), Worker::touch);
        // Tokens hide objects from whoever is not logged in, which only the touch has found out.
        if let Err(fault) = first.and_then(|()| vault.look_for_own_keys()) {
            let text = fault.text.clone();
            let broken = is_broken(&fault);
            self.give_up(hello, fault);
            return if broken { Served::Broken(text) } else { Served::HungUp };
        }
        let Ok(writer) = self.socket.try_clone() else { return Served::HungUp };
        let service = Service {
            vault,
            sessions,
            inbox: Mutex::new(self.inbox),
            writer: Mutex::new(writer),
            socket: &self.socket,
            broken: Mutex::new(None),
        };
        let mut outbox = Outbox::new(&service.writer);
        let greeted = outbox.push(hello, &Reply::Status(Box::new(vault.status()))).and_then(|()| outbox.flush());
        if greeted.is_err() {
            return Served::HungUp;
        }
        std::thread::scope(|scope| {
            let own = (1..service.sessions.count()).map(Some);
            let ahead = (0..service.sessions.readers_ahead()).map(|_| None);
            for own in own.chain(ahead) {
                let service = &service;
                let name = own.map_or("reads-ahead".to_owned(), |own| format!("session-{}", own + 1));
                let started =
                    std::thread::Builder::new().name(name.clone()).spawn_scoped(scope, move || service.work(own));
                if let Err(error) = started {
                    tracing::error!(%error, name, "a thread cannot be started");
                }
            }
            service.work(Some(0));
        });
        let broken = service.broken.into_inner().unwrap_or_else(PoisonError::into_inner);
        broken.map_or(Served::HungUp, Served::Broken)
    }
}

/// What the threads of a connection share.
struct Service<'a> {
    vault: &'a Vault,
    sessions: Sessions<'a>,
    inbox: Mutex<Inbox>,
    writer: Mutex<UnixStream>,
    socket: &'a UnixStream,
    broken: Mutex<Option<String>>,
}

impl Service<'_> {
    /// A thread's work, until the connection ends; `own` is its session, and one that reads ahead has none.
    fn work(&self, own: Option<usize>) {
        if let Err(error) = self.frames(own) {
            tracing::info!(error = %error, "a connection to the daemon has ended");
        }
        // The other threads then see the end too.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.sessions.end();
    }

    fn frames(&self, own: Option<usize>) -> Result<(), EndOfService> {
        let mut outbox = Outbox::new(&self.writer);
        let mut bytes = Vec::new();
        let mut took = Duration::ZERO;
        loop {
            if own.is_none() {
                outbox.flush()?;
                if !self.sessions.wait_until_slow() {
                    return Ok(());
                }
            }
            // Others may have sessions where the token has no room for one more.
            while own.is_some_and(|own| !self.sessions.may_take(own)) {
                outbox.flush()?;
                if self.is_over() {
                    return Ok(());
                }
                Sessions::rest();
            }
            let Some(taken) = self.next_frame(&mut outbox, &mut bytes, took)? else { return Ok(()) };
            let Some((frame, _)) = Frame::split(&bytes)? else { continue };
            let request = Request::decode(&frame)?;
            let began = Instant::now();
            match self.answer(own, &request, taken) {
                Some(Reply::Fault(fault)) if is_broken(&fault) => {
                    let reason = fault.text.clone();
                    // Before the fault, after which the daemon hangs up.
                    outbox.push(0, &Reply::Status(Box::new(last_word())))?;
                    outbox.push(frame.correlation, &Reply::Fault(fault))?;
                    outbox.flush()?;
                    *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                    return Ok(());
                }
                Some(reply) => outbox.push(frame.correlation, &reply)?,
                None => {}
            }
            let now = Instant::now();
            took = now.saturating_duration_since(began);
            if outbox.is_due(now, took, taken.waiting / self.sessions.count().max(1)) {
                outbox.flush()?;
            }
        }
    }

    /// Takes the next frame. `None` when the daemon has hung up.
    fn next_frame(
        &self,
        outbox: &mut Outbox<'_>,
        bytes: &mut Vec<u8>,
        took: Duration,
    ) -> Result<Option<Taken>, EndOfService> {
        let mut inbox = match self.inbox.try_lock() {
            Ok(inbox) => inbox,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                outbox.flush()?;
                self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        while !inbox.has_frame()? {
            outbox.flush()?;
            if inbox.fill(None)? == 0 {
                return Ok(None);
            }
        }
        if took >= LONG {
            inbox.look_ahead();
        }
        Ok(inbox.take(bytes)?)
    }

    fn is_over(&self) -> bool {
        self.inbox.try_lock().is_ok_and(|inbox| inbox.is_over())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_broken(fault: &Fault) -> bool {
    match fault.class {
        FaultClass::Module | FaultClass::Token => true,
        FaultClass::Busy
        | FaultClass::Key
        | FaultClass::Login
        | FaultClass::Pin
        | FaultClass::Request
        | FaultClass::Session
        | FaultClass::Settings => false,
    }
}

/// Why a thread's work ended before the daemon hung up.
#[derive(Debug, thiserror::Error)]
enum EndOfService {
    #[error("the socket broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}
