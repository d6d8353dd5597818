//! A token host that operators activate, and its daemon: the PIN is in no file.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use testkit::{
    daemon::{Daemon, SERVER, Site},
    plug_in::PlugIn,
    program,
    wait::eventually_blocking,
};

/// The site's token host, with its own configuration.
struct Host<'a> {
    site: &'a Site,
    child: Option<Child>,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

impl<'a> Host<'a> {
    fn new(site: &'a Site) -> Self {
        let uri = site.uri();
        let uri = uri.split("&pin-source").next().unwrap();
        let root = site.softhsm.path().display();
        let settings = format!(
            "uri = \"{uri}\"\npin_marker = \"{root}/pin-marker\"\nbundle = \"{root}/bundle\"\nmax_validity = \"90days\"\n\
             trust_domains = [\"cluster.local\"]\ndns_names = [\"{SERVER}\"]\nip_addresses = [\"127.0.0.1\"]\n\
             log_origins = [\"test.invalid/istio-hsm-ca\"]\n[activation]\nsocket = \"{root}/activation\"\n"
        );
        fs::write(site.softhsm.path().join("host.toml"), settings).unwrap();
        Self { site, child: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.softhsm.path().join(name)
    }

    fn start(&mut self) {
        let mut command = Command::new(program("istio-hsm-ca-token-host"));
        command.arg("--config").arg(self.path("host.toml")).arg("--socket").arg(self.path("host.sock"));
        command.env("SOFTHSM2_CONF", self.site.softhsm.conf()).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _already_gone = child.kill();
            let _status = child.wait();
        }
    }

    fn activate(&self, arguments: &[&str]) -> Output {
        let socket = self.path("activation");
        let command = ["activate", "--socket", socket.to_str().unwrap()];
        self.site.run(&[command.as_slice(), arguments].concat())
    }
}

fn wait_for_operators(daemon: &Daemon, reason: &str) -> String {
    eventually_blocking("the wait for operators", || {
        let (status, text) = daemon.get("/readyz");
        (status == 503 && text.contains("waiting for operators") && text.contains(reason)).then_some(text)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn token_host_waits_for_operators_after_each_start() {
    let site = Site::new(&PlugIn::intermediate());
    let pin = site.softhsm.pin_file();
    let mut host = Host::new(&site);
    host.start();
    let socket = host.path("host.sock");
    let daemon = site.spawn(&format!("[[token]]\nname = \"apart\"\nsocket = \"{}\"\n", socket.display()));
    let text = wait_for_operators(&daemon, "");
    assert!(text.contains("istio-hsm-ca activate --socket"), "{text}");

    // A wrong PIN is tried once, and forgotten.
    let wrong = host.path("wrong");
    fs::write(&wrong, "9999\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = host.activate(&["--pin-file", wrong.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("refuses the PIN"), "{said}");
    wait_for_operators(&daemon, "the last PIN was refused");

    // The right one from shares, two of which are enough.
    let shares = host.path("shares");
    let split = ["ceremony", "split-pin", "--shares", "3", "--threshold", "2", "--out", shares.to_str().unwrap()];
    assert!(site.run(&[split.as_slice(), &["--pin-file", pin.to_str().unwrap()]].concat()).status.success());
    let share = |number: u8| shares.join(format!("share-{number}.txt")).display().to_string();
    let activated = host.activate(&["--pin-share", &share(1), "--pin-share", &share(3)]);
    assert!(activated.status.success(), "{}", String::from_utf8_lossy(&activated.stderr));
    assert!(String::from_utf8_lossy(&activated.stdout).contains("the token has accepted the PIN"));
    daemon.wait_ready();
    daemon.send(daemon.ask()).await.unwrap();
    let again = host.activate(&[]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("active already"), "{again:?}");

    // The PIN is gone with the process.
    host.kill();
    host.start();
    wait_for_operators(&daemon, "");
    assert!(host.activate(&["--pin-file", pin.to_str().unwrap()]).status.success());
    daemon.wait_ready();
    daemon.send(daemon.ask()).await.unwrap();
}

#[test]
fn host_with_two_sources_of_the_pin_does_not_start() {
    let site = Site::new(&PlugIn::intermediate());
    let mut host = Host::new(&site);
    let settings = fs::read_to_string(host.path("host.toml")).unwrap();
    fs::write(host.path("host.toml"), format!("pin_file = \"/run/pin\"\n{settings}")).unwrap();
    host.start();
    let status = host.child.as_mut().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(1));
}
