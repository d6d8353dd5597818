//! A daemon with a token that fails on command, and its clients.

use std::{
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{books, clients::Load};
use testkit::{
    daemon::{Daemon, SOON, Site},
    faulty::{Books, Control, MODULE},
    plug_in::PlugIn,
};

/// A plug-in CA in a token, imported once.
static IMPORTED: LazyLock<Site> = LazyLock::new(|| Site::new(&PlugIn::intermediate()));

/// A daemon and everything that belongs to it.
pub struct Lane {
    pub site: Site,
    pub control: Control,
    pub load: Load,
    daemon: Daemon,
}

impl Lane {
    /// A running daemon; must run in a `LocalSet`.
    pub async fn start() -> Self {
        Self::start_on(&MODULE, Duration::from_secs(5)).await
    }

    /// The same with a copy of the module and another call timeout.
    pub async fn start_on(module: &Path, call_timeout: Duration) -> Self {
        let site = IMPORTED.duplicate();
        let control = Control::new(site.softhsm.path());
        control.works();
        let more = format!("sessions = 2\ncall_timeout = \"{}ms\"", call_timeout.as_millis());
        let more = control.section(module, &site, &more);
        let daemon = site.serve(&more);
        let load = Load::start(&daemon).await;
        Self { site, control, load, daemon }
    }

    /// Whether the daemon is still the process that was started.
    pub fn running(&mut self) -> bool {
        self.daemon.running()
    }

    /// Kills the daemon's token hosts, except during login; returns how many there were.
    pub async fn kill_hosts(&self) -> usize {
        self.control.signal(|| self.hosts(), Signal::SIGKILL).await
    }

    /// The daemon's token hosts.
    pub fn hosts(&self) -> Vec<Pid> {
        hosts_of(self.daemon.pid())
    }

    /// Sends SIGKILL to the daemon; returns its token hosts.
    pub fn kill_daemon(mut self) -> Vec<Pid> {
        let hosts = self.hosts();
        self.daemon.signal(Signal::SIGKILL);
        self.daemon.ended();
        hosts
    }

    /// Rewrites the PIN file with the same PIN.
    pub fn change_pin_file(&self) {
        let pin = self.site.softhsm.path().join("pin");
        let beside = self.site.softhsm.path().join("pin-new");
        fs::copy(&pin, &beside).unwrap();
        fs::rename(beside, pin).unwrap();
    }

    /// The value of a metric, with any labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        let value: f64 = line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap());
        format!("{value:.0}").parse().unwrap()
    }

    /// GET on the admin address: the complete response.
    pub async fn get(&self, path: &str) -> String {
        let answer = async {
            let mut stream = TcpStream::connect(self.daemon.admin).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        tokio::time::timeout(SOON, answer).await.expect("the admin address does not answer").unwrap()
    }

    /// The daemon's last output, for a failure message.
    pub async fn last_words(&self) -> String {
        let text = self.daemon.stderr();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n");
        format!("{}\n{last}", self.get("/readyz").await)
    }

    /// Ends the daemon and compares all records. Returns the module's records and the differences.
    pub async fn end(self) -> (Books, Vec<String>) {
        let excess = self.metric("istio_hsm_ca_excess_signatures").await;
        let Self { site, control, load, mut daemon } = self;
        let seen = load.end().await;
        daemon.signal(Signal::SIGTERM);
        let status = daemon.ended();
        let module = control.books_since(0);
        let mut wrong = books::compare(&site, &module, &seen);
        wrong.extend(seen.wrong);
        if excess > 0 {
            wrong.push(format!("the hosts say that they signed {excess} certificates more than the log holds"));
        }
        if status.code() != Some(0) {
            wrong.push(format!("the daemon ended with {status}"));
        }
        let began = Instant::now();
        while !hosts_of(daemon.pid()).is_empty() && began.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if !hosts_of(daemon.pid()).is_empty() {
            wrong.push("a token host outlived its daemon".to_owned());
        }
        (module, wrong)
    }
}

/// The processes that a daemon started.
fn hosts_of(daemon: Pid) -> Vec<Pid> {
    let parent = |process: &std::path::Path| {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        (!rest.starts_with('Z')).then_some(())?;
        rest.split(' ').nth(1)?.parse::<i32>().ok()
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| parent(&entry.path()) == Some(daemon.as_raw()))
        .map(|entry| Pid::from_raw(entry.file_name().to_str().unwrap().parse().unwrap()))
        .collect()
}
