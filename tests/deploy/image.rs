//! deploy/image: independent tools accept the images that build.sh makes, the images contain nothing unnecessary, and
//! they run: the trial's pod, container by container as the chart renders it, with its users and read-only root file
//! systems.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
};
use testkit::wait::eventually_blocking;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    rendered::{list, objects, of_kind, root, texts},
    tools::{ports, template, values_file},
};

/// Runs a program of a Debian package, which must succeed.
pub fn must(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|_| panic!("{program} is missing; run: sudo apt-get install {package}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Both images, built and unpacked once for all tests.
struct Images {
    directory: tempfile::TempDir,
}

static IMAGES: LazyLock<Images> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_istio-hsm-ca");
    let build = root().join("deploy/image/build.sh");
    for (name, more) in [("plain", &[][..]), ("softhsm", &["--softhsm"][..])] {
        let image = directory.path().join(name);
        let arguments = [more, &["--program", program, text(&image)]].concat();
        must(text(&build), "bash", &arguments);
        let bundle = directory.path().join(format!("{name}.bundle"));
        let version = format!("{}:{}", image.display(), env!("CARGO_PKG_VERSION"));
        must("umoci", "umoci", &["unpack", "--rootless", "--image", &version, text(&bundle)]);
    }
    Images { directory }
});

impl Images {
    fn layout(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn rootfs(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.bundle/rootfs"))
    }
}

#[test]
#[ignore = "needs skopeo, umoci and bubblewrap: make test-deploy"]
fn others_take_the_image_and_it_runs_without_privileges() {
    for name in ["plain", "softhsm"] {
        let layout = IMAGES.layout(name);
        let inspected = must("skopeo", "skopeo", &["inspect", "--config", &format!("oci:{}", layout.display())]);
        let config: Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(config["config"]["User"], "10001:10001", "{name}");
        let warned = config["config"]["Labels"].to_string().contains("FOR TRIALS ONLY");
        assert_eq!(warned, name == "softhsm");
        must("skopeo", "skopeo", &["inspect", &format!("oci-archive:{}.tar", layout.display())]);
        let rootfs = IMAGES.rootfs(name);
        let run =
            ["--ro-bind", text(&rootfs), "/", "--proc", "/proc", "--dev", "/dev", "--unshare-all", "--uid", "10001"];
        let run = [&run[..], &["--cap-drop", "ALL", "--clearenv", "--", "/usr/bin/istio-hsm-ca", "--version"]].concat();
        let version = must("bwrap", "bubblewrap", &run);
        assert_eq!(version.trim(), format!("istio-hsm-ca {}", env!("CARGO_PKG_VERSION")), "{name}");
    }
}

#[test]
#[ignore = "needs umoci: make test-deploy"]
fn the_image_holds_what_the_program_needs_and_nothing_else() {
    let rootfs = IMAGES.rootfs("plain");
    let mut programs = Vec::new();
    let mut pending = vec![rootfs.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() {
                let mode = metadata.permissions().mode();
                assert_eq!(
                    mode & 0o6022,
                    0,
                    "{}: nothing is writable by others, or of another's rights",
                    path.display()
                );
                if mode & 0o111 != 0 && !path.to_str().unwrap().contains(".so") {
                    programs.push(path.strip_prefix(&rootfs).unwrap().to_owned());
                }
            }
        }
    }
    programs.sort();
    let ours = ["usr/bin/istio-hsm-ca", "usr/bin/istio-hsm-ca-token-host"].map(PathBuf::from);
    assert_eq!(programs, ours, "unexpected programs");
    assert!(rootfs.join("var/lib/dpkg/status.d/libc6").exists(), "no package list for scanners");
    assert!(rootfs.join("usr/share/doc/libc6/copyright").exists());
    let packed = fs::metadata(IMAGES.layout("plain").with_extension("tar")).unwrap().len();
    assert!(packed < 40 << 20, "{packed} bytes are not small");
    // The build is reproducible.
    let again = tempfile::tempdir().unwrap();
    let image = again.path().join("again");
    let build = root().join("deploy/image/build.sh");
    must(text(&build), "bash", &["--program", env!("CARGO_BIN_EXE_istio-hsm-ca"), text(&image)]);
    let index = |layout: &Path| fs::read_to_string(layout.join("index.json")).unwrap();
    assert_eq!(index(&image), index(&IMAGES.layout("plain")));
}

/// A container: a root file system, its mounts, a user.
struct Container {
    script: String,
    /// Mount point of the root file system.
    _place: tempfile::TempDir,
}

impl Container {
    /// Volumes are (source, mount path, read-only).
    fn new(rootfs: &Path, volumes: &[(&Path, &str, bool)], user: &Value, environment: &[(&str, &str)]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let at = place.path().display();
        // Like a container runtime, creates mount points before the root becomes read-only.
        let mut script = format!("set -e\nmount --bind '{}' '{at}'\n", rootfs.display());
        for (here, there, _) in volumes {
            let make = if here.is_dir() { "mkdir -p" } else { "touch" };
            script.push_str(&format!("mkdir -p \"$(dirname '{at}{there}')\"\n{make} '{at}{there}'\n"));
        }
        script.push_str(&format!(
            "mount -o remount,bind,ro '{at}'\nmount -t proc proc '{at}/proc'\nmount --rbind /dev '{at}/dev'\n"
        ));
        for (here, there, read_only) in volumes {
            script.push_str(&format!("mount --bind '{}' '{at}{there}'\n", here.display()));
            if *read_only {
                script.push_str(&format!("mount -o remount,bind,ro '{at}{there}'\n"));
            }
        }
        script.push_str("exec env -i PATH=/usr/bin ");
        for (name, value) in environment {
            script.push_str(&format!("'{name}={value}' "));
        }
        // With the volumes' group as a supplementary group, and no privileges beyond the user's.
        script.push_str(&format!("/usr/sbin/chroot --userspec={user}:{user} --groups=10000 '{at}' \"$@\"\n"));
        Self { script, _place: place }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "bash", "-c", &self.script, "container"]);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn must(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).stderr(Stdio::inherit()).spawn().unwrap())
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _already_gone = self.0.wait();
    }
}

impl Running {
    fn sees(&self, path: &str) -> bool {
        Path::new(&format!("/proc/{}/root{path}", self.0.id())).exists()
    }

    fn user(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    }

    fn ends_when_told(&mut self) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// A directory with the volumes' group, as created by the kubelet.
fn volume(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir_all(&path).unwrap();
    chown(&path, None, Some(10000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2775)).unwrap();
    path
}

/// The daemon's configuration as rendered, but with other ports and without an API server, which this test does not
/// have.
fn without_api_server(text: &str, ports: [u16; 2]) -> String {
    let mut table: toml::Table = toml::from_str(text).unwrap();
    table.remove("kubernetes").unwrap();
    for (section, port) in ["listen", "admin"].into_iter().zip(ports) {
        let section = table[section].as_table_mut().unwrap();
        section.insert("address".to_owned(), format!("127.0.0.1:{port}").into());
    }
    toml::to_string(&table).unwrap()
}

#[test]
#[ignore = "needs Helm, umoci and root: make test-deploy"]
fn the_trials_pod_runs_as_it_is_rendered() {
    assert!(nix::unistd::geteuid().is_root(), "mounting root file systems needs root; run it as root");
    let objects = objects(&template(&["--values", &values_file("trial")]).unwrap());
    let data = |name: &str, key: &str| {
        let maps = of_kind(&objects, "ConfigMap");
        let map = maps.into_iter().find(|map| map["metadata"]["name"] == name).unwrap();
        map["data"][key].as_str().unwrap().to_owned()
    };
    let pod = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"];
    let (host, daemon) = (&list(&pod["initContainers"])[0], &list(&pod["containers"])[0]);
    let job = &of_kind(&objects, "Job")[0]["spec"]["template"]["spec"];
    let (host_user, daemon_user) = (&host["securityContext"]["runAsUser"], &daemon["securityContext"]["runAsUser"]);

    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = |name: &str| volume(directory.path(), name);
    let (softhsm, socket, run) = (volume("softhsm"), volume("socket"), volume("run"));
    let (log, marker, import) = (volume("log/log"), volume("log/token-softhsm"), volume("import"));
    let cacerts = directory.path().join("cacerts");
    must(text(&root().join("scripts/sample-ca.sh")), "openssl", &[text(&cacerts)]);
    must("chown", "coreutils", &["-R", &host_user.to_string(), text(&cacerts)]);
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let ports: [u16; 2] = ports();
    let config = write("config.toml", &without_api_server(&data("istio-hsm-ca", "config.toml"), ports));
    let host_config = write("token-host.toml", &data("istio-hsm-ca-token-softhsm", "token-host.toml"));

    // The Job: creates the token, then imports the key; from files, since there is no API server.
    let environment = [("SOFTHSM2_CONF", list(&host["env"])[0]["value"].as_str().unwrap())];
    let rootfs = IMAGES.rootfs("softhsm");
    let volumes: [(&Path, &str, bool); 3] =
        [(&softhsm, "/var/lib/softhsm", false), (&import, "/run/bundle", false), (&cacerts, "/cacerts", true)];
    let container = Container::new(&rootfs, &volumes, host_user, &environment);
    let init = texts(&list(&job["initContainers"])[0]["command"]);
    let init: Vec<&str> = init.iter().map(String::as_str).collect();
    container.must(&init);
    let pin = fs::read_to_string(softhsm.join("istio-ca/pin")).unwrap();
    container.must(&init);
    assert_eq!(fs::read_to_string(softhsm.join("istio-ca/pin")).unwrap(), pin, "a second start changed the PIN");
    let arguments = texts(&list(&job["containers"])[0]["args"]);
    let from_files = arguments.iter().map(|argument| match argument.as_str() {
        secret if secret.starts_with("--from-secret=") => "--from=/cacerts",
        other => other,
    });
    let arguments: Vec<&str> = from_files.filter(|argument| !argument.starts_with("--bundle-configmap")).collect();
    container.must(&[&["/usr/bin/istio-hsm-ca"], arguments.as_slice()].concat());
    let bundle = import.join("files");

    // The pod: the token host, then the daemon from the image without SoftHSM.
    let volumes: [(&Path, &str, bool); 6] = [
        (&softhsm, "/var/lib/softhsm", false),
        (&config, "/etc/istio-hsm-ca/config.toml", true),
        (&socket, "/run/token/softhsm", false),
        (&host_config, "/etc/istio-hsm-ca/token-host.toml", true),
        (&bundle, "/etc/istio-hsm-ca/bundle", true),
        (&marker, "/var/lib/token/softhsm", false),
    ];
    let container = Container::new(&rootfs, &volumes, host_user, &environment);
    let arguments = texts(&host["args"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut host = container.start(&[&["/usr/bin/istio-hsm-ca"], arguments.as_slice()].concat());
    eventually_blocking("the host listens", || socket.join("socket").exists());

    let rootfs = IMAGES.rootfs("plain");
    let requests = directory.path().join("requests");
    fs::create_dir(&requests).unwrap();
    let csr = requests.join("request.pem");
    let key = directory.path().join("key.pem");
    let request =
        ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", text(&key), "-subj", "/", "-out", text(&csr)];
    must("openssl", "openssl", &request);
    let volumes: [(&Path, &str, bool); 6] = [
        (&config, "/etc/istio-hsm-ca/config.toml", true),
        (&bundle, "/etc/istio-hsm-ca/bundle", true),
        (&log, "/var/lib/istio-hsm-ca/log", false),
        (&run, "/run/istio-hsm-ca", false),
        (&socket, "/run/token/softhsm", true),
        (&requests, "/requests", true),
    ];
    let container = Container::new(&rootfs, &volumes, daemon_user, &[]);
    let arguments = texts(&daemon["args"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut daemon = container.start(&[&["/usr/bin/istio-hsm-ca"], arguments.as_slice()].concat());
    let ready = format!("http://127.0.0.1:{}/readyz", ports[1]);
    eventually_blocking("the daemon is ready", || {
        Command::new("curl").args(["-sf", &ready]).output().expect("curl is missing; install curl").status.success()
    });

    assert_eq!((host.user(), daemon.user()), (host_user.to_string(), daemon_user.to_string()));
    for secret in
        ["/var/lib/softhsm/istio-ca/pin", "/var/lib/softhsm/istio-ca/tokens", "/usr/lib/softhsm/libsofthsm2.so"]
    {
        assert!(host.sees(secret) && !daemon.sees(secret), "{secret}");
    }
    assert!(daemon.sees("/var/lib/istio-hsm-ca/log/lock") && !host.sees("/var/lib/istio-hsm-ca/log"));

    let identity = "spiffe://cluster.local/ns/demo/sa/httpbin";
    let issue = ["/usr/bin/istio-hsm-ca", "issue", "--csr", "/requests/request.pem", "--spiffe-id", identity];
    let issued = container.run(&issue);
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    let chain = write("chain.pem", &String::from_utf8(issued.stdout).unwrap());
    let roots = bundle.join("root-cert.pem");
    must("openssl", "openssl", &["verify", "-CAfile", text(&roots), "-untrusted", text(&chain), text(&chain)]);
    assert!(
        must("openssl", "openssl", &["x509", "-in", text(&chain), "-noout", "-ext", "subjectAltName"])
            .contains(identity)
    );

    daemon.ends_when_told();
    host.ends_when_told();
}
