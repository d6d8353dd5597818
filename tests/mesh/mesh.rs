//! A mesh: the cluster, istio-hsm-ca and Istio in it, installed by the commands of the documentation, and workloads.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use testkit::{program, root};

use super::{
    controllers::Controllers,
    image::Images,
    kubelet::Kubelet,
    node::{Logs, Node},
    page,
    traffic::{Counts, Sampler},
};

/// Workloads in the namespace demo. The first has the name that the documentation uses.
pub const WORKLOADS: [&str; 3] = ["httpbin", "reviews", "ratings"];
/// The replicas of istio-hsm-ca.
pub const REPLICAS: [&str; 2] = ["istio-system/istio-hsm-ca-0", "istio-system/istio-hsm-ca-1"];
/// Requests a second that each workload sends to each other workload.
const RATE: &str = "3";
/// Limit of one step, generous for busy machines.
pub const SOON: Duration = Duration::from_secs(240);

/// Everything that runs for one scenario.
pub struct Mesh {
    pub sampler: Sampler,
    _controllers: Controllers,
    pub kubelet: Arc<Kubelet>,
    images: Arc<Images>,
    pub node: Arc<Node>,
    pub logs: Arc<Logs>,
    checkout: PathBuf,
}

impl Mesh {
    /// A cluster with nothing in it.
    pub async fn empty(scenario: &str) -> Self {
        let logs = Arc::new(Logs::new(scenario));
        let node = Arc::new(Node::start().await);
        let images = Arc::new(Images::new(&node));
        let controllers = Controllers::start(&node);
        let kubelet = Arc::new(Kubelet::start(&node, &images, &logs));
        // Guides are followed in a checkout with the programs in the PATH, and with Istio's chart at hand.
        let checkout = logs.directory().join("checkout");
        fs::create_dir_all(checkout.join("istio")).unwrap();
        for name in ["deploy", "scripts", "softhsm"] {
            symlink(root().join(name), checkout.join(name)).unwrap();
        }
        symlink(node.istio.join("istiod"), checkout.join("istio/istiod")).unwrap();
        let bin = logs.directory().join("bin");
        fs::create_dir_all(&bin).unwrap();
        for name in ["kubectl", "helm"] {
            symlink(node.programs.join(name), bin.join(name)).unwrap();
        }
        for name in ["istio-hsm-ca", "istio-hsm-ca-token-host"] {
            symlink(program(name), bin.join(name)).unwrap();
        }
        let sampler = Sampler::start(&kubelet, &logs);
        Self { sampler, _controllers: controllers, kubelet, images, node, logs, checkout }
    }

    /// The mesh after all steps of docs/GUIDE.md: every workload uses istio-hsm-ca, and istiod has no CA. The agents have
    /// further environment variables.
    pub async fn after_the_guide(scenario: &str, environment: &[(&str, &str)]) -> Self {
        let mesh = Self::empty(scenario).await;
        mesh.imported().await;
        mesh.shell(
            "helm upgrade --install istio-hsm-ca $CHART -n istio-system -f my-ca.yaml -f deploy/istio/sidecar/ca-2.yaml",
        )
        .await;
        mesh.ca_rolled().await;
        mesh.shell(
            "until kubectl -n istio-system get secret istiod-tls && \
               kubectl -n istio-system get configmap istio-ca-root-cert; do sleep 0.5; done",
        )
        .await;
        mesh.istiod("-f deploy/istio/sidecar/istiod-2.yaml").await;
        mesh.workloads(environment).await;
        mesh
    }

    /// Imports the key and installs istio-hsm-ca, by docs/GUIDE.md.
    pub async fn imported(&self) {
        self.guide("## 1.", "## 3.").await;
        self.crds().await;
        self.guide("## 3.", "### Other").await;
        self.open_token();
        self.guide("## 5.", "### Why").await;
    }

    /// Waits until all replicas of istio-hsm-ca have their newest form.
    pub async fn ca_rolled(&self) {
        self.shell("kubectl -n istio-system rollout status statefulset/istio-hsm-ca --timeout=240s").await;
    }

    /// Restarts all workloads, and waits until they run.
    pub async fn restart_workloads(&self) {
        self.shell("kubectl -n demo rollout restart deployment").await;
        self.workloads_rolled().await;
    }

    /// Waits until all workloads have their newest form.
    pub async fn workloads_rolled(&self) {
        self.shell(
            "for name in httpbin reviews ratings; do \
               kubectl -n demo rollout status deployment/$name --timeout=240s; done",
        )
        .await;
    }

    /// Runs a script in the checkout; it must succeed.
    pub async fn shell(&self, script: &str) -> String {
        match self.try_shell(script).await {
            Ok(output) => output,
            Err(output) => panic!("{script}\n{output}"),
        }
    }

    /// Runs a script in the checkout; returns its output.
    ///
    /// # Errors
    /// Its output, if it failed.
    pub async fn try_shell(&self, script: &str) -> Result<String, String> {
        use std::io::Write;
        let mut log = self.logs.file("commands");
        writeln!(log, "$ {script}").unwrap();
        let at = Instant::now();
        let path =
            format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", self.logs.directory().join("bin").display());
        // Variables that one block of the guide exports, and functions that it defines, are there for the next.
        let script = format!(
            "set -euo pipefail\n[ ! -e .variables ] || . ./.variables\n{script}\n{{ export -p; declare -f; }} > .variables\n"
        );
        let output = tokio::process::Command::new("bash")
            .args(["-c", &script])
            .current_dir(&self.checkout)
            .env_clear()
            .env("PATH", path)
            .env("KUBECONFIG", &self.node.kubeconfig)
            .env("HOME", &self.checkout)
            .env("CHART", "deploy/helm/istio-hsm-ca")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        writeln!(log, "{text}-- {} after {:.1?}", output.status, at.elapsed()).unwrap();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    /// Runs the blocks of docs/GUIDE.md between two headings, as they stand there.
    pub async fn guide(&self, from: &str, to: &str) {
        let guide = fs::read_to_string(root().join("docs/GUIDE.md")).unwrap();
        for block in page::fenced(page::section(&guide, from, to)) {
            self.shell(&block).await;
        }
    }

    /// The commands of a page of deploy/istio between two headings, except those that need a kubelet's streaming API.
    pub fn istio_page(page: &str, from: &str, to: &str) -> Vec<String> {
        let text = fs::read_to_string(root().join("deploy/istio").join(page)).unwrap();
        let blocks = page::indented(page::section(&text, from, to));
        let runs = |block: &String| !["istioctl", "exec ", "--watch", " logs "].iter().any(|part| block.contains(part));
        blocks.into_iter().filter(runs).collect()
    }

    /// Runs a block of a page of deploy/istio. After a restart of the workloads, waits for its end, as the pages' next
    /// steps require.
    pub async fn istio_block(&self, block: &str) {
        self.shell(block).await;
        if block.contains("-n demo rollout restart") {
            self.workloads_rolled().await;
        }
    }

    /// Lets the token hosts' user use the token of the guide's trial, as the client of a vendor's HSM would.
    pub fn open_token(&self) {
        let trial = self.checkout.join("trial");
        open(&trial.join("tokens"));
        fs::set_permissions(&trial, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(trial.join("softhsm2.conf"), fs::Permissions::from_mode(0o644)).unwrap();
        self.images.install_token(&trial);
        for parent in trial.ancestors().skip(1) {
            let mode = fs::metadata(parent).unwrap().permissions().mode();
            if mode & 0o001 == 0 {
                fs::set_permissions(parent, fs::Permissions::from_mode(mode | 0o011)).unwrap();
            }
        }
    }

    /// Installs what Istio's chart `base` has.
    pub async fn crds(&self) {
        let crds = self.node.istio.join("crds.yaml");
        self.shell(&format!(
            "kubectl apply --server-side -f {}\n\
             kubectl wait --for condition=established --timeout=240s crd --all",
            crds.display()
        ))
        .await;
    }

    /// Installs istiod by its chart.
    pub async fn istiod(&self, arguments: &str) {
        let values = root().join("tests/mesh/values.yaml");
        self.shell(&format!(
            "helm upgrade --install istiod istio/istiod -n istio-system -f {} {arguments}\n\
             kubectl -n istio-system rollout status deployment/istiod --timeout=240s",
            values.display()
        ))
        .await;
        let policies = root().join("tests/mesh/policies.yaml");
        self.shell(&format!("kubectl apply -f {}", policies.display())).await;
    }

    /// Starts the workloads, injected, with further environment variables of their proxies, and waits for traffic.
    pub async fn workloads(&self, environment: &[(&str, &str)]) {
        let template = fs::read_to_string(root().join("tests/mesh/workload.yaml")).unwrap();
        let variables: serde_json::Map<String, Value> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let config =
            serde_json::json!({"proxy.istio.io/config": serde_json::json!({"proxyMetadata": variables}).to_string()});
        let annotations = if variables.is_empty() { "{}".to_owned() } else { config.to_string() };
        self.shell(
            "kubectl create namespace demo\n\
             kubectl label namespace demo istio-injection=enabled\n\
             until kubectl -n demo get configmap istio-ca-root-cert; do sleep 0.5; done",
        )
        .await;
        let mut all = String::new();
        for name in WORKLOADS {
            let others = WORKLOADS.iter().filter(|other| **other != name);
            let others: Vec<_> = others.map(|other| format!("\"http://{other}.demo.svc:8080/\"")).collect();
            let text = template.replace("NAME", name).replace("RATE", RATE).replace("OTHERS", &others.join(", "));
            all += &text.replace("annotations: {}", &format!("annotations: {annotations}"));
            all += "\n---\n";
        }
        fs::write(self.checkout.join("workloads.yaml"), all).unwrap();
        self.start_workloads().await;
    }

    /// Ends all workloads.
    pub async fn stop_workloads(&self) {
        self.shell(
            "kubectl -n demo delete deployment --all\n\
             kubectl -n demo wait --for=delete pod --all --timeout=240s",
        )
        .await;
    }

    /// Starts the workloads that were stopped, and waits for traffic.
    pub async fn start_workloads(&self) {
        self.shell("kubectl apply -f workloads.yaml").await;
        self.workloads_rolled().await;
        // The first requests may have been sent before their servers were there.
        let wait = Instant::now();
        let mut before = self.sampler.counts();
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = self.sampler.counts();
            if now.ok > before.ok + 20 && now.failed == before.failed {
                break;
            }
            assert!(wait.elapsed() < SOON, "no traffic without failures: {now:#?}\n{}", self.logs.tails(15));
            before = now;
        }
    }

    /// How to look into the mesh from another shell.
    pub fn where_to_look(&self) -> String {
        // The process that sees other process IDs than this one: by its name in /proc, outside of the namespaces.
        let enter = "sudo nsenter --mount --net --target $(pgrep --newest --full stays_until_interrupted)";
        let kubeconfig = format!("{enter} env KUBECONFIG={}", self.node.kubeconfig.display());
        let kubectl = self.node.programs.join("kubectl");
        let mut text = format!(
            "The mesh runs. From another shell:\n\n\
             kubectl:\n  {kubeconfig} {} get pods -A -o wide\n\
             logs: {}\n",
            kubectl.display(),
            self.logs.directory().display()
        );
        for (pod, live) in self.kubelet.pods("istio-system") {
            if let Some(process) = self.kubelet.process(&pod, "daemon") {
                text += &format!(
                    "status page of {pod}:\n  {enter} nsenter --net={} curl -s http://127.0.0.1:15016/\n  \
                     {enter} curl -s http://{}:15014/readyz   # process {process} of the namespace\n",
                    live.network, live.address
                );
            }
        }
        let pods = self.kubelet.pods("demo");
        let reviews = pods.iter().find(|(pod, _)| pod.contains("reviews")).map_or("", |(_, live)| &live.address);
        for (pod, live) in &pods {
            text += &format!(
                "{pod}, Envoy's certificates, and a request to another workload:\n  \
                 {enter} nsenter --net={0} curl -s http://127.0.0.1:15000/certs\n  \
                 {enter} nsenter --net={0} curl -si --resolve reviews.demo.svc:8080:{reviews} http://reviews.demo.svc:8080/\n",
                live.network
            );
        }
        text + "Press Ctrl-C to end it.\n"
    }

    /// What happened to requests and handshakes since the mesh started.
    pub fn counts(&self) -> Counts {
        self.sampler.counts()
    }
}

/// Lets everyone read and write what is in a directory.
fn open(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            open(&entry.path());
        } else {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o666)).unwrap();
        }
    }
}
