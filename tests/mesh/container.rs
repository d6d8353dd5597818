//! Containers: a program in a pod's network, with a root file system and volumes of its own, that is started again when
//! it ends.

use std::{
    collections::HashMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use tokio::{process::Command, sync::watch, task::JoinHandle};

use super::{
    image::{Image, bind},
    volumes::{Owner, Volume, own},
};

/// What is needed to run a container, once its volumes are there.
pub struct Plan {
    pub name: String,
    network: String,
    root: PathBuf,
    user: String,
    environment: Vec<(String, String)>,
    command: Vec<String>,
    log: fs::File,
}

/// State of a container that the pod's status shows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct State {
    pub running: bool,
    pub restarts: u32,
    pub pid: Option<i32>,
}

/// A container that runs until it is stopped.
pub struct Container {
    pub plan: Arc<Plan>,
    pub spec: Value,
    pub state: Arc<Mutex<State>>,
    stop: watch::Sender<Option<Duration>>,
    task: JoinHandle<()>,
}

impl Plan {
    /// Mounts a container's root file system and volumes.
    pub fn new(
        owner: &Owner<'_>,
        spec: &Value,
        image: &Image,
        volumes: &[Volume],
        network: String,
        directory: &Path,
        log: fs::File,
    ) -> Self {
        let name = spec["name"].as_str().unwrap().to_owned();
        let root = directory.join(&name).join("root");
        image.mount(&root);
        bind(Path::new("/run/mesh/hosts"), &root.join("etc/hosts"));
        fs::create_dir_all(root.join("tmp")).unwrap();
        // Mounts inside other mounts come later.
        let mut mounts: Vec<&Value> = spec["volumeMounts"].as_array().into_iter().flatten().collect();
        mounts.sort_by_key(|mount| mount["mountPath"].as_str().unwrap().len());
        let group = owner.value["spec"]["securityContext"]["fsGroup"].as_u64().map(|group| group as u32);
        for mount in mounts {
            let wanted = mount["name"].as_str().unwrap();
            let volume = volumes.iter().find(|volume| volume.name() == wanted).unwrap();
            let mut from = volume.directory.clone();
            if let Some(path) = mount["subPath"].as_str() {
                from = from.join(path);
                if !from.exists() {
                    fs::create_dir_all(&from).unwrap();
                    fs::set_permissions(&from, std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
                    own(&from, group);
                }
                from = from.canonicalize().unwrap();
            }
            let path = mount["mountPath"].as_str().unwrap().trim_start_matches('/');
            // /var/run is an absolute symbolic link on many systems.
            let path = path.strip_prefix("var/run/").map_or_else(|| path.to_owned(), |rest| format!("run/{rest}"));
            bind(&from, &root.join(path));
        }
        let environment = environment(owner, spec);
        let text = |key: &str| -> Vec<String> {
            let values = spec[key].as_array().into_iter().flatten();
            values.map(|value| expand(value.as_str().unwrap(), &environment)).collect()
        };
        let (mut command, arguments) = (text("command"), text("args"));
        if command.is_empty() {
            command.extend(image.entrypoint.map(str::to_owned));
        }
        command.extend(arguments);
        let id = |key: &str| {
            let of = |level: &Value| level["securityContext"][key].as_u64();
            of(spec).or_else(|| of(&owner.value["spec"]))
        };
        // istiod's image has this user.
        let default = if image.entrypoint.is_some_and(|program| program.contains("pilot")) { 1337 } else { 0 };
        let user = format!("{}:{}", id("runAsUser").unwrap_or(default), id("runAsGroup").unwrap_or(default));
        Self { name, network, root, user, environment, command, log }
    }

    /// A program in the container's namespaces, as its user.
    fn program(&self, command: &[String]) -> Command {
        let group = self.user.split(':').next_back().unwrap();
        let supplementary = format!("{group},10000");
        let mut program = Command::new("nsenter");
        program
            .arg(format!("--net={}", self.network))
            // Before the rest of the mesh, as a kubelet reserves CPU time for pods: a proxy that gets too little falls behind
            // its traffic, and its clients give up.
            .args(["nice", "--adjustment=-5"])
            .args(["chroot", "--userspec", &self.user, "--groups", &supplementary])
            .arg(&self.root)
            .args(command)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        program
    }

    /// Runs the container to its end.
    ///
    /// # Errors
    /// If it fails.
    pub async fn once(&self) -> Result<(), String> {
        let mut program = self.program(&self.command);
        program.stdout(self.log.try_clone().unwrap()).stderr(self.log.try_clone().unwrap());
        let status = program.status().await.unwrap();
        if status.success() { Ok(()) } else { Err(format!("container {}: {status}", self.name)) }
    }

    /// Runs another program in the container; returns its output.
    pub async fn exec(&self, command: &[&str]) -> std::process::Output {
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        self.program(&command).output().await.unwrap()
    }
}

impl Drop for Container {
    /// Ends what still runs, if the pod was deleted while it started.
    fn drop(&mut self) {
        self.task.abort();
        if let Some(pid) = self.state().pid {
            end_all(pid);
        }
    }
}

impl Container {
    /// Starts a container that is kept running.
    pub fn start(plan: Plan, spec: Value) -> Self {
        let plan = Arc::new(plan);
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = watch::channel(None);
        let task = tokio::spawn(keep_running(Arc::clone(&plan), Arc::clone(&state), stopped));
        Self { plan, spec, state, stop, task }
    }

    pub fn name(&self) -> &str {
        &self.plan.name
    }

    pub fn state(&self) -> State {
        *self.state.lock().unwrap()
    }

    /// Ends it as the kubelet does: its hook, SIGTERM, and SIGKILL after the time of grace.
    pub async fn stop(&self, grace: Duration) {
        if let Some(hook) = self.spec["lifecycle"]["preStop"]["exec"]["command"].as_array() {
            let hook: Vec<&str> = hook.iter().map(|word| word.as_str().unwrap()).collect();
            let _may_fail = tokio::time::timeout(grace, self.plan.exec(&hook)).await;
        }
        self.stop.send_replace(Some(grace));
        while !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn keep_running(plan: Arc<Plan>, state: Arc<Mutex<State>>, mut stopped: watch::Receiver<Option<Duration>>) {
    loop {
        let started = Instant::now();
        let mut program = plan.program(&plan.command);
        program.stdout(plan.log.try_clone().unwrap()).stderr(plan.log.try_clone().unwrap());
        // A container's processes end with its first.
        let mut child = program.process_group(0).spawn().unwrap();
        let pid = child.id().unwrap() as i32;
        {
            let mut state = state.lock().unwrap();
            (state.running, state.pid) = (true, Some(pid));
        }
        let ended = tokio::select! {
            status = child.wait() => Some(status.unwrap()),
            _ = stopped.wait_for(Option::is_some) => None,
        };
        let Some(status) = ended else {
            let grace = stopped.borrow().unwrap();
            let _gone = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
            if tokio::time::timeout(grace, child.wait()).await.is_err() {
                child.kill().await.unwrap();
            }
            end_all(pid);
            let mut state = state.lock().unwrap();
            (state.running, state.pid) = (false, None);
            return;
        };
        end_all(pid);
        {
            let mut state = state.lock().unwrap();
            (state.running, state.pid, state.restarts) = (false, None, state.restarts + 1);
        }
        use std::io::Write;
        let text = format!("-- ended: code {:?}, signal {:?}; started again\n", status.code(), status.signal());
        plan.log.try_clone().unwrap().write_all(text.as_bytes()).unwrap();
        // A shorter back-off than the kubelet's ten seconds would be, but only for what keeps ending.
        let pause = if started.elapsed() < Duration::from_secs(10) { 2000 } else { 300 };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            _ = stopped.wait_for(Option::is_some) => return,
        }
    }
}

/// Ends all processes of a container, by the number of its first.
fn end_all(pid: i32) {
    let _none_left = nix::sys::signal::killpg(Pid::from_raw(pid), Signal::SIGKILL);
}

/// A container's environment variables.
fn environment(owner: &Owner<'_>, spec: &Value) -> Vec<(String, String)> {
    let mut all = vec![
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), owner.name().to_owned()),
        ("HOME".to_owned(), "/".to_owned()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
    ];
    for variable in spec["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap().to_owned();
        let value = if let Some(field) = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            owner.field(field)
        } else if let Some(resource) = variable["valueFrom"]["resourceFieldRef"]["resource"].as_str() {
            // What Istio asks for, in its units. The limits themselves are not enforced.
            if resource.ends_with("cpu") { "2".to_owned() } else { (1_u64 << 30).to_string() }
        } else {
            expand(variable["value"].as_str().unwrap_or_default(), &all)
        };
        all.push((name, value));
    }
    all
}

/// Replaces `$(NAME)` by the value of an environment variable.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    let known: HashMap<&str, &str> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("$(") {
        let Some(end) = rest[at..].find(')').map(|end| at + end) else { break };
        done.push_str(&rest[..at]);
        match known.get(&rest[at + 2..end]) {
            Some(value) => done.push_str(value),
            None => done.push_str(&rest[at..=end]),
        }
        rest = &rest[end + 1..];
    }
    done + rest
}
