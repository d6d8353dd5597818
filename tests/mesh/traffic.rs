//! What the traffic came to: requests as the clients count them, handshakes and failures as Envoy counts them, and the
//! certificates that Envoy uses.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;

use super::{kubelet::Kubelet, node::Logs};

/// Metrics of Envoy that are summed over all proxies. Handshakes first; all others are failures.
const HANDSHAKES: [&str; 2] = ["envoy_cluster_ssl_handshake", "envoy_listener_ssl_handshake"];
const FAILURES: [&str; 12] = [
    "envoy_cluster_ssl_connection_error",
    "envoy_cluster_ssl_fail_verify_error",
    "envoy_cluster_ssl_fail_verify_no_cert",
    "envoy_cluster_ssl_fail_verify_san",
    "envoy_cluster_upstream_cx_connect_fail",
    "envoy_cluster_upstream_cx_connect_timeout",
    "envoy_cluster_upstream_cx_none_healthy",
    "envoy_cluster_upstream_rq_timeout",
    "envoy_listener_ssl_connection_error",
    "envoy_listener_ssl_fail_verify_error",
    "envoy_listener_ssl_fail_verify_no_cert",
    "envoy_listener_ssl_fail_verify_san",
];
/// Handshakes that continued an earlier session.
const RESUMED: &str = "envoy_listener_ssl_session_reused";

/// Sums since the mesh started.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub ok: u64,
    pub failed: u64,
    /// Why requests failed, as the clients saw it.
    pub causes: BTreeMap<String, u64>,
    /// Longest time of a request since the mesh started, and longest time that a client was late because the machine was
    /// busy; milliseconds.
    pub slowest: u64,
    pub pause: u64,
    /// Handshakes between proxies as the servers' proxies count them.
    pub handshakes: u64,
    pub resumed: u64,
    /// Envoy's counters of failures that are not zero.
    pub failures: BTreeMap<String, u64>,
}

impl Counts {
    /// What happened since an earlier state.
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, old: &BTreeMap<String, u64>| {
            let each = now.iter().map(|(name, count)| (name.clone(), count - old.get(name).unwrap_or(&0)));
            each.filter(|(_, count)| *count > 0).collect()
        };
        Self {
            ok: self.ok - before.ok,
            failed: self.failed - before.failed,
            causes: less(&self.causes, &before.causes),
            slowest: self.slowest,
            pause: self.pause,
            handshakes: self.handshakes - before.handshakes,
            resumed: self.resumed - before.resumed,
            failures: less(&self.failures, &before.failures),
        }
    }

    /// Failed handshakes and connections between proxies.
    pub fn failed_handshakes(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// A workload's certificate as Envoy shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown {
    pub serial: String,
    pub name: String,
    pub from: String,
    pub to: String,
    /// Serial numbers of the roots.
    pub roots: Vec<String>,
}

type Samples = Arc<Mutex<HashMap<String, BTreeMap<String, u64>>>>;

/// Reads the metrics of all proxies in the namespace demo every second, so that those of ended pods are kept.
pub struct Sampler {
    samples: Samples,
    kubelet: Arc<Kubelet>,
    logs: Arc<Logs>,
    task: tokio::task::JoinHandle<()>,
}

impl Sampler {
    pub fn start(kubelet: &Arc<Kubelet>, logs: &Arc<Logs>) -> Self {
        let samples = Samples::default();
        let task = tokio::spawn(sample(Arc::clone(&samples), Arc::clone(kubelet)));
        let (kubelet, logs) = (Arc::clone(kubelet), Arc::clone(logs));
        Self { samples, kubelet, logs, task }
    }

    /// All counts since the mesh started.
    pub fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for file in self.client_logs() {
            add_client(&file, &mut all);
        }
        for sample in self.samples.lock().unwrap().values() {
            for (name, count) in sample {
                match name.as_str() {
                    "envoy_listener_ssl_handshake" => all.handshakes += count,
                    RESUMED => all.resumed += count,
                    name if FAILURES.contains(&name) && *count > 0 => {
                        *all.failures.entry(name.to_owned()).or_default() += count;
                    }
                    _ => {}
                }
            }
        }
        all
    }

    /// The last failures that the clients have written, each with its time.
    pub fn failed_requests(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for file in self.client_logs() {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).unwrap_or_default();
            let failed = text.lines().filter_map(|line| line.strip_prefix("failed: "));
            lines.extend(failed.map(|failed| format!("{failed} ({name})")));
        }
        lines.sort();
        lines.split_off(lines.len().saturating_sub(20)).join("\n")
    }

    fn client_logs(&self) -> impl Iterator<Item = PathBuf> {
        let files = fs::read_dir(self.logs.directory()).unwrap().flatten().map(|file| file.path());
        files.filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("demo.") && name.ends_with(".client.log")
        })
    }

    /// The certificate of each workload's proxy, by the workload's pod.
    pub async fn certificates(&self) -> BTreeMap<String, Shown> {
        let mut all = BTreeMap::new();
        for (pod, live) in self.kubelet.pods("demo") {
            if let Some(shown) = Self::certificate(&live.network).await {
                all.insert(pod, shown);
            }
        }
        all
    }

    /// The certificate of the proxy in a network namespace, from the admin interface of its Envoy. `pilot-agent request`
    /// shows the same, but each start of it takes a tenth of a second of the CPU time that all meshes share.
    async fn certificate(network: &str) -> Option<Shown> {
        let mut program = tokio::process::Command::new("nsenter");
        program
            .arg(format!("--net={network}"))
            .args(["curl", "--silent", "--fail", "--max-time", "10", "http://127.0.0.1:15000/certs"])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let value: Value = serde_json::from_slice(&program.output().await.unwrap().stdout).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for entry in value["certificates"].as_array()? {
            let chain = &entry["cert_chain"][0];
            if let Some(uri) = chain["subject_alt_names"][0]["uri"].as_str() {
                let roots = entry["ca_cert"].as_array().into_iter().flatten();
                return Some(Shown {
                    serial: text(&chain["serial_number"]),
                    name: uri.to_owned(),
                    from: text(&chain["valid_from"]),
                    to: text(&chain["expiration_time"]),
                    roots: roots.map(|root| text(&root["serial_number"])).collect(),
                });
            }
        }
        None
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn add_client(log: &Path, all: &mut Counts) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let Some(last) = last else { return };
    all.ok += last["ok"].as_u64().unwrap();
    all.failed += last["failed"].as_u64().unwrap();
    all.slowest = all.slowest.max(last["slowest"].as_u64().unwrap());
    all.pause = all.pause.max(last["pause"].as_u64().unwrap());
    for (cause, count) in last["causes"].as_object().into_iter().flatten() {
        // Without the port of the client, which is another one each time.
        let cause = cause.split_whitespace().filter(|word| !word.contains("->")).collect::<Vec<_>>().join(" ");
        *all.causes.entry(cause).or_default() += count.as_u64().unwrap();
    }
}

async fn sample(samples: Samples, kubelet: Arc<Kubelet>) {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).build().unwrap();
    loop {
        for (pod, live) in kubelet.pods("demo") {
            let url = format!("http://{}:15090/stats/prometheus", live.address);
            let Ok(reply) = http.get(url).send().await else { continue };
            let Ok(text) = reply.text().await else { continue };
            samples.lock().unwrap().insert(pod, read(&text));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Sums of the metrics that concern traffic between the workloads.
fn read(text: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let wanted = HANDSHAKES.contains(&name) || FAILURES.contains(&name) || name == RESUMED;
        let between = name.starts_with("envoy_listener") || labels.contains(".demo.svc");
        if wanted && between {
            *sums.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap_or_default() as u64;
        }
    }
    sums
}
