//! A supervised host as the first process of a container: it receives no signal without a handler, and even SIGKILL
//! from within the container does not reach it.
//!
//! Needs root, to create a process namespace; otherwise the tests fail with a message.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};
use testkit::wait::eventually_blocking;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use token_host::protocol::{Request, VERSION};

use super::{
    forged::Forger,
    harness::{PROGRAM, Site},
};
use testkit::{faulty::MODULE, softhsm::module_path};

/// Call timeout in these tests.
const CALL: Duration = Duration::from_secs(1);

/// A host that `unshare` made the first process of a namespace.
struct Container {
    site: Site,
    unshare: Child,
    host: Pid,
}

impl Drop for Container {
    fn drop(&mut self) {
        let _already_gone = kill(self.host, Signal::SIGKILL);
        let _already_gone = self.unshare.wait();
    }
}

impl Container {
    fn start() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "making a process namespace needs root: run the tests as root, or leave these out with --skip first_process"
        );
        let site = Site::new();
        let directory = site.directory.path().to_owned();
        let mut settings = site.host_settings();
        settings.uri = settings.uri.replace(&module_path().display().to_string(), &MODULE.display().to_string());
        settings.call_timeout = CALL;
        let config = directory.join("token-host.toml");
        fs::write(&config, toml::to_string(&settings).unwrap()).unwrap();
        let unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--", PROGRAM, "--config"])
            .arg(&config)
            .arg("--socket")
            .arg(directory.join("host.sock"))
            .envs(site.environment())
            .env("FAULTY_TOKEN_MODULE", module_path())
            .env("FAULTY_TOKEN_CONTROL", directory.join("faults"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut container = Self { site, unshare, host: Pid::from_raw(0) };
        eventually_blocking("the host does not listen", || container.socket().exists());
        let id = container.unshare.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        container.host = Pid::from_raw(children.trim().parse().unwrap());
        container
    }

    fn socket(&self) -> PathBuf {
        self.site.directory.path().join("host.sock")
    }

    fn connect(&self) -> Forger {
        Forger::connect(&self.socket())
    }

    /// `unshare` ends like its child: with its status, or by a signal.
    fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.unshare.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < limit, "the host does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn host_without_a_daemon_ends_on_sigterm() {
    let mut container = Container::start();
    kill(container.host, Signal::SIGTERM).unwrap();
    assert!(container.ends_within(Duration::from_secs(10)).success());
}

#[test]
fn host_with_a_daemon_closes_its_sessions_on_sigterm() {
    let mut container = Container::start();
    let mut daemon = container.connect();
    daemon.hello(b"");
    kill(container.host, Signal::SIGTERM).unwrap();
    assert!(container.ends_within(Duration::from_secs(10)).success());
    assert_eq!(daemon.ask(&Request::Ping), None, "the host still answers");
}

#[test]
fn host_with_a_hanging_module_ends() {
    let mut container = Container::start();
    fs::write(container.site.directory.path().join("faults"), "C_OpenSession hang").unwrap();
    let mut daemon = container.connect();
    assert_eq!(daemon.ask(&Request::Hello { version: VERSION, settings: b"" }), None);
    assert!(!container.ends_within(CALL + Duration::from_secs(10)).success());
}
