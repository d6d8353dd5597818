//! The host under a separate user: what the daemon's user can and cannot do.
//!
//! Needs root, to start processes as other users; otherwise the tests fail with a message.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually_blocking;

use bench::agent::{self, KeyKind, TokenIssuer, Workload, WorkloadKey};
use istio_hsm_ca::{
    bundle_files::BundlePaths,
    token_pool::{HostEndpoint, Phase, TokenSettings},
};
use pki::{Bundle, Issuer};
use process::clock;
use token_host::protocol::{Request, VERSION};

use super::{
    forged::{Forger, refuses_all},
    harness::{LOG_ORIGIN, Mill, PATIENCE, PROGRAM, Site, is, pool},
};

/// The users of the host, the daemon, and an unrelated process: numbers that no system assigns.
const HOST: u32 = 64_211;
const DAEMON: u32 = 64_212;
const STRANGER: u32 = 64_213;

/// The name of the daemon's own certificate, which the host permits.
const SERVER: &str = "ca.test";

/// Where a helper process finds the public files.
const SHARED: &str = "TEST_TOKEN_HOST_SHARED";

struct Stage {
    shared: tempfile::TempDir,
    host: Child,
    site: Site,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _already_gone = self.host.kill();
        let _already_gone = self.host.wait();
    }
}

/// A process that is killed when dropped.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _already_gone = self.0.wait();
    }
}

fn give(path: &Path, uid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid);
        }
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Copies a program for all users, in a separate process: a child that another test starts meanwhile would inherit a
/// file that this process has open for writing, and then the program could not be executed ("Text file busy").
fn install(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap();
    assert!(status.success());
}

/// A running host with its own user.
fn stage() -> Stage {
    assert!(
        nix::unistd::geteuid().is_root(),
        "starting processes as other users needs root: run the tests as root, or leave these out with --skip supervised"
    );
    let site = Site::new();
    let shared = tempfile::tempdir().unwrap();
    mode(shared.path(), 0o755);
    let bundle = shared.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        fs::copy(site.bundle.join(file), bundle.join(file)).unwrap();
        mode(&bundle.join(file), 0o644);
    }
    let run = shared.path().join("run");
    fs::create_dir(&run).unwrap();
    mode(&run, 0o755);
    give(&run, HOST);
    // The program may be in a directory inaccessible to other users, and may be executable by its owner only (umask
    // 077).
    let program = shared.path().join("istio-hsm-ca-token-host");
    install(Path::new(PROGRAM), &program);
    install(Path::new(env!("CARGO_BIN_EXE_istio-hsm-ca")), &shared.path().join("istio-hsm-ca"));
    let directory = site.directory.path();
    let private = shared.path().join("private");
    fs::create_dir(&private).unwrap();
    for entry in ["tokens", "pin"] {
        fs::rename(directory.join(entry), private.join(entry)).unwrap_or_else(|_| {
            let copied = Command::new("cp").arg("-a").arg(directory.join(entry)).arg(&private).status().unwrap();
            assert!(copied.success());
        });
    }
    let conf = format!("directories.tokendir = {}\nobjectstore.backend = file\n", private.join("tokens").display());
    fs::write(private.join("softhsm2.conf"), conf).unwrap();
    let config = format!(
        "uri = \"pkcs11:token={}?module-path={}&pin-source=file:{}\"\npin_marker = {:?}\nbundle = {:?}\n\
         max_validity = \"24h\"\ntrust_domains = [\"cluster.local\"]\ndns_names = [\"{SERVER}\"]\n\
         call_timeout = \"5s\"\nlog_origins = [\"{LOG_ORIGIN}\"]\ncheckpoint_file = {:?}\n",
        super::harness::TOKEN,
        testkit::softhsm::module_path().display(),
        private.join("pin").display(),
        private.join("pin-refused"),
        bundle,
        private.join("signed-checkpoints"),
    );
    fs::write(private.join("token-host.toml"), config).unwrap();
    give(&private, HOST);
    mode(&private, 0o700);
    let host = start(&program, &private, &run.join("host.sock"));
    fs::write(shared.path().join("host.pid"), host.id().to_string()).unwrap();
    let log = shared.path().join("log");
    fs::create_dir(&log).unwrap();
    give(&log, DAEMON);
    Stage { shared, host, site }
}

fn start(program: &Path, private: &Path, socket: &Path) -> Child {
    let host = Command::new(program)
        .args(["--uid", &DAEMON.to_string(), "--config"])
        .arg(private.join("token-host.toml"))
        .arg("--socket")
        .arg(socket)
        .env("SOFTHSM2_CONF", private.join("softhsm2.conf"))
        .stdin(Stdio::null())
        .uid(HOST)
        .gid(HOST)
        .spawn()
        .unwrap();
    eventually_blocking("the host does not listen", || socket.exists());
    host
}

/// Runs one of the ignored tests below as another user.
fn run_as(uid: u32, test: &str, stage: &Stage) {
    // The test's own program may be in a directory inaccessible to other users, too.
    let program = stage.shared.path().join("test");
    if !program.exists() {
        install(&std::env::current_exe().unwrap(), &program);
    }
    let output = Command::new(program)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(SHARED, stage.shared.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .uid(uid)
        .gid(uid)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn shared() -> Option<PathBuf> {
    std::env::var_os(SHARED).map(PathBuf::from)
}

fn issuer(shared: &Path) -> Arc<Issuer> {
    let files = BundlePaths::in_directory(&shared.join("bundle")).read().unwrap();
    Arc::clone(Bundle::check(files, clock::now()).unwrap().issuer())
}

fn token(shared: &Path, uid: Option<u32>) -> TokenSettings {
    TokenSettings {
        name: Arc::from("supervised"),
        endpoint: HostEndpoint::Socket { path: shared.join("run/host.sock"), uid },
        call_timeout: Duration::from_secs(5),
        keep_alive: Duration::from_secs(1),
        log_only: false,
    }
}

fn denied(path: &Path) {
    let error = fs::File::open(path).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{}", path.display());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a helper process"]
async fn helper_daemon() {
    let Some(shared) = shared() else { return };
    let mut settings = pool(vec![token(&shared, Some(HOST))]);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::proven(settings, &issuer(&shared)).await;
    for _ in 0..20 {
        mill.issue().await.unwrap();
    }
    // What would allow this user to sign.
    let private = shared.join("private");
    for secret in ["pin", "tokens", "softhsm2.conf", "token-host.toml"] {
        denied(&private.join(secret));
    }
    let process = PathBuf::from("/proc").join(fs::read_to_string(shared.join("host.pid")).unwrap());
    for secret in ["mem", "environ", "maps"] {
        denied(&process.join(secret));
    }
    assert!(fs::read_dir(process.join("fd")).is_err());
    let host = i32::try_from(mill.pool.snapshot().len()).unwrap();
    assert_eq!(host, 1);
    mill.end().await;
    // The process that serves a socket must have the configured user.
    let mill = Mill::start(pool(vec![token(&shared, Some(0))]), &issuer(&shared));
    mill.until("down", |health| is(0, Phase::Down)(health) && health.reason().contains("not by user 0")).await;
}

#[test]
#[ignore = "a helper process"]
fn helper_forger() {
    let Some(shared) = shared() else { return };
    let mut forger = Forger::connect(&shared.join("run/host.sock"));
    // A supervised host ignores what a daemon sends to its child.
    forger.hello(br#"{"max_validity": "4000000000s", "allow_intermediate": true}"#);
    refuses_all(&mut forger, &issuer(&shared));
}

#[test]
#[ignore = "a helper process"]
fn helper_stranger() {
    let Some(shared) = shared() else { return };
    let mut forger = Forger::connect(&shared.join("run/host.sock"));
    assert_eq!(forger.ask(&Request::Hello { version: VERSION, settings: b"" }), None);
}

#[test]
fn a_daemon_of_another_user_signs_and_sees_no_secret() {
    let stage = stage();
    run_as(DAEMON, "supervised::helper_daemon", &stage);
}

#[test]
fn a_forged_daemon_of_another_user_gets_nothing_either() {
    let stage = stage();
    run_as(DAEMON, "supervised::helper_forger", &stage);
}

#[test]
fn unlisted_user_is_refused_without_effect() {
    let stage = stage();
    run_as(STRANGER, "supervised::helper_stranger", &stage);
    run_as(DAEMON, "supervised::helper_daemon", &stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_daemon_serves_agents_as_another_user_than_its_host() {
    let stage = stage();
    let shared = stage.shared.path();
    let key = TokenIssuer::generate_key().unwrap();
    let tokens = TokenIssuer::new(key.as_bytes(), "https://issuer.test".into(), "istio-ca".into()).unwrap();
    fs::write(shared.join("jwks.json"), serde_json::to_vec(&tokens.key_set()).unwrap()).unwrap();
    let path = |name: &str| shared.join(name).display().to_string();
    let config = format!(
        "[ca]\nbundle = \"{}\"\n[[token]]\nname = \"apart\"\nsocket = \"{}\"\nsocket_uid = {HOST}\n\
         [listen]\naddress = \"127.0.0.1:0\"\n[serving]\ndns_names = [\"{SERVER}\"]\n\
         [[auth.jwt]]\nissuer = \"https://issuer.test\"\nkeys = {{ file = {{ path = \"{}\" }} }}\n\
         trust_domain = \"cluster.local\"\n[log]\ndirectory = \"{}\"\norigin = \"apart.test/log\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\nsocket = \"{}\"\n[logging]\nformat = \"json\"\n",
        path("bundle"),
        path("run/host.sock"),
        path("jwks.json"),
        path("log/issuance"),
        path("log/admin.sock"),
    );
    fs::write(shared.join("istio-hsm-ca.toml"), config).unwrap();
    let daemon = Command::new(shared.join("istio-hsm-ca"))
        .args(["serve", "--config", &path("istio-hsm-ca.toml")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(shared.join("stderr")).unwrap())
        .current_dir("/")
        .uid(DAEMON)
        .gid(DAEMON)
        .spawn();
    let mut daemon = Ending(daemon.unwrap());
    let began = Instant::now();
    let said = || fs::read_to_string(shared.join("stderr")).unwrap();
    let ready = |line: &&str| line.contains("\"message\":\"ready\"") && line.contains("tokens");
    let address = loop {
        let text = said();
        let listening = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let address = listening
            .filter(|line| line["message"] == "listening")
            .find_map(|line| Some(line["address"].as_str()?.to_owned()));
        if let (Some(address), Some(_)) = (address, text.lines().find(ready)) {
            break address.parse().unwrap();
        }
        assert!(began.elapsed() < PATIENCE && daemon.0.try_wait().unwrap().is_none(), "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let tls = agent::Tls::new(stage.site.issuer.roots_pem().as_bytes(), SERVER, None).unwrap();
    let workload = Workload { namespace: "default".into(), service_account: "httpbin".into() };
    let token = tokens.mint(&workload, clock::now(), Duration::from_secs(600)).unwrap();
    let csr = WorkloadKey::generate(KeyKind::P256).unwrap().request(super::harness::WORKLOAD).unwrap();
    let reply = loop {
        let asked = async {
            let channel = agent::connect(address, &tls).await.map_err(|error| error.to_string())?;
            let reply = agent::create_certificate(channel, Some(&token), "Kubernetes", csr.clone(), 3600).await;
            reply.map_err(|status| status.to_string())
        };
        match asked.await {
            Ok(reply) => break reply,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}: {}", said()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let leaf = shared.join("leaf.pem");
    fs::write(&leaf, &reply[0]).unwrap();
    let judged = Command::new("openssl")
        .arg("verify")
        .arg("-CAfile")
        .arg(shared.join("bundle/root-cert.pem"))
        .arg(&leaf)
        .output();
    assert!(judged.unwrap().status.success(), "openssl does not verify what the daemon sent");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    assert!(status.contains(&format!("\nUid:\t{DAEMON}\t{DAEMON}\t{DAEMON}\t{DAEMON}\n")), "{status}");
}

/// A host is not dumpable: another process of its user, unless root, cannot read its memory.
#[test]
fn not_even_a_process_of_the_hosts_user_looks_into_it() {
    let stage = stage();
    run_as(HOST, "supervised::helper_neighbour", &stage);
}

#[test]
#[ignore = "a helper process"]
fn helper_neighbour() {
    let Some(shared) = shared() else { return };
    let hides = |process: &str| {
        let process = Path::new("/proc").join(process);
        for secret in ["mem", "environ", "maps"] {
            denied(&process.join(secret));
        }
        assert!(fs::read_dir(process.join("fd")).is_err());
    };
    hides(&fs::read_to_string(shared.join("host.pid")).unwrap());
    // The other form, as a child.
    let private = shared.join("private");
    let settings = token_host::Settings::read(&private.join("token-host.toml")).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = Command::new(shared.join("istio-hsm-ca-token-host"))
        .args(["--child", "neighbour"])
        .env("SOFTHSM2_CONF", private.join("softhsm2.conf"))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn();
    let child = Ending(child.unwrap());
    let mut forger = Forger::new(ours);
    forger.hello(&serde_json::to_vec(&settings).unwrap());
    hides(&child.0.id().to_string());
    // For comparison: this process itself, an ordinary one, can be read.
    fs::File::open("/proc/self/mem").unwrap();
    fs::read_dir(format!("/proc/{}/fd", std::process::id())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervised_host_survives_its_daemons_and_daemons_survive_it() {
    let mut stage = stage();
    let path = stage.shared.path().to_owned();
    // Root is not listed; the host's own user is always served, so this daemon runs as a helper.
    run_as(HOST, "supervised::helper_daemon_of_the_hosts_user", &stage);
    run_as(HOST, "supervised::helper_daemon_of_the_hosts_user", &stage);
    assert!(stage.host.try_wait().unwrap().is_none(), "the host ended with its daemon");
    stage.host.kill().unwrap();
    stage.host.wait().unwrap();
    stage.host = start(&path.join("istio-hsm-ca-token-host"), &path.join("private"), &path.join("run/host.sock"));
    run_as(HOST, "supervised::helper_daemon_of_the_hosts_user", &stage);
    assert_eq!(stage.site.issuer.roots_pem(), issuer(&path).roots_pem());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a helper process"]
async fn helper_daemon_of_the_hosts_user() {
    let Some(shared) = shared() else { return };
    // Daemons that connect and disconnect at once: each finds the host ready.
    for _ in 0..5 {
        let mut settings = pool(vec![token(&shared, None)]);
        settings.recovery_wait = PATIENCE;
        let mill = Mill::proven(settings, &issuer(&shared)).await;
        mill.issue().await.unwrap();
        mill.end().await;
    }
    let mill = Mill::proven(pool(vec![token(&shared, None)]), &issuer(&shared)).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        mill.issue().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(mill.snapshot(0).hosts, 1, "the host was ended while it served");
    // A second daemon is rejected at once, without affecting the first, and takes over when the first one ends.
    let second = Mill::start(pool(vec![token(&shared, None)]), &issuer(&shared));
    second.until("reported", |health| is(0, Phase::Down)(health) && health.reason().contains("another daemon")).await;
    for _ in 0..10 {
        mill.issue().await.unwrap();
    }
    assert_eq!(mill.snapshot(0).hosts, 1);
    mill.end().await;
    for proof in second.prove().await {
        assert_eq!(proof.result, Ok(()));
    }
    second.issue().await.unwrap();
    second.end().await;
}
