//! How each module's token is created, and the programs that a module needs.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    plug_in::{self, PlugIn},
    softhsm,
    wait::eventually_blocking,
};

use super::modules::{LABEL, Module, PIN, SO_PIN};
use crate::harness::PROGRAM;

/// A program that a module needs while it is used. It is killed when dropped.
pub struct Server {
    command: Command,
    /// What is there once the program is ready.
    ready: Option<PathBuf>,
    /// Where a program that leaves its parent writes its process ID.
    pid_file: Option<PathBuf>,
    child: Option<Child>,
}

impl Server {
    /// Starts the program.
    pub fn start(&mut self) {
        if let Some(Err(error)) = self.ready.as_ref().map(fs::remove_file) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
        let name = self.command.get_program().display().to_string();
        let child = self.command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{name} cannot be run ({error}): run tests/modules.sh")));
        if let Some(ready) = &self.ready {
            eventually_blocking(format!("{name} makes {}", ready.display()), || ready.exists());
        }
    }

    /// The processes that the program has started.
    pub fn children(&self) -> Vec<Pid> {
        let parent = format!("\nPPid:\t{}\n", self.child.as_ref().unwrap().id());
        let processes =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let children = processes.filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains(&parent))
        });
        children.filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    }

    /// Ends the program without a warning.
    pub fn kill(&mut self) {
        if let Some(path) = &self.pid_file
            && let Ok(pid) = fs::read_to_string(path)
        {
            let _already_gone = kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL);
            fs::remove_file(path).unwrap();
        }
        if let Some(mut child) = self.child.take() {
            let _already_gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The programs that a module needs, in the order of their start.
#[derive(Default)]
pub struct Servers(Vec<Server>);

impl Drop for Servers {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Servers {
    /// Starts a program, and waits until `ready` is there.
    fn start(
        &mut self,
        program: &str,
        arguments: &[&str],
        environment: &BTreeMap<String, String>,
        ready: Option<&Path>,
    ) -> &mut Server {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Server { command, ready: ready.map(Path::to_owned), pid_file: None, child: None };
        server.start();
        self.0.push(server);
        self.0.last_mut().unwrap()
    }

    /// The program of that name.
    pub fn named(&mut self, name: &str) -> &mut Server {
        let of_name = |server: &&mut Server| {
            let words = std::iter::once(server.command.get_program()).chain(server.command.get_args());
            words.take(2).any(|word| word == name)
        };
        self.0.iter_mut().find(of_name).unwrap_or_else(|| panic!("no {name} was started"))
    }
}

impl Module {
    /// Makes a token in a directory of its own, and starts what its module needs.
    pub fn make_token(self, directory: &Path) -> Servers {
        let path = |name: &str| directory.join(name).display().to_string();
        let mut servers = Servers::default();
        match self {
            Self::Profile(_) => return Self::SoftHsm.make_token(directory),
            Self::P11Kit => {
                Self::SoftHsm.make_token(directory);
                let arguments =
                    ["server", "--foreground", "--name", &path("p11-kit.sock"), "--provider", &softhsm(), "pkcs11:"];
                let environment = Self::SoftHsm.environment(directory);
                servers.start("p11-kit", &arguments, &environment, Some(&directory.join("p11-kit.sock")));
            }
            Self::Tpm2 => {
                let environment = self.environment(directory);
                for name in ["swtpm", "tpm2"] {
                    fs::create_dir(directory.join(name)).unwrap();
                }
                let state = format!("dir={}", path("swtpm"));
                let [server, control] =
                    ["swtpm.sock", "swtpm.sock.ctrl"].map(|name| format!("type=unixio,path={}", path(name)));
                let arguments = [
                    "socket",
                    "--tpm2",
                    "--tpmstate",
                    &state,
                    "--server",
                    &server,
                    "--ctrl",
                    &control,
                    "--flags",
                    "not-need-init,startup-clear",
                ];
                servers.start("swtpm", &arguments, &environment, Some(&directory.join("swtpm.sock")));
                fs::write(directory.join("bus.conf"), bus(&path("bus"))).unwrap();
                let configuration = format!("--config-file={}", path("bus.conf"));
                servers.start("dbus-daemon", &[&configuration, "--nofork"], &environment, Some(&directory.join("bus")));
                let tpm = format!("--tcti=swtpm:path={}", path("swtpm.sock"));
                servers.start("tpm2-abrmd", &["--allow-root", "--session", &tpm], &environment, None);
                let store = format!("--path={}", path("tpm2"));
                eventually_blocking("the resource manager answers", || {
                    self.try_tool("tpm2_ptool", directory, &["init", &store]).ok()
                });
                let pins = [format!("--sopin={SO_PIN}"), format!("--userpin={PIN}"), format!("--label={LABEL}")];
                self.tool("tpm2_ptool", directory, &["addtoken", "--pid=1", &pins[0], &pins[1], &pins[2], &store]);
            }
            Self::SoftHsm => {
                fs::create_dir(directory.join("tokens")).unwrap();
                let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", path("tokens"));
                fs::write(directory.join("softhsm2.conf"), text).unwrap();
                let words = ["--init-token", "--free", "--label", LABEL, "--so-pin", SO_PIN, "--pin", PIN];
                self.tool("softhsm2-util", directory, &words);
            }
            Self::Kryoptic => {
                let text = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", path("kryoptic.sql"));
                fs::write(directory.join("kryoptic.conf"), text).unwrap();
                let module = self.path().display().to_string();
                let first = ["--module", &module, "--slot", "1", "--init-token", "--label", LABEL, "--so-pin", SO_PIN];
                self.tool("pkcs11-tool", directory, &first);
                let login = ["--login", "--login-type", "so", "--so-pin", SO_PIN, "--init-pin", "--new-pin", PIN];
                let second = [&["--module", &module, "--slot", "1"], &login[..]].concat();
                self.tool("pkcs11-tool", directory, &second);
            }
            Self::OpenCryptoki => {
                opencryptoki_namespace(directory, &mut servers);
                let pid_file = directory.join("run/pkcsslotd.pid");
                let inside = path("inside");
                let daemon = servers.start(&inside, &["pkcsslotd"], &BTreeMap::new(), Some(&pid_file));
                daemon.pid_file = Some(pid_file);
                let initialize = format!("printf '87654321\\n{LABEL}\\n' | pkcsconf -c 0 -I");
                self.tool("sh", directory, &["-c", &initialize]);
                // Both PINs are the standard ones until they are changed.
                self.tool("pkcsconf", directory, &["-c", "0", "-P", "-S", "87654321", "-n", SO_PIN]);
                self.tool("pkcsconf", directory, &["-c", "0", "-u", "-S", SO_PIN, "-n", "12345678"]);
                self.tool("pkcsconf", directory, &["-c", "0", "-p", "-U", "12345678", "-n", PIN]);
            }
            Self::Nss => {
                fs::create_dir(directory.join("nss")).unwrap();
                let database = format!("sql:{}", path("nss"));
                let pin = path("pin");
                self.tool("certutil", directory, &["-N", "-d", &database, "-f", &pin]);
            }
        }
        servers
    }

    /// Makes a P-256 key with a self-signed CA certificate, with the vendor's own tool; returns the certificate.
    pub fn make_key(self, directory: &Path) -> String {
        let path = |name: &str| directory.join(name).display().to_string();
        if let Self::Profile(profile) = self {
            let ca = PlugIn::self_signed(plug_in::p256());
            fs::write(directory.join("vendor.der"), ca.ca.key().serialize_der()).unwrap();
            let login = ["--module", &softhsm(), "--token-label", LABEL, "--login", "--pin", PIN];
            // A name as ID, longer than any hash.
            let id: String = format!("vendor/{}/keys/istio-ca/versions/1", profile.name()).bytes().map(hex).collect();
            let key = ["--write-object", &path("vendor.der"), "--type", "privkey", "--id", &id, "--label", "istio-ca"];
            Self::SoftHsm.tool("pkcs11-tool", directory, &[&login[..], &key].concat());
            return ca.ca_cert;
        }
        assert_eq!(self, Self::Nss, "the other modules get keys by import");
        let mut noise = [0; 64];
        aws_lc_rs::rand::fill(&mut noise).unwrap();
        fs::write(directory.join("noise"), noise).unwrap();
        let script = format!(
            "printf 'y\\n-1\\ny\\n' | certutil -S -x -d 'sql:{}' -f '{}' -z '{}' -n ca -s 'CN=Suite,O=Suite' -w -1 -k ec \
             -q nistp256 -t C,, -v 120 -m 4711 -2 --keyUsage certSigning,crlSigning \
             --keyAttrFlags token,private,sensitive,unextractable",
            path("nss"),
            path("pin"),
            path("noise")
        );
        self.tool("sh", directory, &["-c", &script]);
        self.tool("certutil", directory, &["-L", "-d", &format!("sql:{}", path("nss")), "-n", "ca", "-a"])
    }

    /// A program in the namespaces of the module, if it has some.
    pub fn command(self, directory: &Path, program: impl AsRef<OsStr>) -> Command {
        if self != Self::OpenCryptoki {
            return Command::new(program);
        }
        let mut command = Command::new(directory.join("inside"));
        command.arg(program);
        command
    }

    /// The token host where the module works.
    pub fn host_program(self, directory: &Path) -> PathBuf {
        if self == Self::OpenCryptoki { directory.join("host") } else { PathBuf::from(PROGRAM) }
    }

    pub fn tool(self, program: &str, directory: &Path, arguments: &[&str]) -> String {
        self.try_tool(program, directory, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_tool(self, program: &str, directory: &Path, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(directory, program);
        let output = command
            .args(arguments)
            .envs(self.environment(directory))
            .output()
            .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): run tests/modules.sh"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok(out) } else { Err(format!("{program} {arguments:?}: {out}{err}")) }
    }
}

/// Mount and IPC namespaces in which openCryptoki's fixed paths are those of the directory: its slot daemon, its
/// configuration and its tokens are otherwise the machine's. The script `inside` runs a program in them.
fn opencryptoki_namespace(directory: &Path, servers: &mut Servers) {
    let path = |name: &str| directory.join(name).display().to_string();
    for name in ["etc", "log", "opencryptoki", "run/lock/opencryptoki/suite"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    let text = format!("version opencryptoki-3.1\nslot 0\n{{\nstdll = libpkcs11_sw.so\ntokname = {LABEL}\n}}\n");
    fs::write(directory.join("etc/opencryptoki.conf"), text).unwrap();
    let bind = |from: &str, to: &str| format!("mount --bind '{}' {to}\n", path(from));
    let script = [
        "set -e\n".to_owned(),
        bind("etc", "/etc/opencryptoki"),
        bind("opencryptoki", "/var/lib/opencryptoki"),
        bind("log", "/var/log"),
        "mount -t tmpfs none /dev/shm\n".to_owned(),
        bind("run", "/run"),
        "touch /run/entered\nexec sleep infinity\n".to_owned(),
    ];
    let arguments = ["--mount", "--ipc", "sh", "-c", &script.concat()];
    let holder = servers.start("unshare", &arguments, &BTreeMap::new(), Some(&directory.join("run/entered")));
    let holder = holder.child.as_ref().unwrap().id();
    let host = format!("{} {PROGRAM}", path("inside"));
    for (name, command) in [("inside", format!("nsenter --target {holder} --mount --ipc --")), ("host", host)] {
        fs::write(directory.join(name), format!("#!/bin/sh\nexec {command} \"$@\"\n")).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn hex(byte: u8) -> String {
    format!("{byte:02x}")
}

fn softhsm() -> String {
    softhsm::module_path().display().to_string()
}

/// The configuration of a message bus of one's own.
fn bus(socket: &str) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
         <busconfig><type>session</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>\
         <allow receive_sender=\"*\"/></policy></busconfig>\n"
    )
}
