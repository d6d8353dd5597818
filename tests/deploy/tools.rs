//! Programs that the tests need and no distribution provides: Helm, kubectl, an API server with its etcd.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use crate::rendered::root;
use testkit::api_server::ApiServer;

/// Directory of the chart.
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

/// Runs Helm with the oldest Kubernetes version that the chart supports, plus what the values need.
pub fn helm(arguments: &[&str]) -> Output {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    Command::new(HELM.get_or_init(|| tool("helm"))).args(arguments).output().unwrap()
}

/// The rendering of the chart with these arguments, or Helm's error.
pub fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = chart();
    let mut all = vec!["template", "istio-hsm-ca", chart.to_str().unwrap(), "--namespace", "istio-system"];
    all.extend(["--kube-version", "1.33.0", "--api-versions", "monitoring.coreos.com/v1"]);
    all.extend(arguments);
    let output = helm(&all);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(error) }
}

/// A values file in deploy/manifests/values.
pub fn values_file(name: &str) -> String {
    root().join("deploy/manifests/values").join(name).with_extension("yaml").to_str().unwrap().to_owned()
}

/// `minimal.yaml` as a base for `--set`: without its `kubernetes: null`, below which Helm cannot set anything.
pub fn minimal_below(set: &str, directory: &Path) -> String {
    let minimal = values_file("minimal");
    if !set.contains("config.kubernetes.") {
        return minimal;
    }
    let text = fs::read_to_string(minimal).unwrap();
    assert!(text.contains("  kubernetes: null\n"), "{text}");
    let path = directory.join("minimal.yaml");
    fs::write(&path, text.replace("  kubernetes: null\n", "")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// An API server with its etcd, for one test.
pub struct Cluster {
    directory: tempfile::TempDir,
    server: ApiServer,
}

impl Cluster {
    /// Starts one and waits until it is ready.
    pub fn start() -> Self {
        for program in ["etcd", "kube-apiserver", "kubectl"] {
            tool(program);
        }
        let server = ApiServer::start("https://kubernetes.default.svc.cluster.local");
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = server.user("admin", Some("system:masters"));
        for (name, content) in [("ca.crt", &server.ca), ("admin.crt", &certificate), ("admin.key", &key)] {
            fs::write(directory.path().join(name), content).unwrap();
        }
        let cluster = Self { directory, server };
        fs::write(cluster.kubeconfig(), cluster.config("{client-certificate: admin.crt, client-key: admin.key}"))
            .unwrap();
        cluster
    }

    fn config(&self, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: '{}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: test, user: {user}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.server.url
        )
    }

    /// The kubeconfig of a service account in istio-system.
    pub fn account(&self, name: &str) -> PathBuf {
        let token = self.must(&["create", "token", name, "--namespace", "istio-system"]);
        let path = self.directory.path().join(format!("{name}.kubeconfig"));
        fs::write(&path, self.config(&format!("{{token: {}}}", token.trim()))).unwrap();
        path
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// Runs kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        static KUBECTL: OnceLock<PathBuf> = OnceLock::new();
        let mut command = Command::new(KUBECTL.get_or_init(|| tool("kubectl")));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).output().unwrap()
    }

    /// Runs kubectl, which must succeed, and returns its output.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Ports that are not in use.
pub fn ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
