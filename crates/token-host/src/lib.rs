//! The token host: a separate process, the only one that loads the vendor's library, reads the PIN and holds the
//! sessions.
//!
//! It has two forms with the same protocol: a child of the daemon, with its socket on standard input and its settings
//! in the daemon's first frame; or supervised separately, under another user, with its own settings and a Unix socket
//! to listen on. It never uses the network, Kubernetes or the log, and signs a closed list of messages
//! ([`Kind`](protocol::Kind)) within its own limits. Started through [`main`].

mod acceptor;
pub mod activation;
mod command;
mod ending;
mod isolation;
mod login;
mod policy;
pub mod protocol;
mod serve;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;
mod watchdog;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixListener, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use acceptor::Acceptor;
use activation::PinSource;
pub use command::main;
use ending::Ending;
use login::LoginContext;
use process::{error::chain, files};
use protocol::{Fault, Recovery};
use serve::{Connection, Served};
pub use settings::{ActivationSettings, DEFAULT_CALL_TIMEOUT, Settings};
use watchdog::Watchdog;

/// Prefix of every canary message; no certificate, checkpoint or other signed data begins with it.
const CANARY_PREFIX: &[u8] = b"istio-hsm-ca canary\0";

/// The program's file name; it is installed next to the daemon's.
pub const PROGRAM: &str = "istio-hsm-ca-token-host";

/// Exit status of a host whose token or module is broken: a new host process may help.
pub const EXIT_TOKEN: u8 = 75;

/// Timeout for a daemon's hello.
const HELLO: Duration = Duration::from_secs(10);

/// A message for the canary key to sign, different each time.
#[must_use]
pub fn canary_message() -> Vec<u8> {
    let nonce = [unique(), unique()].map(u64::to_be_bytes);
    [CANARY_PREFIX, nonce.as_flattened()].concat()
}

/// A number that is different each time, also in other processes; not a secret.
///
/// The standard library's hash keys are 128 bits from the system. AWS-LC's generator would take longer to start than
/// everything else in a host (jitter entropy: 33 of 45 ms), and a host needs no other random numbers.
fn unique() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The longest path of a Unix socket in bytes: `sun_path` has 108, one of them for the final zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// Why a host ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call failed before the token was used.
    #[error("the token host cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The daemon violates the protocol.
    #[error("the daemon does not keep to the protocol: {0}")]
    Protocol(#[from] protocol::ProtocolError),
    /// The settings file cannot be read.
    #[error("the token host's configuration {path} cannot be used: {reason}")]
    Settings {
        /// File of the settings.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The token or its module is broken.
    #[error("the token host ends so that a new one can start: {0}")]
    Token(String),
    /// The host cannot start serving.
    #[error("{0}")]
    Unable(String),
}

/// Parameters of a supervised host.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// Its settings.
    pub settings: Settings,
    /// The Unix socket to listen on; an existing one is replaced.
    pub socket: PathBuf,
    /// Users whose daemons are served, in addition to this process's own.
    pub uids: Vec<u32>,
}

/// The form of a host.
#[derive(Clone, Debug)]
pub enum Form {
    /// A child of the daemon, with the daemon's name for the token.
    Child(String),
    /// Supervised, listening on a socket.
    Supervised {
        /// Its configuration file.
        config: PathBuf,
        /// The Unix socket to listen on.
        socket: PathBuf,
        /// Users whose daemons are served, in addition to this process's own.
        uids: Vec<u32>,
    },
}

/// Runs `token-host` and returns the exit status.
#[must_use]
fn run(form: Form) -> ExitCode {
    let result = match form {
        Form::Child(name) => run_child(&name),
        Form::Supervised { config, socket, uids } => {
            Settings::read(&config).and_then(|settings| run_supervised(&Supervised { settings, socket, uids }))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %chain(&error), "the token host ends");
            match error {
                HostError::Token(_) => ExitCode::from(EXIT_TOKEN),
                HostError::Protocol(_)
                | HostError::Settings { .. }
                | HostError::System { .. }
                | HostError::Unable(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// The daemon's child: its socket is on standard input, its settings are in the first frame.
///
/// # Errors
/// If it cannot start, or ends because its token is broken.
pub fn run_child(name: &str) -> Result<(), HostError> {
    let system = |what| move |source| HostError::System { what, source };
    isolation::follow_parent().map_err(system("follow its parent's end"))?;
    isolation::go_first();
    isolation::limit_open_files().map_err(system("limit its open files"))?;
    isolation::close_inherited().map_err(system("close what it inherited"))?;
    isolation::harden().map_err(system("forbid core dumps"))?;
    let socket = UnixStream::from(isolation::take_stdin().map_err(system("take its socket"))?);
    let mut connection = Connection::new(socket).map_err(system("use its socket"))?;
    let Some(hello) = connection.hello(HELLO)? else { return Ok(()) };
    let settings: Settings = match serde_json::from_slice(&hello.settings) {
        Ok(settings) => settings,
        Err(error) => {
            return Err(refuse(&mut connection, hello.correlation, Recovery::FixConfiguration, &error.to_string()));
        }
    };
    let watchdog = Watchdog::start(settings.threads(), settings.call_timeout).map_err(system("start its watchdog"))?;
    watchdog.watch_socket(Some(connection.socket().map_err(system("use its socket"))?));
    let pin_source = match PinSource::of_child(&settings) {
        Ok(source) => source,
        Err(fault) => return Err(refuse(&mut connection, hello.correlation, fault.recovery, &fault.text)),
    };
    let login = match LoginContext::open(name, settings, pin_source, &watchdog) {
        Ok(login) => login,
        Err(fault) => {
            let text = fault.text.clone();
            connection.give_up(hello.correlation, fault);
            return Err(HostError::Unable(text));
        }
    };
    let served = connection.serve(hello.correlation, &login);
    login.close();
    match served {
        Served::HungUp => Ok(()),
        Served::Broken(reason) => Err(HostError::Token(reason)),
    }
}

/// Listens for daemons and serves one after the other, until SIGTERM or SIGINT; a second one at the same time is
/// rejected as busy and retries.
///
/// # Errors
/// If it cannot start, or ends because its token is broken; its supervisor restarts it.
pub fn run_supervised(supervised: &Supervised) -> Result<(), HostError> {
    let system = |what| move |source| HostError::System { what, source };
    isolation::close_inherited().map_err(system("close what it inherited"))?;
    isolation::harden().map_err(system("forbid core dumps"))?;
    let listener = listen(&supervised.socket).map_err(system("listen on its socket"))?;
    let ending = Ending::on_signals(&listener).map_err(system("wait for signals"))?;
    let settings = &supervised.settings;
    let watchdog = Watchdog::start(settings.threads(), settings.call_timeout).map_err(system("start its watchdog"))?;
    let name = supervised.socket.display().to_string();
    let acceptor =
        Acceptor::open(listener, supervised.uids.clone()).map_err(system("start the thread at its socket"))?;
    let pin_source = PinSource::of_supervised(settings).map_err(|fault| HostError::Unable(fault.text))?;
    let mut login: Option<LoginContext> = None;
    while !ending.begun() {
        let socket = match acceptor.next() {
            Ok(socket) => socket,
            Err(_) if ending.begun() => break,
            Err(error) => return Err(system("accept a connection")(error)),
        };
        let mut connection = Connection::new(socket).map_err(system("use its socket"))?;
        let hello = match connection.hello(HELLO) {
            Ok(Some(hello)) => hello,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, kind = "hello", "a connection did not start with a valid hello");
                continue;
            }
        };
        if let Some(waiting) = pin_source.waiting() {
            connection.give_up(hello.correlation, waiting);
            continue;
        }
        let open = match login.take() {
            Some(open) => open,
            None => match LoginContext::open(&name, settings.clone(), pin_source.clone(), &watchdog) {
                Ok(open) => open,
                Err(fault) => {
                    tracing::error!(reason = fault.text, "the token cannot be used");
                    let ends = fault.recovery == Recovery::NewProcess;
                    let text = fault.text.clone();
                    connection.give_up(hello.correlation, fault);
                    if ends {
                        return Err(HostError::Token(text));
                    }
                    continue;
                }
            },
        };
        let socket = connection.socket().map_err(system("use its socket"))?;
        watchdog.watch_socket(Some(Arc::clone(&socket)));
        ending.serving(Some(socket));
        let served = connection.serve(hello.correlation, &open);
        ending.serving(None);
        watchdog.watch_socket(None);
        match served {
            Served::HungUp => login = Some(open),
            Served::Broken(reason) => return Err(HostError::Token(reason)),
        }
    }
    if let Some(open) = login {
        open.close();
    }
    Ok(())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // Before anything is removed, and with a message that says what is wrong with the path.
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let text = format!("{} has {length} bytes; a socket's path has at most {SOCKET_PATH_MAX}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    files::remove_socket(path)?;
    let listener = UnixListener::bind(path)?;
    // Who may connect is decided by the peer's user, which a file mode cannot express.
    files::set_socket_mode(path, 0o666)?;
    Ok(listener)
}

fn refuse(connection: &mut Connection, correlation: u64, recovery: Recovery, reason: &str) -> HostError {
    let fault = Fault { recovery, code: 0, function: String::new(), text: reason.to_owned() };
    connection.refuse(correlation, fault);
    HostError::Unable(format!("the daemon's settings cannot be used: {reason}"))
}

/// A descriptor for the watchdog.
fn share(socket: &UnixStream) -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(socket.as_fd().try_clone_to_owned()?))
}
