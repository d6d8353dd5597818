//! Starts token hosts as children, and sees to it that none outlives its use.
//!
//! The host's end of the socket pair is its standard input: no descriptor has to be numbered, so that nothing unsafe
//! happens between fork and exec. Children are started by a thread of their own, since the signal that a child gets
//! when its parent dies (PR_SET_PDEATHSIG) is in truth about the thread that started it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tokio::{net::UnixStream, sync::oneshot};

use crate::telemetry;

/// How long a child whose socket was closed has to end by itself, so that its module can close its sessions.
const GRACE: Duration = Duration::from_millis(500);

/// How long a killed child is waited for; one in uninterruptible sleep is left to the kernel.
const REAP: Duration = Duration::from_secs(2);

struct Order {
    command: Command,
    child: oneshot::Sender<io::Result<Child>>,
}

/// The thread that starts children. It ends with the last handle on it.
#[derive(Clone, Debug)]
pub(super) struct Spawner {
    orders: mpsc::Sender<Order>,
    /// Hosts log as the daemon does, on its standard error.
    logging: [String; 4],
}

impl Spawner {
    pub(super) fn start(logging: &telemetry::Settings) -> io::Result<Self> {
        let (orders, taken) = mpsc::channel::<Order>();
        std::thread::Builder::new().name("token-spawner".to_owned()).spawn(move || {
            for mut order in taken {
                if let Err(Ok(unwanted)) = order.child.send(order.command.spawn()) {
                    drop(Running(unwanted));
                }
            }
        })?;
        let logging = ["--log-format", logging.format.as_str(), "--log-filter", logging.filter.as_str()];
        Ok(Self { orders, logging: logging.map(str::to_owned) })
    }

    /// Starts a host: its process, and our end of the socket.
    pub(super) async fn spawn(
        &self,
        name: &str,
        program: Option<PathBuf>,
        environment: &BTreeMap<String, String>,
    ) -> io::Result<(Running, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // The link to the running executable, so that an upgrade on disk does not mix two versions.
        let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let mut command = Command::new(program);
        command
            .arg("token-host")
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

/// A child; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Running {
    /// Ends the child, gently unless it hangs, and reaps it; tells how it ended.
    pub(super) async fn end(mut self, hung: bool) -> String {
        if !hung && let Some(status) = self.wait(GRACE).await {
            return status;
        }
        // It may have ended in between.
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
            // After SIGKILL this is a matter of moments.
            let _ = self.0.wait();
        }
    }
}
