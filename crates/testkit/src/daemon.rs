//! The product as operators run it: the real binary, a separate token, `import`, a configuration, `serve`.
//!
//! A [`Site`] is everything on disk; a [`Daemon`] is one run of `serve` on it, killed when dropped.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use bench::agent::{self, TokenIssuer, Workload};
use der::{DecodePem, Encode};
use nix::{sys::signal::Signal, unistd::Pid};
use pki::PublicKey;
use serde_json::Value;
use token::key::hex;
use tonic::{Status, transport::Channel};
use x509_cert::Certificate;

pub use super::ask::Ask;
use super::{plug_in::PlugIn, program, softhsm::Directory, wait::eventually_blocking};

/// Timeout of all operations, generous for busy machines.
pub const SOON: Duration = Duration::from_secs(60);

/// The JWT issuer configured for each site.
pub const ISSUER: &str = "https://issuer.test";
/// The name of the serving certificate.
pub const SERVER: &str = "istiod.istio-system.svc";
/// The default workload.
pub const IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/httpbin";

/// Origin of the log in its checkpoints.
const ORIGIN: &str = "test.invalid/istio-hsm-ca";

const LABEL: &str = "istio-ca";

/// A directory with token, bundle, JWT issuer and log.
pub struct Site {
    pub softhsm: Directory,
    pub issuer: TokenIssuer,
    issuer_key: String,
    runs: AtomicU32,
}

/// Shifts the wall clock of a program.
static FAKETIME: LazyLock<PathBuf> = LazyLock::new(|| {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(fs::exists(&library).unwrap(), "{library} is missing; run: make deps");
    library.into()
});

/// The load generator, built in the same directory by `cargo test --workspace`.
pub static BENCH_PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = program("istio-hsm-ca-bench");
    assert!(program.exists(), "{} is missing; run: cargo build -p istio-hsm-ca-bench", program.display());
    program
});

impl Site {
    /// A token without a key, and no bundle.
    pub fn bare() -> Self {
        let softhsm = Directory::new();
        softhsm.init_token(LABEL);
        let issuer_key = new_issuer_key();
        let issuer = issuer(&issuer_key, ISSUER, "istio-ca");
        let keys = serde_json::to_vec(&issuer.key_set()).unwrap();
        fs::write(softhsm.path().join("jwks.json"), keys).unwrap();
        Self { softhsm, issuer, issuer_key, runs: AtomicU32::new(0) }
    }

    /// Imports a plug-in CA into its token.
    pub fn new(plug_in: &PlugIn) -> Self {
        let site = Self::bare();
        site.import(plug_in);
        site
    }

    /// A copy with its own token and files.
    pub fn duplicate(&self) -> Self {
        let softhsm = self.softhsm.duplicate();
        fs::copy(self.softhsm.path().join("jwks.json"), softhsm.path().join("jwks.json")).unwrap();
        let bundle = softhsm.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        for file in fs::read_dir(self.bundle()).unwrap().flatten() {
            fs::copy(file.path(), bundle.join(file.file_name())).unwrap();
        }
        let issuer = issuer(&self.issuer_key, ISSUER, "istio-ca");
        Self { softhsm, issuer, issuer_key: self.issuer_key.clone(), runs: AtomicU32::new(0) }
    }

    /// The log's intents, by the SHA-256 of the TBSCertificate in hexadecimal.
    pub fn intents(&self) -> HashMap<String, Value> {
        let mut intents = HashMap::new();
        for file in fs::read_dir(self.log()).unwrap().flatten() {
            if file.path().extension().is_none_or(|extension| extension != "jsonl") {
                continue;
            }
            // An open segment has preallocated space after its last line.
            for line in fs::read_to_string(file.path()).unwrap().trim_end_matches('\0').lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                if line["type"] == "intent" {
                    let tbs = BASE64_STANDARD.decode(line["tbs"].as_str().unwrap()).unwrap();
                    intents.insert(hex(digest(&SHA256, &tbs).as_ref()), line);
                }
            }
        }
        intents
    }

    /// CKA_ID of the CA's key, in hexadecimal.
    pub fn key_id(&self) -> String {
        let ca = Certificate::from_pem(fs::read(self.bundle().join("ca-cert.pem")).unwrap()).unwrap();
        let spki = ca.tbs_certificate().subject_public_key_info().to_der().unwrap();
        hex(&PublicKey::from_spki_der(&spki).unwrap().key_id())
    }

    /// The URI of the token.
    pub fn uri(&self) -> String {
        self.softhsm.uri(LABEL)
    }

    /// The report of `log verify` with the key of the receipt.
    pub fn verified_log(&self) -> Value {
        let receipts = fs::read_dir(self.bundle())
            .unwrap()
            .flatten()
            .filter_map(|entry| serde_json::from_str::<Value>(&fs::read_to_string(entry.path()).ok()?).ok());
        let keys: Vec<String> =
            receipts.filter_map(|receipt| receipt["log_verifier_key"].as_str().map(str::to_owned)).collect();
        let [key] = keys.as_slice() else { panic!("the receipts name the log's keys {keys:?}") };
        let directory = self.log().display().to_string();
        let output = self.run(&["--output", "json", "log", "verify", "--directory", &directory, "--verifier-key", key]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["sound"], true, "{report}");
        assert_eq!(report["signatures_checked"], true, "{report}");
        report
    }

    /// Runs the real `import`: the key into the token, the files into the bundle.
    pub fn import(&self, plug_in: &PlugIn) {
        self.import_to(plug_in, &self.bundle());
    }

    /// `import` with another directory for the public files.
    pub fn import_to(&self, plug_in: &PlugIn, bundle: &Path) {
        let from = tempfile::tempdir_in(self.softhsm.path()).unwrap();
        plug_in.write(from.path());
        let token = self.softhsm.uri(LABEL);
        let (from, bundle) = (from.path().to_str().unwrap(), bundle.to_str().unwrap());
        let output =
            self.run(&["import", "--from", from, "--token", &token, "--bundle", bundle, "--log-origin", ORIGIN]);
        assert!(output.status.success(), "import: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs the binary to completion.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs istio-hsm-ca-bench to completion.
    pub fn run_bench(&self, arguments: &[&str]) -> Output {
        self.with_token(&BENCH_PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn command(&self) -> Command {
        self.with_token(&program("istio-hsm-ca"))
    }

    fn with_token(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.softhsm.conf());
        let clock = self.clock_file();
        if clock.exists() {
            command.env("LD_PRELOAD", &*FAKETIME).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.envs([("FAKETIME_NO_CACHE", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
        }
        command
    }

    /// Sets the wall clock of all programs of this site, also of those that run if they started with a set clock: an
    /// offset such as `+20h` or `+300d`. The monotonic clock stays.
    pub fn set_clock(&self, offset: &str) {
        // Replaced, so that no reader finds it empty.
        let new = self.softhsm.path().join("clock.new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(new, self.clock_file()).unwrap();
    }

    fn clock_file(&self) -> PathBuf {
        self.softhsm.path().join("clock")
    }

    pub fn bundle(&self) -> PathBuf {
        self.softhsm.path().join("bundle")
    }

    pub fn log(&self) -> PathBuf {
        self.softhsm.path().join("log")
    }

    pub fn socket(&self) -> PathBuf {
        self.softhsm.path().join("admin.sock")
    }

    /// The denylist, in a directory without other changes.
    pub fn denylist(&self) -> PathBuf {
        self.softhsm.path().join("auth/denylist")
    }

    /// Replaces the denylist atomically.
    pub fn deny(&self, text: &str) {
        let beside = self.softhsm.path().join("auth/.denylist");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.denylist()).unwrap();
    }

    pub fn roots(&self) -> String {
        fs::read_to_string(self.bundle().join("root-cert.pem")).unwrap()
    }

    /// A workload's JWT, valid for an hour.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        mint(&self.issuer, namespace, account, process::clock::now())
    }

    /// An issuer with the configured issuer's key but another name or audience.
    pub fn issuer_as(&self, name: &str, audience: &str) -> TokenIssuer {
        issuer(&self.issuer_key, name, audience)
    }

    /// The JWT issuer's key in a file, for a program that mints JWTs.
    pub fn issuer_key_file(&self) -> PathBuf {
        let file = self.softhsm.path().join("issuer-key.pem");
        fs::write(&file, &self.issuer_key).unwrap();
        file
    }

    /// Writes the configuration: the default one overridden by `more` (TOML).
    pub fn configure(&self, more: &str) -> PathBuf {
        let path = |path: PathBuf| path.display().to_string();
        fs::create_dir_all(self.denylist().parent().unwrap()).unwrap();
        self.deny("");
        let usual = format!(
            r#"
[ca]
bundle = "{bundle}"
[[token]]
name = "softhsm"
uri = "{token}"
[listen]
address = "127.0.0.1:0"
[serving]
dns_names = ["{SERVER}"]
ip_addresses = ["127.0.0.1"]
[[auth.jwt]]
issuer = "{ISSUER}"
keys = {{ file = {{ path = "{jwks}" }} }}
trust_domain = "cluster.local"
[auth.client_certificate]
denylist = "{denylist}"
[log]
directory = "{log}"
origin = "{ORIGIN}"
[admin]
address = "127.0.0.1:0"
status_address = "127.0.0.1:0"
socket = "{socket}"
[logging]
format = "json"
[rate_limits]
per_identity = 1000000
total = 1000000
"#,
            bundle = path(self.bundle()),
            token = self.softhsm.uri(LABEL),
            jwks = path(self.softhsm.path().join("jwks.json")),
            denylist = path(self.denylist()),
            log = path(self.log()),
            socket = path(self.socket()),
        );
        let mut table: toml::Table = usual.parse().unwrap();
        overlay(&mut table, more.parse().unwrap());
        let file = self.softhsm.path().join("istio-hsm-ca.toml");
        fs::write(&file, toml::to_string(&table).unwrap()).unwrap();
        file
    }

    /// Starts `serve` and waits until it is ready.
    pub fn serve(&self, more: &str) -> Daemon {
        let daemon = self.spawn(more);
        daemon.wait_ready();
        daemon
    }

    /// Runs `serve`, which must fail; returns its output.
    pub fn does_not_start(&self, more: &str) -> String {
        let config = self.configure(more);
        let stderr = self.softhsm.path().join("stderr.refused");
        let mut child = self
            .command()
            .args(["serve", "--config", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stderr(fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("it started:\n{}", fs::read_to_string(&stderr).unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(1));
        fs::read_to_string(&stderr).unwrap()
    }

    /// Starts `serve` and waits until it listens, ready or not.
    pub fn spawn(&self, more: &str) -> Daemon {
        let mut daemon = self.spawn_without_waiting(more);
        daemon.admin = daemon.address_of("admin");
        daemon.address = daemon.address_of("listening");
        daemon
    }

    /// Starts `serve`. The daemon's addresses are those of the configuration only if `more` sets them and the caller
    /// copies them.
    pub fn spawn_without_waiting(&self, more: &str) -> Daemon {
        let config = self.configure(more);
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let log = self.softhsm.path().join(format!("stderr.{run}"));
        let child = self
            .command()
            .args(["serve", "--config", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let roots = self.roots();
        Daemon { child, log, address: nowhere, admin: nowhere, roots, token: self.token("demo", "httpbin") }
    }
}

/// A new key for a JWT issuer, PEM.
pub fn new_issuer_key() -> String {
    TokenIssuer::generate_key().unwrap().to_string()
}

/// A JWT issuer.
pub fn issuer(key: &str, name: &str, audience: &str) -> TokenIssuer {
    TokenIssuer::new(key.as_bytes(), name.into(), audience.into()).unwrap()
}

/// A JWT valid for an hour from `at`.
pub fn mint(issuer: &TokenIssuer, namespace: &str, account: &str, at: SystemTime) -> String {
    let workload = Workload { namespace: namespace.into(), service_account: account.into() };
    issuer.mint(&workload, at, Duration::from_secs(3600)).unwrap()
}

fn overlay(table: &mut toml::Table, more: toml::Table) {
    for (key, value) in more {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => overlay(old, new),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// A running `serve`.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// The roots that clients trust.
    pub roots: String,
    /// The default workload's JWT.
    pub token: String,
}

impl Daemon {
    /// Its complete standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its log lines.
    pub fn lines(&self) -> Vec<Value> {
        // Lines are collected for 20 ms before they are written.
        std::thread::sleep(Duration::from_millis(100));
        self.stderr().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a log line that matches.
    pub fn wait_line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait("a log line", || self.lines().into_iter().find(&wanted))
    }

    fn address_of(&mut self, message: &str) -> SocketAddr {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(line) = self.lines().iter().find(|line| line["message"] == message) {
                return line["address"].as_str().unwrap().parse().unwrap();
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended:\n{}", self.stderr());
            assert!(Instant::now() < deadline, "no line {message:?}:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait<T>(&self, what: &str, find: impl FnMut() -> Option<T>) -> T {
        eventually_blocking(fmt::from_fn(|f| write!(f, "{what}:\n{}", self.stderr())), find)
    }

    pub fn wait_ready(&self) {
        self.wait("readiness", || (self.get("/readyz").0 == 200).then_some(()));
    }

    /// GET on the admin address: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        Self::get_at(self.admin, path)
    }

    /// The status page as shown without JavaScript.
    pub fn status_page(&self) -> String {
        let line = self.wait_line(|line| line["message"] == "status page");
        let address = line["page"].as_str().unwrap().trim_start_matches("http://").trim_end_matches('/');
        Self::get_at(address.parse().unwrap(), "/").1
    }

    fn get_at(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGTERM and waits until it has ended.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        (self.ended(), self.stderr())
    }

    /// Opens a connection, optionally with a client certificate and key in PEM.
    pub async fn connect(&self, client: Option<(&str, &str)>) -> Channel {
        let client = client.map(|(chain, key)| (chain.as_bytes(), key.as_bytes()));
        let tls = agent::Tls::new(self.roots.as_bytes(), SERVER, client).unwrap();
        agent::connect(self.address, &tls).await.unwrap()
    }

    /// The default workload's request, with its JWT.
    pub fn ask(&self) -> Ask {
        Ask::new(IDENTITY).token(&self.token)
    }

    /// Sends a request on a new connection without a client certificate.
    pub async fn send(&self, ask: Ask) -> Result<Vec<String>, Status> {
        ask.send(self.connect(None).await).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}
