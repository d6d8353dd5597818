//! The node: namespaces of its own, an API server, and networks of pods.
//!
//! The whole mesh runs in a network, mount and process namespace, so that it disturbs nothing on the machine and nothing
//! of it survives the test.

use std::{
    ffi::OsStr,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use testkit::{api_server::ApiServer, root};

use super::story::Run;

/// The node's name and address.
pub const NAME: &str = "node-1";
pub const ADDRESS: &str = "10.244.0.1";
/// The gateway of each pod: the same link-local address on each of the node's interfaces.
const GATEWAY: &str = "169.254.1.1";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Set in the namespaces, to the time of the run.
const INSIDE: &str = "MESH_INSIDE";

/// When the first test of this process started.
static STARTED: LazyLock<String> = LazyLock::new(|| {
    let now = k8s_openapi::jiff::Timestamp::now();
    now.round(k8s_openapi::jiff::Unit::Second).unwrap().to_string()
});

/// Whether this process is in the namespaces of a mesh. Otherwise runs the test of this name there.
///
/// Scenarios run next to each other, as many as the test program has threads: they wait most of the time.
#[allow(clippy::disallowed_methods, reason = "the environment of a test")]
pub fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    assert!(nix::unistd::Uid::effective().is_root(), "network namespaces need root");
    // A shell as the first process, since that has to wait for processes whose parents have ended.
    // Before other programs of the machine, such as compilers: what is measured must not depend on them.
    let status = Command::new("nice")
        .args(["--adjustment=-5", "unshare"])
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", r#""$@"; exit $?"#, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, &*STARTED)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed; its output is above");
    false
}

/// The run that this scenario is part of.
#[allow(clippy::disallowed_methods, reason = "the environment of a test")]
pub fn this_run() -> Run {
    let processors = std::thread::available_parallelism().unwrap().get();
    Run { started: std::env::var(INSIDE).unwrap(), processors }
}

/// Runs a program that must succeed; returns its standard output.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn words(program: &str, arguments: &str) -> String {
    run(program, &arguments.split_whitespace().collect::<Vec<_>>())
}

/// The directory of a program's log, which is kept.
pub struct Logs(PathBuf);

impl Logs {
    pub fn new(scenario: &str) -> Self {
        let directory = testkit::tmp().join("mesh").join(scenario);
        let _none_yet = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> fs::File {
        fs::OpenOptions::new().create(true).append(true).open(self.0.join(format!("{name}.log"))).unwrap()
    }

    /// The last lines of all logs, for a failed test.
    pub fn tails(&self, lines: usize) -> String {
        let mut files: Vec<_> = fs::read_dir(&self.0).unwrap().flatten().map(|entry| entry.path()).collect();
        files.sort();
        let tail = |path: PathBuf| {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let all: Vec<&str> = text.lines().collect();
            let last = &all[all.len().saturating_sub(lines)..];
            let cut = |line: &&str| line.chars().take(600).collect::<String>();
            format!("== {}\n{}\n", path.display(), last.iter().map(cut).collect::<Vec<_>>().join("\n"))
        };
        files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "log")).map(tail).collect()
    }
}

/// A node and the API server of its cluster.
pub struct Node {
    pub server: ApiServer,
    pub client: Client,
    pub kubeconfig: PathBuf,
    /// Where tests/istio/build.sh stores the programs of the mesh.
    pub istio: PathBuf,
    /// Where tests/kube/api-server.sh stores its programs.
    pub programs: PathBuf,
    next: AtomicU16,
}

impl Node {
    /// Sets up the namespaces and starts everything; must be called once, in the namespaces.
    pub async fn start() -> Self {
        words("mount", "-t tmpfs tmpfs /run");
        fs::create_dir_all("/run/netns").unwrap();
        fs::create_dir_all("/run/mesh").unwrap();
        words("ip", "link set lo up");
        words("ip", &format!("addr add {ADDRESS}/32 dev lo"));
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        // A route for the addresses of Services, which are replaced before a packet leaves.
        words("ip", &format!("route add 10.96.0.0/24 dev lo src {ADDRESS}"));

        let programs = testkit::api_server::binaries(&[], &["etcd", "kube-apiserver", "kubectl"]);
        let helm = programs.join("helm");
        assert!(helm.is_file(), "{} is missing: run `make test-mesh`", helm.display());
        let istio = istio();
        let names = [ADDRESS, "10.96.0.1", "kubernetes.default.svc"];
        let server = ApiServer::start_with(
            ISSUER,
            &names,
            &[
                "--bind-address=0.0.0.0",
                "--advertise-address=10.244.0.1",
                "--endpoint-reconciler-type=lease",
                // Webhooks are called at the addresses of their pods.
                "--enable-aggregator-routing=true",
                "--service-account-extend-token-expiration=false",
            ],
        );
        let port = server.url.rsplit(':').next().unwrap().to_owned();
        let ca = "/run/mesh/ca.crt";
        fs::write(ca, &server.ca).unwrap();
        let (certificate, key) = server.user("admin", Some("system:masters"));
        let (crt, pem) = ("/run/mesh/admin.crt", "/run/mesh/admin.key");
        fs::write(crt, certificate).unwrap();
        fs::write(pem, key).unwrap();
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "mesh",
            "clusters": [{"name": "mesh", "cluster": {
                "server": format!("https://{ADDRESS}:{port}"), "certificate-authority": ca}}],
            "users": [{"name": "admin", "user": {"client-certificate": crt, "client-key": pem}}],
            "contexts": [{"name": "mesh", "context": {"cluster": "mesh", "user": "admin"}}],
        });
        let kubeconfig = PathBuf::from("/run/mesh/kubeconfig");
        fs::write(&kubeconfig, text.to_string()).unwrap();
        let loaded = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(loaded, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let object = serde_json::json!({
            "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME}},
            "status": {
                // istiod asks for the version before it injects proxies as sidecar containers.
                "nodeInfo": {
                    "architecture": std::env::consts::ARCH, "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": version(&client).await,
                    "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
                },
                "addresses": [{"type": "InternalIP", "address": ADDRESS}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
        nodes.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        Self { server, client, kubeconfig, istio, programs, next: AtomicU16::new(2) }
    }

    /// A network namespace with an address that the node and all pods reach.
    pub fn network(&self) -> Network {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(10, 244, high, low);
        let (name, veth) = (format!("pod-{number}"), format!("veth{number}"));
        words("ip", &format!("netns add {name}"));
        words("ip", &format!("link add {veth} type veth peer name eth0 netns {name}"));
        words("ip", &format!("addr add {GATEWAY}/32 dev {veth}"));
        words("ip", &format!("link set {veth} up"));
        words("ip", &format!("route add {address}/32 dev {veth} src {ADDRESS}"));
        let inside = |arguments: &str| words("ip", &format!("-n {name} {arguments}"));
        inside("link set lo up");
        inside("link set eth0 up");
        inside(&format!("addr add {address}/32 dev eth0"));
        inside(&format!("route add {GATEWAY} dev eth0"));
        inside(&format!("route add default via {GATEWAY}"));
        Network { name, address }
    }
}

/// A pod's network namespace.
pub struct Network {
    name: String,
    pub address: Ipv4Addr,
}

impl Network {
    /// The file that nsenter(1) takes.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        words("ip", &format!("netns delete {}", self.name));
    }
}

async fn version(client: &Client) -> String {
    client.apiserver_version().await.unwrap().git_version
}

fn istio() -> PathBuf {
    let script = root().join("tests/istio/build.sh");
    let directory = PathBuf::from(run(script.to_str().unwrap(), &["--where", "mesh"]).trim());
    assert!(directory.is_dir(), "{} is missing: run `make test-mesh`", directory.display());
    directory
}
