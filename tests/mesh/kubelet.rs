//! The part of a kubelet and a scheduler that a mesh on one machine needs: runs the pods that the API server has, and
//! reports their state.
//!
//! Not there: the streaming API (`kubectl exec`, `logs`, `port-forward`), limits of resources, and security contexts
//! beyond the user.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    fs,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    container::{Container, Plan},
    image::{Images, mount_memory, unmount},
    node::{ADDRESS, Logs, NAME, Network, Node},
    volumes::{Owner, Volume},
};

/// Pause between two looks at the API server.
const PERIOD: Duration = Duration::from_millis(300);

/// A pod whose containers run.
pub struct Live {
    containers: Vec<Container>,
    pub address: String,
    /// The file of its network namespace.
    pub network: String,
}

/// The pods by NAMESPACE/NAME.
type Running = Arc<Mutex<HashMap<String, Arc<Live>>>>;

/// Runs pods until it is dropped.
pub struct Kubelet {
    running: Running,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    node: Arc<Node>,
    client: Client,
    images: Arc<Images>,
    logs: Arc<Logs>,
    running: Running,
    http: reqwest::Client,
}

impl Kubelet {
    pub fn start(node: &Arc<Node>, images: &Arc<Images>, logs: &Arc<Logs>) -> Self {
        fs::write("/run/mesh/hosts", "127.0.0.1 localhost\n").unwrap();
        let running = Running::default();
        let shared = Arc::new(Shared {
            node: Arc::clone(node),
            client: node.client.clone(),
            images: Arc::clone(images),
            logs: Arc::clone(logs),
            running: Arc::clone(&running),
            http: reqwest::Client::builder().timeout(Duration::from_secs(3)).pool_max_idle_per_host(0).build().unwrap(),
        });
        Self { running, task: tokio::spawn(shared.work()) }
    }

    /// The process of a container, if it runs.
    pub fn process(&self, pod: &str, container: &str) -> Option<i32> {
        let running = self.running.lock().unwrap();
        running.get(pod)?.containers.iter().find(|each| each.name() == container)?.state().pid
    }

    /// The pods of a namespace that run, by name.
    pub fn pods(&self, namespace: &str) -> Vec<(String, Arc<Live>)> {
        let running = self.running.lock().unwrap();
        let inside = running.iter().filter(|(key, _)| key.split('/').next() == Some(namespace));
        let mut all: Vec<_> = inside.map(|(key, live)| (key.clone(), Arc::clone(live))).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn work(self: Arc<Self>) {
        // What stops each pod: the time of grace.
        let mut known: HashMap<String, (watch::Sender<Option<Duration>>, tokio::task::JoinHandle<()>)> = HashMap::new();
        let all = Api::<Pod>::all(self.client.clone());
        loop {
            tokio::time::sleep(PERIOD).await;
            known.retain(|_, (_, task)| !task.is_finished());
            // Without the API server, everything runs on.
            let Ok(Ok(pods)) = tokio::time::timeout(Duration::from_secs(3), all.list(&ListParams::default())).await
            else {
                continue;
            };
            let _next_time = self.write_hosts().await;
            let mut there = HashSet::new();
            for pod in pods {
                let uid = pod.metadata.uid.clone().unwrap();
                there.insert(uid.clone());
                let spec = pod.spec.as_ref().unwrap();
                if spec.node_name.is_none() {
                    self.bind(&pod).await;
                } else if let Some((stop, _)) = known.get(&uid) {
                    if pod.metadata.deletion_timestamp.is_some() && stop.borrow().is_none() {
                        let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
                        stop.send_replace(Some(Duration::from_secs(seconds.unsigned_abs())));
                    }
                } else if pod.metadata.deletion_timestamp.is_some() {
                    self.remove(&pod).await;
                } else if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending") {
                    let (stop, stopped) = watch::channel(None);
                    let task = tokio::spawn(Arc::clone(&self).run(pod, stopped));
                    known.insert(uid, (stop, task));
                }
            }
            for (uid, (stop, _)) in &known {
                if !there.contains(uid) && stop.borrow().is_none() {
                    stop.send_replace(Some(Duration::ZERO));
                }
            }
        }
    }

    /// The names of all Services, in the place of DNS.
    async fn write_hosts(&self) -> Result<(), kube::Error> {
        let services = Api::<Service>::all(self.client.clone()).list(&ListParams::default()).await?;
        let mut text = String::from("127.0.0.1 localhost\n");
        for service in services {
            let (name, namespace) = (service.metadata.name.unwrap(), service.metadata.namespace.unwrap());
            let address = service.spec.and_then(|spec| spec.cluster_ip);
            if let Some(address) = address.filter(|address| address != "None" && !address.is_empty()) {
                let full = format!("{name}.{namespace}.svc");
                writeln!(text, "{address} {full}.cluster.local {full} {name}.{namespace}").unwrap();
            }
        }
        if fs::read_to_string("/run/mesh/hosts").unwrap() != text {
            // In place, since it is mounted into containers, and never shorter than both: a program that finds no name here
            // would ask a DNS server, and there is none.
            let mut file = fs::OpenOptions::new().write(true).open("/run/mesh/hosts").unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.set_len(text.len() as u64).unwrap();
        }
        Ok(())
    }

    async fn bind(&self, pod: &Pod) {
        let namespace = pod.metadata.namespace.as_deref().unwrap();
        let name = pod.metadata.name.as_deref().unwrap();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NAME},
        });
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let made = PostParams::default();
        let _next_time = pods.create_subresource::<Value, Value>("binding", name, &made, &binding).await;
    }

    async fn remove(&self, pod: &Pod) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap());
        let uid = pod.metadata.uid.clone();
        let at_once = DeleteParams {
            preconditions: Some(kube::api::Preconditions { uid, resource_version: None }),
            ..DeleteParams::default().grace_period(0)
        };
        loop {
            match pods.delete(pod.metadata.name.as_deref().unwrap(), &at_once).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => return,
                Err(_) => tokio::time::sleep(PERIOD).await,
            }
        }
    }

    /// A pod from its creation to its end.
    async fn run(self: Arc<Self>, pod: Pod, mut stopped: watch::Receiver<Option<Duration>>) {
        let key = format!("{}/{}", pod.metadata.namespace.as_deref().unwrap(), pod.metadata.name.as_deref().unwrap());
        let directory = PathBuf::from(format!("/run/mesh/pods/{}", pod.metadata.uid.as_deref().unwrap()));
        // A mount of its own: everything that containers have mounted below it ends with it.
        mount_memory(&directory);
        let network = self.node.network();
        let mut value = serde_json::to_value(&pod).unwrap();
        value["status"]["podIP"] = json!(network.address.to_string());
        value["status"]["hostIP"] = json!(ADDRESS);
        let owner = Owner { client: &self.client, pod: &pod, value: &value };
        let mut life = Life { shared: &self, key: &key, owner: &owner, network: &network, directory: &directory };
        let started = tokio::select! {
            started = life.start() => Some(started),
            _ = stopped.wait_for(Option::is_some) => None,
        };
        if let Some((live, volumes)) = started {
            let containers = &live.containers;
            life.keep(containers, volumes, &mut stopped).await;
            self.running.lock().unwrap().remove(&key);
            let grace = stopped.borrow().unwrap_or_default();
            let is_sidecar = |container: &&Container| container.spec["restartPolicy"] == "Always";
            let (sidecars, main): (Vec<_>, Vec<_>) = containers.iter().partition(is_sidecar);
            // All main containers at once; then the sidecars, in reverse.
            futures_util::future::join_all(main.iter().map(|container| container.stop(grace))).await;
            for container in sidecars.iter().rev() {
                container.stop(grace).await;
            }
        }
        self.remove(&pod).await;
        // Files are never deleted here: containers see directories of the machine, such as /dev.
        unmount(&directory);
        fs::remove_dir(&directory).unwrap();
    }

    /// Whether a probe succeeds. Only HTTP probes are made; others count as successful.
    async fn probe(&self, probe: &Value, spec: &Value, address: &str) -> bool {
        let Some(get) = probe.get("httpGet") else { return true };
        let port = get["port"].as_u64().or_else(|| {
            let ports = spec["ports"].as_array()?;
            ports.iter().find(|port| port["name"] == get["port"])?["containerPort"].as_u64()
        });
        let url = format!("http://{address}:{}{}", port.unwrap(), get["path"].as_str().unwrap_or("/"));
        self.http.get(url).send().await.is_ok_and(|reply| reply.status().is_success())
    }
}

/// A pod that runs.
struct Life<'a> {
    shared: &'a Arc<Shared>,
    key: &'a str,
    owner: &'a Owner<'a>,
    network: &'a Network,
    directory: &'a PathBuf,
}

impl Life<'_> {
    async fn start(&mut self) -> (Arc<Live>, Vec<Volume>) {
        let spec = &self.owner.value["spec"];
        let group = spec["securityContext"]["fsGroup"].as_u64().map(|group| group as u32);
        let of = |volume: &Value| {
            Volume::new(volume, self.directory.join("volumes").join(volume["name"].as_str().unwrap()), group)
        };
        let mut volumes: Vec<Volume> = spec["volumes"].as_array().into_iter().flatten().map(of).collect();
        for volume in &mut volumes {
            while let Err(error) = volume.refresh(self.owner).await {
                self.report("Pending", &[], Some(&error)).await;
                tokio::time::sleep(PERIOD).await;
            }
        }
        let mut running = Vec::new();
        for container in spec["initContainers"].as_array().into_iter().flatten() {
            if container["restartPolicy"] == "Always" {
                let started = Container::start(self.plan(container, &volumes), container.clone());
                let probe = &container["startupProbe"];
                while !started.state().running
                    || !self.shared.probe(probe, container, &self.network.address.to_string()).await
                {
                    tokio::time::sleep(PERIOD).await;
                }
                running.push(started);
                continue;
            }
            let plan = self.plan(container, &volumes);
            while let Err(error) = plan.once().await {
                self.report("Pending", &[], Some(&error)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        for container in spec["containers"].as_array().into_iter().flatten() {
            running.push(Container::start(self.plan(container, &volumes), container.clone()));
        }
        let live = Arc::new(Live {
            containers: running,
            address: self.network.address.to_string(),
            network: self.network.path(),
        });
        self.shared.running.lock().unwrap().insert(self.key.to_owned(), Arc::clone(&live));
        (live, volumes)
    }

    fn plan(&self, container: &Value, volumes: &[Volume]) -> Plan {
        let name = format!("{}.{}", self.key.replace('/', "."), container["name"].as_str().unwrap());
        let log = self.shared.logs.file(&name);
        let image = self.shared.images.find(container["image"].as_str().unwrap());
        Plan::new(self.owner, container, image, volumes, self.network.path(), self.directory, log)
    }

    /// Probes the containers, refreshes the volumes and reports, until the pod has to stop.
    async fn keep(
        &self,
        containers: &[Container],
        mut volumes: Vec<Volume>,
        stopped: &mut watch::Receiver<Option<Duration>>,
    ) {
        let address = self.network.address.to_string();
        let mut reported = None;
        let mut refreshed = Instant::now();
        // Failures of each container's probe since it last succeeded; it is ready with the first success after its start.
        let mut failures = vec![(u64::MAX, 0); containers.len()];
        loop {
            let mut states = Vec::new();
            for (container, (failures, restarts)) in containers.iter().zip(&mut failures) {
                let state = container.state();
                if std::mem::replace(restarts, state.restarts) != state.restarts {
                    *failures = u64::MAX;
                }
                let probe = &container.spec["readinessProbe"];
                let passed = state.running && self.shared.probe(probe, &container.spec, &address).await;
                *failures = if passed { 0 } else { failures.saturating_add(1) };
                let ready = state.running && *failures < probe["failureThreshold"].as_u64().unwrap_or(3);
                states.push((container.name().to_owned(), state, ready));
            }
            if reported.as_ref() != Some(&states) && self.report("Running", &states, None).await {
                reported = Some(states);
            }
            // The kubelet does so once a minute.
            if refreshed.elapsed() > Duration::from_secs(2) {
                for volume in &mut volumes {
                    let _kept = tokio::time::timeout(Duration::from_secs(3), volume.refresh(self.owner)).await;
                }
                refreshed = Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                _ = stopped.wait_for(Option::is_some) => return,
            }
        }
    }

    async fn report(&self, phase: &str, states: &[(String, super::container::State, bool)], why: Option<&str>) -> bool {
        let ready = !states.is_empty() && states.iter().all(|(_, _, ready)| *ready);
        let text = |yes: bool| if yes { "True" } else { "False" };
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let condition = |kind: &str, yes: bool| json!({"type": kind, "status": text(yes), "lastTransitionTime": now});
        let init: HashSet<&str> = self.owner.value["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| container["name"].as_str().unwrap())
            .collect();
        let status = |(name, state, ready): &(String, super::container::State, bool)| {
            let running = if state.running { json!({"running": {}}) } else { json!({"waiting": {"reason": "Ended"}}) };
            json!({
                "name": name, "ready": ready, "restartCount": state.restarts, "started": state.running,
                "image": "", "imageID": "", "state": running,
            })
        };
        let of = |wanted: bool| {
            let each = states.iter().filter(|(name, ..)| init.contains(name.as_str()) == wanted);
            each.map(status).collect::<Vec<_>>()
        };
        let address = self.network.address.to_string();
        let patch = json!({"status": {
            "phase": phase, "hostIP": ADDRESS, "podIP": address, "podIPs": [{"ip": address}], "message": why,
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", !states.is_empty()),
                condition("ContainersReady", ready), condition("Ready", ready),
            ],
            "initContainerStatuses": of(true), "containerStatuses": of(false),
        }});
        let pods = Api::<Pod>::namespaced(self.owner.client.clone(), self.owner.namespace());
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(patch));
        let sent = pods.patch_status(self.owner.name(), &parameters, &patch);
        matches!(tokio::time::timeout(Duration::from_secs(3), sent).await, Ok(Ok(_)))
    }
}
