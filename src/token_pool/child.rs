//! Starts token hosts as children, and makes sure that none outlives its use.
//!
//! The host's end of the socket pair is its standard input: no descriptor has to be numbered, so nothing unsafe happens
//! between fork and exec. Children are started by a dedicated thread, because the parent death signal
//! (PR_SET_PDEATHSIG) is sent when the thread that started the child ends.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use nix::{fcntl::OFlag, sys::stat::Mode};

use tokio::{net::UnixStream, sync::oneshot};

use process::logging;

/// How long a child may take to end after its socket was closed; its module closes its sessions meanwhile.
const GRACE: Duration = Duration::from_millis(500);

/// How long to wait for a killed child; one in uninterruptible sleep is left to the kernel.
const REAP: Duration = Duration::from_secs(2);

struct Order {
    command: Command,
    child: oneshot::Sender<io::Result<Child>>,
}

/// The thread that starts children. It ends with its last handle.
#[derive(Clone, Debug)]
pub(super) struct Spawner {
    orders: mpsc::Sender<Order>,
    /// Log settings of the hosts, as the daemon's; they log to its standard error.
    logging: [String; 4],
    /// The token host's program, opened once, so that an upgrade on disk does not mix two versions.
    program: Option<Arc<OwnedFd>>,
}

impl Spawner {
    /// `sibling`: whether a host will be started from the program next to this one.
    pub(super) fn start(logging: &logging::Settings, sibling: bool) -> io::Result<Self> {
        let program = if sibling { Some(Arc::new(open_sibling()?)) } else { None };
        let (orders, taken) = mpsc::channel::<Order>();
        std::thread::Builder::new().name("token-spawner".to_owned()).spawn(move || {
            for mut order in taken {
                if let Err(Ok(unwanted)) = order.child.send(order.command.spawn()) {
                    drop(Running(unwanted));
                }
            }
        })?;
        let logging = ["--log-format", logging.format.as_str(), "--log-filter", logging.filter.as_str()];
        Ok(Self { orders, logging: logging.map(str::to_owned), program })
    }

    /// Starts a host; returns its process and our end of the socket.
    pub(super) async fn spawn(
        &self,
        name: &str,
        program: Option<PathBuf>,
        environment: &BTreeMap<String, String>,
    ) -> io::Result<(Running, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let program = match (program, &self.program) {
            (Some(program), _) => program,
            (None, Some(opened)) => PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())),
            (None, None) => sibling_path()?,
        };
        let mut command = Command::new(program);
        command
            .args(&self.logging)
            .args(["--child", name])
            .envs(environment)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        let (child, started) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts token hosts is gone");
        self.orders.send(Order { command, child }).map_err(|_| gone())?;
        let child = started.await.map_err(|_| gone())??;
        Ok((Running(child), UnixStream::from_std(ours)?))
    }
}

/// The token host's program: it is installed next to this one.
fn sibling_path() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(token_host::PROGRAM))
}

fn open_sibling() -> io::Result<OwnedFd> {
    let path = sibling_path()?;
    let program = nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|error| {
        let path = path.display();
        io::Error::new(
            io::Error::from(error).kind(),
            format!("the token host's program {path} cannot be opened ({error}); install it next to istio-hsm-ca"),
        )
    })?;
    Ok(program)
}

/// Replaces this process with the token host's program. Returns only if that fails, with the error.
pub(super) fn exec(arguments: &[OsString]) -> io::Error {
    match sibling_path() {
        Ok(path) => {
            let error = Command::new(&path).args(arguments).exec();
            io::Error::new(error.kind(), format!("the token host's program {} cannot be run: {error}", path.display()))
        }
        Err(error) => error,
    }
}

/// A child; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Running {
    /// Ends the child, with SIGKILL if it hangs, and reaps it; returns how it ended.
    pub(super) async fn end(mut self, hung: bool) -> String {
        if !hung && let Some(status) = self.wait(GRACE).await {
            return status;
        }
        // It may have ended meanwhile.
        let _ = self.0.kill();
        self.wait(REAP).await.unwrap_or_else(|| "it could not be ended".to_owned())
    }

    async fn wait(&mut self, most: Duration) -> Option<String> {
        const STEP: Duration = Duration::from_millis(5);
        let polls = most.as_millis() / STEP.as_millis();
        for _ in 0..polls {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status.to_string()),
                Ok(None) => tokio::time::sleep(STEP).await,
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.0.kill();
            // After SIGKILL this takes only moments.
            let _ = self.0.wait();
        }
    }
}
