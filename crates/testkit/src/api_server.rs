//! An etcd and a kube-apiserver that run while this process lives.
//!
//! Each program runs under a shell that kills it when our end of its pipe closes, so that killed tests leave nothing
//! running.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use bench::agent::TokenIssuer;
use nix::{sys::signal::Signal, unistd::Pid};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::{root, tmp};

/// Timeout of all operations, generous for busy machines.
pub const SOON: Duration = Duration::from_secs(180);

/// The cluster that most tests share, each with its own namespace.
pub static EAST: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://east.kube.test"));
/// Another cluster with another issuer.
pub static WEST: LazyLock<ApiServer> = LazyLock::new(|| ApiServer::start("https://west.kube.test"));

/// A cluster with the newest Kubernetes, which serves PodCertificateRequests and ClusterTrustBundles in v1.
pub static NEWEST: LazyLock<ApiServer> =
    LazyLock::new(|| ApiServer::with("https://newest.kube.test", Version::Newest, true));

/// Which Kubernetes runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one of most tests.
    Usual,
    /// The newest of tests/kube/api-server.sh.
    Newest,
}

/// Serves PodCertificateRequests and ClusterTrustBundles, which are beta in Kubernetes 1.36 and off by default.
const BETA: [&str; 2] = [
    "--feature-gates=PodCertificateRequest=true,ClusterTrustBundle=true",
    "--runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=true,certificates.k8s.io/v1beta1/clustertrustbundles=true",
];

/// An API server and its etcd.
pub struct ApiServer {
    directory: tempfile::TempDir,
    /// `iss` of its JWTs.
    pub issuer: &'static str,
    /// Its URL.
    pub url: String,
    /// The version of certificates.k8s.io with PodCertificateRequests and ClusterTrustBundles.
    pub certificates: &'static str,
    /// The CA of its own certificate and of its users' certificates.
    pub ca: String,
    etcd: Vec<String>,
    server: Mutex<Vec<String>>,
    running: Mutex<Vec<Program>>,
    issuing: CertifiedIssuer<'static, KeyPair>,
    /// The key that signs service account JWTs, PEM.
    pub token_key: String,
}

impl ApiServer {
    /// Starts an API server of the usual version and waits until it is ready.
    pub fn start(issuer: &'static str) -> Self {
        Self::new(issuer, Version::Usual, true, &[], &[])
    }

    /// Starts an API server; with or without the beta interfaces of certificates.k8s.io.
    pub fn with(issuer: &'static str, version: Version, beta: bool) -> Self {
        Self::new(issuer, version, beta, &[], &[])
    }

    /// Starts an API server whose certificate has additional names or addresses, with additional arguments, and waits
    /// until it is ready. Of an argument that is given twice, the API server takes the last.
    pub fn start_with(issuer: &'static str, names: &[&str], arguments: &[&str]) -> Self {
        Self::new(issuer, Version::Usual, true, names, arguments)
    }

    fn new(issuer: &'static str, version: Version, beta: bool, names: &[&str], arguments: &[&str]) -> Self {
        let binaries = binaries(&[], &["etcd", "kube-apiserver", "kubectl"]);
        let kube_apiserver = match version {
            Version::Usual => binaries.join("kube-apiserver"),
            Version::Newest => newest().join("kube-apiserver"),
        };
        // Uses memory if available: etcd writes a lot, and none of it needs to be durable.
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { tmp() };
        let directory = tempfile::Builder::new().prefix("istio-hsm-ca-kube-").tempdir_in(parent).unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();

        let issuing = authority();
        fs::write(path("ca.crt"), issuing.pem()).unwrap();
        let (certificate, key) = signed(&issuing, "kube-apiserver", None, names);
        fs::write(path("server.crt"), certificate).unwrap();
        fs::write(path("server.key"), key).unwrap();
        let token_key = TokenIssuer::generate_key().unwrap().to_string();
        fs::write(path("token.key"), &token_key).unwrap();
        let public = KeyPair::from_pem(&token_key).unwrap().public_key_pem();
        fs::write(path("token.pub"), public).unwrap();

        let [client, peer, secure] = ports();
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = [
            binaries.join("etcd").display().to_string(),
            format!("--data-dir={}", path("etcd")),
            "--unsafe-no-fsync".into(),
            "--log-level=error".into(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ];
        let mut server = vec![
            kube_apiserver.display().to_string(),
            format!("--etcd-servers={client}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={secure}"),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--client-ca-file={}", path("ca.crt")),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            format!("--service-account-issuer={issuer}"),
            format!("--service-account-key-file={}", path("token.pub")),
            format!("--service-account-signing-key-file={}", path("token.key")),
            "--service-cluster-ip-range=10.96.0.0/24".into(),
            "--endpoint-reconciler-type=none".into(),
            "--profiling=false".into(),
            "--v=1".into(),
        ];
        if beta && version == Version::Usual {
            server.extend(BETA.map(str::to_owned));
        }
        let this = Self {
            url: format!("https://127.0.0.1:{secure}"),
            ca: issuing.pem(),
            etcd: etcd.into(),
            server: Mutex::new(
                server.into_iter().chain(arguments.iter().map(|argument| (*argument).to_owned())).collect(),
            ),
            running: Mutex::default(),
            issuing,
            token_key,
            issuer,
            certificates: if version == Version::Newest { "v1" } else { "v1beta1" },
            directory,
        };
        this.run();
        this
    }

    /// Restarts it with the beta interfaces of certificates.k8s.io, as an operator enables them.
    pub fn enable_beta(&self) {
        self.kill();
        self.server.lock().unwrap().extend(BETA.map(str::to_owned));
        self.run();
    }

    /// Starts both programs with the data on disk, and waits until the API server is ready.
    pub fn run(&self) {
        let directory = self.directory.path();
        let etcd = Program::start(&self.etcd, directory, "etcd.log");
        let server = Program::start(&self.server.lock().unwrap(), directory, "kube-apiserver.log");
        *self.running.lock().unwrap() = vec![etcd, server];
        self.wait_ready();
    }

    /// Waits until the API server is ready.
    pub fn wait_ready(&self) {
        let (certificate, key) = self.user("harness", Some("system:masters"));
        let client = reqwest::Client::builder()
            .add_root_certificate(reqwest::Certificate::from_pem(self.ca.as_bytes()).unwrap())
            .identity(reqwest::Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap())
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        let url = format!("{}/readyz", self.url);
        let asked = async move {
            let deadline = Instant::now() + SOON;
            let mut last = String::new();
            while Instant::now() < deadline {
                match client.get(&url).send().await {
                    Ok(answer) if answer.status().is_success() => return Ok(()),
                    Ok(answer) => last = answer.text().await.unwrap_or_default(),
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(last)
        };
        // A separate thread, since the caller may be in a runtime.
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = std::thread::spawn(move || runtime().block_on(asked)).join().unwrap();
        if let Err(last) = result {
            panic!("the API server is not ready: {last}\n{}", self.log());
        }
    }

    /// The last output of the API server.
    pub fn log(&self) -> String {
        let text = ["etcd.log", "kube-apiserver.log"]
            .map(|name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default());
        let lines: Vec<&str> = text.iter().flat_map(|text| text.lines()).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Kills both programs; their data stays on disk.
    pub fn kill(&self) {
        self.running.lock().unwrap().clear();
    }

    /// Stops or continues the API server only; while stopped it accepts connections but does not answer.
    pub fn signal(&self, signal: Signal) {
        for program in self.running.lock().unwrap().iter().skip(1) {
            nix::sys::signal::kill(program.pid, signal).unwrap();
        }
    }

    /// A user's certificate and key, PEM.
    pub fn user(&self, name: &str, group: Option<&str>) -> (String, String) {
        signed(&self.issuing, name, group, &[])
    }

    /// Resident memory of the API server, KiB.
    pub fn resident(&self) -> u64 {
        resident(self.running.lock().unwrap()[1].pid)
    }
}

/// A process's resident memory, KiB.
pub fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Where tests/kube/api-server.sh stores the programs of the newest Kubernetes.
fn newest() -> PathBuf {
    binaries(&["--newest"], &["kube-apiserver"])
}

/// Where tests/kube/api-server.sh stores the programs.
pub fn binaries(version: &[&str], names: &[&str]) -> PathBuf {
    let script = root().join("tests/kube/api-server.sh");
    let output = Command::new(script).args(version).arg("--where").output().unwrap();
    let directory = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    for name in names {
        let binary = directory.join(name);
        assert!(binary.is_file(), "{} is missing: run `make test-kube`, or tests/kube/api-server.sh", binary.display());
    }
    directory
}

/// Three ports that were free a moment ago.
fn ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    group: Option<&str>,
    names: &[&str],
) -> (String, String) {
    let names = ["127.0.0.1", "localhost"].iter().chain(names).map(|name| (*name).to_owned());
    let mut params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Runs a program until our end of the pipe closes; since a static is never dropped, this also removes the directory.
const UNDER_A_SHELL: &str = r#"
    directory=$1; shift
    "$@" >&2 </dev/null & echo $!
    read -r _ && keep=yes
    kill -9 $!; wait
    [ -n "$keep" ] || rm -rf "$directory"
"#;

/// A program that ends when this value is dropped, or when this process ends.
pub struct Program {
    shell: Child,
    pipe: Option<ChildStdin>,
    pid: Pid,
}

impl Program {
    /// Starts it; its output goes to the file `log` in `directory`, which is removed if this process is killed.
    pub fn start(command: &[String], directory: &Path, log: &str) -> Self {
        let log = directory.join(log);
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", UNDER_A_SHELL, "sh"])
            .arg(directory)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap());
        Self { pipe: shell.stdin.take(), shell, pid }
    }
}

impl Drop for Program {
    /// Kills it, and leaves the directory to the next one.
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _gone_already = pipe.write_all(b"keep\n");
        }
        let _status = self.shell.wait();
    }
}
