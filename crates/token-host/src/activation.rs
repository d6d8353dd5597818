//! Activation: operators hand the PIN to a running token host, which keeps it in locked memory and never on disk.
//!
//! The host listens on a socket of its own for this, since the daemon, which may connect to the other one, must not be able
//! to use up the attempts that the token allows. A connection has one exchange: the host says whether it waits, the operator
//! sends the PIN as one line and closes its side, and the host says what became of it. The PIN is tried when a daemon is
//! connected, once. One that the token refuses is forgotten, and the host waits again.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use process::{error::chain, files};
use secrecy::{ExposeSecret, SecretString};
use token::{
    TokenUri,
    pin::{self, LockedPin},
    uri::UriError,
};

use super::{ActivationSettings, Settings, listen};
use crate::protocol::{Fault, Recovery};

/// How long an operator may take to type the PIN, or to assemble it.
const TYPING: Duration = Duration::from_secs(300);

/// How long an operator waits for the token's verdict: a daemon that is up tries to connect several times a second, and a
/// login takes a few seconds at most.
const VERDICT: Duration = Duration::from_secs(20);

/// Maximum length of a line of the exchange.
const LINE_MAX: u64 = 4096;

const ACTIVE: &str = "active";
const WAITING: &str = "waiting ";
const ACCEPTED: &str = "accepted";
const REFUSED: &str = "refused ";
const KEPT: &str = "kept";

/// What became of a PIN that an operator handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The token accepted it.
    Accepted,
    /// No daemon is connected: it is tried when one connects.
    Kept,
    /// It was not taken, or the token refused it.
    Refused(String),
}

/// The operator's side of a connection.
#[derive(Debug)]
pub struct Visit {
    stream: BufReader<UnixStream>,
    waiting: Option<String>,
}

impl Visit {
    /// Greets the host at a connected socket.
    ///
    /// # Errors
    /// If the host does not answer: it closes the connection of a user who may not activate it.
    pub fn begin(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(VERDICT))?;
        let mut stream = BufReader::new(stream);
        let greeting = read_line(&mut stream)?;
        let waiting = greeting.strip_prefix(WAITING).map(str::to_owned);
        if waiting.is_none() && greeting != ACTIVE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not answer as a token host"));
        }
        Ok(Self { stream, waiting })
    }

    /// The URI of the token whose PIN the host waits for; `None` if it has one already.
    #[must_use]
    pub fn waits_for(&self) -> Option<&str> {
        self.waiting.as_deref()
    }

    /// Hands over the PIN and waits for the verdict.
    ///
    /// # Errors
    /// If the connection breaks; the host may have the PIN then.
    pub fn hand_over(mut self, pin: &SecretString) -> io::Result<Answer> {
        let socket = self.stream.get_mut();
        socket.write_all(pin.expose_secret().as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        socket.set_read_timeout(Some(VERDICT + Duration::from_secs(10)))?;
        let answer = read_line(&mut self.stream)?;
        Ok(match answer.strip_prefix(REFUSED) {
            Some(reason) => Answer::Refused(reason.to_owned()),
            None if answer == ACCEPTED => Answer::Accepted,
            None => Answer::Kept,
        })
    }
}

fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut line = String::new();
    stream.by_ref().take(LINE_MAX).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// The PIN that operators hand over, or the wait for it.
#[derive(Debug)]
pub(super) struct Activation {
    settings: ActivationSettings,
    uri: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pin: Option<Arc<LockedPin>>,
    /// Whether the token has accepted it.
    accepted: bool,
    /// Why the last one was refused.
    refused: Option<String>,
}

impl Activation {
    /// Listens for operators.
    pub(super) fn start(settings: ActivationSettings, uri: String) -> io::Result<Arc<Self>> {
        let listener = listen(&settings.socket)?;
        if settings.uids.is_empty() {
            files::set_socket_mode(&settings.socket, 0o600)?;
        }
        let activation = Arc::new(Self { settings, uri, state: Mutex::default(), changed: Condvar::new() });
        let serving = Arc::clone(&activation);
        std::thread::Builder::new().name("activation".to_owned()).spawn(move || serving.serve(&listener))?;
        activation.announce();
        Ok(activation)
    }

    /// The PIN, if there is one.
    pub(super) fn pin(&self) -> Option<Arc<LockedPin>> {
        self.lock().pin.clone()
    }

    /// Why there is no login without operators.
    pub(super) fn waiting(&self) -> Fault {
        let command = format!("run `istio-hsm-ca activate --socket {}`", self.settings.socket.display());
        let text = match &self.lock().refused {
            Some(reason) => format!("waiting for operators: {command}; the last PIN was refused: {reason}"),
            None => format!("waiting for operators: {command}"),
        };
        Fault { recovery: Recovery::Retry, code: 0, function: String::new(), text }
    }

    /// The token has accepted the PIN.
    pub(super) fn accept(&self) {
        let mut state = self.lock();
        state.accepted = true;
        state.refused = None;
        drop(state);
        self.changed.notify_all();
    }

    /// The token has refused the PIN, which is forgotten.
    pub(super) fn refuse(&self, reason: &str) {
        let mut state = self.lock();
        *state = State { refused: Some(reason.replace(char::is_control, " ")), ..State::default() };
        drop(state);
        self.changed.notify_all();
        self.announce();
    }

    fn announce(&self) {
        let socket = self.settings.socket.display();
        tracing::info!(%socket, kind = "activation", "the token host waits for operators: istio-hsm-ca activate");
    }

    fn serve(&self, listener: &UnixListener) {
        loop {
            let served = listener.accept().and_then(|(stream, _)| self.visit(stream));
            if let Err(error) = served {
                tracing::warn!(%error, kind = "activation", "an operator's connection has failed");
                // What makes accept(2) fail may last.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn visit(&self, mut stream: UnixStream) -> io::Result<()> {
        let peer = getsockopt(&stream, PeerCredentials)?;
        let uid = peer.uid();
        if uid != 0 && uid != nix::unistd::geteuid().as_raw() && !self.settings.uids.contains(&uid) {
            tracing::warn!(
                uid,
                kind = "activation",
                "a user who is not an operator connected to the activation socket"
            );
            return Ok(());
        }
        if self.pin().is_some() {
            return writeln!(stream, "{ACTIVE}");
        }
        writeln!(stream, "{WAITING}{}", self.uri)?;
        stream.set_read_timeout(Some(TYPING))?;
        let answer = match pin::read_open(&stream, &self.settings.socket) {
            Ok(pin) => self.take(pin),
            Err(error) => Answer::Refused(chain(&error)),
        };
        tracing::info!(uid, pid = peer.pid(), ?answer, kind = "activation", "an operator has handed over a PIN");
        match answer {
            Answer::Accepted => writeln!(stream, "{ACCEPTED}"),
            Answer::Kept => writeln!(stream, "{KEPT}"),
            Answer::Refused(reason) => writeln!(stream, "{REFUSED}{}", reason.replace(char::is_control, " ")),
        }
    }

    /// Keeps a PIN, and waits for the verdict of the token.
    fn take(&self, pin: SecretString) -> Answer {
        let pin = match LockedPin::new(pin) {
            Ok(pin) => Arc::new(pin),
            Err(error) => {
                return Answer::Refused(format!(
                    "the PIN's memory cannot be locked: {error}; raise the token host's limit RLIMIT_MEMLOCK \
                     (systemd: LimitMEMLOCK=)"
                ));
            }
        };
        let mut state = self.lock();
        *state = State { pin: Some(Arc::clone(&pin)), ..State::default() };
        let until = Instant::now() + VERDICT;
        loop {
            if let Some(reason) = &state.refused {
                return Answer::Refused(reason.clone());
            }
            if state.accepted {
                return Answer::Accepted;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Answer::Kept;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic under this lock can leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the PIN comes from.
#[derive(Clone, Debug)]
pub(super) enum PinSource {
    /// A file that can be read again.
    File(PathBuf),
    /// Operators, after each start.
    Operators(Arc<Activation>),
    /// No source is configured, for tokens that require no login.
    None,
}

impl PinSource {
    /// The source of a child of the daemon, which has a file.
    pub(super) fn of_child(settings: &Settings) -> Result<Self, Fault> {
        match &settings.activation {
            Some(_) => Err(fault("a token host that operators activate must be started separately, with --config")),
            None => pin_file(settings),
        }
    }

    /// The source of a supervised host. Begins to listen for operators, if they hand over the PIN.
    pub(super) fn of_supervised(settings: &Settings) -> Result<Self, Fault> {
        let Some(activation) = &settings.activation else { return pin_file(settings) };
        if !matches!(pin_file(settings)?, Self::None) {
            return Err(fault("there are a PIN file and [activation]; remove one of them from the configuration"));
        }
        let socket = activation.socket.display();
        let failed = |error| fault(&format!("the activation socket {socket} cannot be used: {error}"));
        Activation::start(activation.clone(), settings.uri.clone()).map(Self::Operators).map_err(failed)
    }

    /// The fault while operators have not handed over the PIN.
    pub(super) fn waiting(&self) -> Option<Fault> {
        match self {
            Self::File(_) | Self::None => None,
            Self::Operators(activation) => activation.pin().is_none().then(|| activation.waiting()),
        }
    }
}

fn pin_file(settings: &Settings) -> Result<PinSource, Fault> {
    let uri: TokenUri = settings.uri.parse().map_err(|error: UriError| fault(&chain(&error)))?;
    let file = settings.pin_file.clone().or_else(|| uri.pin_source().map(Path::to_owned));
    Ok(file.map_or(PinSource::None, PinSource::File))
}

fn fault(text: &str) -> Fault {
    Fault { recovery: Recovery::FixConfiguration, code: 0, function: String::new(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activation(directory: &Path) -> (Arc<Activation>, PathBuf) {
        let socket = directory.join("activation.sock");
        let settings = ActivationSettings { socket: socket.clone(), uids: Vec::new() };
        (Activation::start(settings, "pkcs11:token=a".to_owned()).unwrap(), socket)
    }

    fn visit(socket: &Path) -> Visit {
        Visit::begin(UnixStream::connect(socket).unwrap()).unwrap()
    }

    /// Waits until a PIN was handed over.
    fn handed(activation: &Activation) -> Arc<LockedPin> {
        loop {
            if let Some(pin) = activation.pin() {
                return pin;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn pin_is_kept_once_the_token_accepts_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (activation, socket) = activation(directory.path());
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let visit_of_operator = visit(&socket);
        assert_eq!(visit_of_operator.waits_for(), Some("pkcs11:token=a"));
        let operator = std::thread::spawn(move || visit_of_operator.hand_over(&SecretString::from("1234")).unwrap());
        assert_eq!(handed(&activation).pin().expose_secret(), "1234");
        activation.accept();
        assert_eq!(operator.join().unwrap(), Answer::Accepted);
        assert_eq!(visit(&socket).waits_for(), None);
    }

    #[test]
    fn refused_pin_is_forgotten_and_the_host_waits_again() {
        let directory = tempfile::tempdir().unwrap();
        let (activation, socket) = activation(directory.path());
        let visit_of_operator = visit(&socket);
        let operator = std::thread::spawn(move || visit_of_operator.hand_over(&SecretString::from("9999")).unwrap());
        handed(&activation);
        activation.refuse("the token refuses the PIN\nand more");
        let expected = "the token refuses the PIN and more";
        assert_eq!(operator.join().unwrap(), Answer::Refused(expected.to_owned()));
        assert!(activation.pin().is_none());
        let text = activation.waiting().text;
        assert!(
            text.starts_with("waiting for operators: run `istio-hsm-ca activate") && text.ends_with(expected),
            "{text}"
        );
        assert!(visit(&socket).waits_for().is_some());
    }

    #[test]
    fn empty_pin_is_not_tried() {
        let directory = tempfile::tempdir().unwrap();
        let (activation, socket) = activation(directory.path());
        let answer = visit(&socket).hand_over(&SecretString::from("")).unwrap();
        assert!(matches!(answer, Answer::Refused(reason) if reason.contains("empty")));
        assert!(activation.pin().is_none());
    }
}
