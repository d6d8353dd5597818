//! Programs that the tests need and no distribution packages: Helm, kubectl, an API server with its etcd.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::rendered::root;

/// The chart.
pub fn chart() -> PathBuf {
    root().join("deploy/helm/istio-hsm-ca")
}

/// A program that `tests/kube/api-server.sh` builds once.
pub fn tool(name: &str) -> PathBuf {
    let script = root().join("tests/kube/api-server.sh");
    let output = Command::new(&script).arg(name).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{name} cannot be built; see above");
    Path::new(String::from_utf8(output.stdout).unwrap().trim()).join(name)
}

/// What Helm says; the version of Kubernetes is the oldest that the chart takes, plus what the values need.
pub fn helm(arguments: &[&str]) -> Output {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    Command::new(HELM.get_or_init(|| tool("helm"))).args(arguments).output().unwrap()
}

/// The rendering of the chart with these arguments, or what Helm has against it.
pub fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = chart();
    let mut all = vec!["template", "istio-hsm-ca", chart.to_str().unwrap(), "--namespace", "istio-system"];
    all.extend(["--kube-version", "1.33.0", "--api-versions", "monitoring.coreos.com/v1"]);
    all.extend(arguments);
    let output = helm(&all);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(error) }
}

/// An API server with its etcd, for one test.
pub struct ApiServer {
    directory: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _already_gone = process.kill();
            let _already_gone = process.wait();
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(120);

impl ApiServer {
    /// Starts one and waits until it is ready.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let mut server = Self { directory, processes: Vec::new() };
        let [client, peer, secure] = ports();
        let log = |name: &str| fs::File::create(path.join(name)).unwrap();
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = Command::new(tool("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--unsafe-no-fsync", "--data-dir"])
            .arg(path.join("etcd"))
            .stdout(log("etcd.log"))
            .stderr(log("etcd.err"))
            .spawn();
        server.processes.push(etcd.unwrap());
        let openssl = |arguments: &[&str]| {
            let done = Command::new("openssl").args(arguments).current_dir(&path).output();
            assert!(done.expect("openssl is missing; install the package openssl").status.success());
        };
        openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "sa.key"]);
        openssl(&["pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub"]);
        fs::write(path.join("tokens.csv"), "test-admin,admin,admin,system:masters\n").unwrap();
        let at = |name: &str| path.join(name).to_str().unwrap().to_owned();
        let api = Command::new(tool("kube-apiserver"))
            .args(["--etcd-servers", &client, "--bind-address=127.0.0.1", "--secure-port", &secure.to_string()])
            .args(["--cert-dir", &at("certificates"), "--token-auth-file", &at("tokens.csv")])
            .args(["--service-account-issuer=https://kubernetes.default.svc.cluster.local"])
            .args(["--service-account-key-file", &at("sa.pub"), "--service-account-signing-key-file", &at("sa.key")])
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"])
            .stdout(log("api.log"))
            .stderr(log("api.err"))
            .spawn();
        server.processes.push(api.unwrap());
        let certificate = at("certificates/apiserver.crt");
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{secure}', certificate-authority: {certificate}}}}}]\n\
             users: [{{name: test, user: {{token: test-admin}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
        );
        fs::write(server.kubeconfig(), config).unwrap();
        let began = Instant::now();
        while !server.kubectl(&["get", "--raw", "/readyz"]).status.success() {
            let errors = fs::read_to_string(path.join("api.err")).unwrap_or_default();
            let tail: Vec<_> = errors.lines().rev().take(5).collect();
            assert!(began.elapsed() < PATIENCE, "the API server is not ready: {tail:#?}");
            std::thread::sleep(Duration::from_millis(300));
        }
        server
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// What kubectl says.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        static KUBECTL: OnceLock<PathBuf> = OnceLock::new();
        let mut command = Command::new(KUBECTL.get_or_init(|| tool("kubectl")));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).output().unwrap()
    }

    /// What kubectl says, where it must not fail.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Ports that nobody listens on.
pub fn ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
