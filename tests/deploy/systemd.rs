//! deploy/systemd: the units are valid, hardened, and match the program.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{guide, rendered::root};
use testkit::{
    daemon::{SOON, Site},
    plug_in::PlugIn,
};

/// systemd's exposure levels, from 0 (safe) to 100. The token hosts may map writable and executable memory, as vendors'
/// modules do.
const THRESHOLDS: [(&str, u32); 2] = [("istio-hsm-ca.service", 13), ("istio-hsm-ca-token@hsm.service", 15)];

/// A root directory as after installation, with the program.
fn installed() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    let units = tree.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(tree.path().join("usr/bin")).unwrap();
    let program = env!("CARGO_BIN_EXE_istio-hsm-ca");
    std::os::unix::fs::symlink(program, tree.path().join("usr/bin/istio-hsm-ca")).unwrap();
    for entry in fs::read_dir(root().join("deploy/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".service") || name.ends_with(".target") {
            // An absolute path exists on the test machine, but the program does not.
            let text = fs::read_to_string(&path).unwrap().replace("/usr/bin/istio-hsm-ca", program);
            fs::write(units.join(name.replace('@', "@hsm")), &text).unwrap();
            fs::write(units.join(name), text).unwrap();
        }
    }
    tree
}

fn analyze(arguments: &[&str], units: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .current_dir(units)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
        .output()
        .expect("systemd-analyze is missing; install the package systemd");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[test]
#[ignore = "needs systemd-analyze: make test-deploy"]
fn the_units_are_well_formed() {
    let tree = installed();
    let units = tree.path().join("usr/lib/systemd/system");
    for unit in ["istio-hsm-ca.service", "istio-hsm-ca-token@hsm.service", "istio-hsm-ca-token.target"] {
        let (passed, text) = analyze(&["verify", "--man=no", "--recursive-errors=no", &format!("./{unit}")], &units);
        assert!(passed, "{unit}: {text}");
        // Warnings count, too.
        let ours: Vec<_> = text.lines().filter(|line| line.contains("istio-hsm-ca")).collect();
        assert!(ours.is_empty(), "{unit}: {ours:#?}");
    }
    let path = units.join("istio-hsm-ca.service");
    let broken = fs::read_to_string(&path).unwrap().replace("ProtectSystem=strict", "ProtectSistem=strict");
    fs::write(&path, broken).unwrap();
    let (_, text) = analyze(&["verify", "--man=no", "--recursive-errors=no", "./istio-hsm-ca.service"], &units);
    assert!(text.contains("ProtectSistem"), "the mistake is not found: {text}");
}

#[test]
#[ignore = "needs systemd-analyze: make test-deploy"]
fn the_units_are_hardened() {
    let tree = installed();
    let units = tree.path().join("usr/lib/systemd/system");
    for (unit, threshold) in THRESHOLDS {
        let security = |threshold: u32| {
            let threshold = format!("--threshold={threshold}");
            analyze(&["security", "--offline=yes", "--no-pager", &threshold, &format!("./{unit}")], &units)
        };
        let (passed, text) = security(threshold);
        assert!(passed, "{unit}: {text}");
        assert!(!security(0).0, "the threshold is not applied");
    }
}

#[test]
fn the_pin_goes_to_the_host_alone() {
    let daemon = fs::read_to_string(root().join("deploy/systemd/istio-hsm-ca.service")).unwrap();
    let host = fs::read_to_string(root().join("deploy/systemd/istio-hsm-ca-token@.service")).unwrap();
    let value =
        |unit: &str, key: &str| unit.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).map(str::to_owned);
    assert_eq!(value(&daemon, "LoadCredential"), None);
    assert_eq!(value(&host, "LoadCredential").as_deref(), Some("pin:/etc/istio-hsm-ca/token/%i.pin"));
    assert_ne!(value(&daemon, "User"), value(&host, "User"));
    assert_ne!(value(&daemon, "Group"), value(&host, "Group"));
    assert!(value(&daemon, "InaccessiblePaths").is_some_and(|paths| paths.contains("/etc/istio-hsm-ca/token")));
    let users = fs::read_to_string(root().join("deploy/systemd/istio-hsm-ca.sysusers")).unwrap();
    for unit in [&daemon, &host] {
        let user = value(unit, "User").unwrap();
        assert!(users.lines().any(|line| line.split_whitespace().take(2).eq(["u", user.as_str()])), "{user}");
    }
}

#[test]
fn the_hosts_configuration_parses_and_names_the_credential() {
    let text = fs::read_to_string(root().join("deploy/systemd/token-host.toml")).unwrap();
    for text in [text.clone(), text.replace("\n#: ", "\n")] {
        let settings: token_host::Settings = toml::from_str(&text).unwrap();
        let pin = settings.pin_file.unwrap();
        assert_eq!(pin, Path::new("/run/credentials/istio-hsm-ca-token@hsm.service/pin"));
        assert!(settings.pin_marker.starts_with("/var/lib/istio-hsm-ca-token/hsm"));
        assert!(settings.checkpoint_file.unwrap().starts_with("/var/lib/istio-hsm-ca-token/hsm"));
    }
}

/// systemd's view: the daemon listens, is ready, stops.
#[test]
fn the_daemon_tells_systemd_how_it_is() {
    let site = Site::new(&PlugIn::intermediate());
    let config = site.configure("");
    let path = site.softhsm.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
        .args(["serve", "--config", config.to_str().unwrap()])
        .env("SOFTHSM2_CONF", site.softhsm.conf())
        .env("NOTIFY_SOCKET", &path)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut reported = Vec::new();
    let mut hear = |wanted: &str| {
        let mut buffer = [0; 4096];
        while !reported.iter().any(|line: &String| line == wanted) {
            let length = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{wanted} is not reported: {error}; {reported:?}"));
            reported.extend(std::str::from_utf8(&buffer[..length]).unwrap().lines().map(str::to_owned));
        }
    };
    hear("READY=1");
    hear("STATUS=ready");
    kill(Pid::from_raw(daemon.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    hear("STOPPING=1");
    assert!(daemon.wait().unwrap().success());
}

/// Makes systemd the first process of a namespace, with its own network, on temporary copies of /etc, /usr and /var,
/// and only with our units.
const OUTER: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
for directory in etc usr var; do
  mkdir -p /mnt/$directory/upper /mnt/$directory/work
  mount -t overlay overlay -o lowerdir=/$directory,upperdir=/mnt/$directory/upper,workdir=/mnt/$directory/work /$directory
done
mkdir /mnt/units /mnt/local
for target in basic multi-user network-online shutdown sysinit; do
  cp /usr/lib/systemd/system/$target.target /mnt/units/
done
mount --bind /mnt/units /usr/lib/systemd/system
mkdir -p /etc/systemd/system
mount --bind /mnt/local /etc/systemd/system
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
cp "$WORK"/test.service "$WORK"/test.target /run/systemd/system/
# What systemd does itself where it does not take itself to be in a container.
mount --make-rshared /
export container=other
exec /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no
"#;

/// Runs before the guide's blocks: a token, a sample CA, and a drop-in that gives the host access to SoftHSM's files.
pub const BEFORE: &str = r#"
set -euo pipefail
umask 022
cd "$WORK/checkout"
export PATH=$WORK/programs:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export TOKEN=$(softhsm/init.sh /var/lib/softhsm-trial | sed 's/&pin-source=.*//')
export PIN_FILE=/var/lib/softhsm-trial/pin SOFTHSM2_CONF=/var/lib/softhsm-trial/softhsm2.conf
scripts/sample-ca.sh cacerts
for unit in istio-hsm-ca istio-hsm-ca-token@hsm; do
  mkdir -p /etc/systemd/system/$unit.service.d
  printf '[Service]\nStandardOutput=append:%s\nStandardError=append:%s\n' "$WORK/$unit.log" "$WORK/$unit.log" \
    > /etc/systemd/system/$unit.service.d/log.conf
done
printf '[Service]\nEnvironment=SOFTHSM2_CONF=%s\nReadWritePaths=/var/lib/softhsm-trial\n' "$SOFTHSM2_CONF" \
  > /etc/systemd/system/istio-hsm-ca-token@hsm.service.d/softhsm.conf
"#;

/// Functions for what runs after them.
pub const CHECKS: &str = r#"
# SoftHSM alone: its files belong to the host's user. They did not while the import ran, and the host did not start.
chown -R istio-hsm-ca-token: /var/lib/softhsm-trial
ready() {
  for _ in $(seq 150); do
    [ "$(systemctl show --property StatusText --value istio-hsm-ca)" = ready ] && return
    sleep 0.2
  done
  systemctl status --no-pager istio-hsm-ca istio-hsm-ca-token@hsm
  return 1
}
ready
issue() {
  openssl req -new -newkey rsa:2048 -nodes -keyout key.pem -subj / -out request.pem 2>/dev/null
  /usr/bin/istio-hsm-ca issue --csr request.pem --spiffe-id spiffe://cluster.local/ns/demo/sa/httpbin --out chain.pem
  openssl verify -CAfile cacerts/root-cert.pem -untrusted chain.pem chain.pem
}
"#;

/// Checks that the result is as the guide describes.
const AFTER: &str = r#"
issue
# The daemon's user sees no secret, in its unit and outside of it.
pid=$(systemctl show --property MainPID --value istio-hsm-ca)
nsenter --target "$pid" --mount setpriv --reuid istio-hsm-ca --regid istio-hsm-ca --init-groups cat /etc/istio-hsm-ca/config.toml >/dev/null
for secret in /etc/istio-hsm-ca/token/hsm.pin /etc/istio-hsm-ca/token/hsm.toml /var/lib/softhsm-trial/pin \
  /run/credentials/istio-hsm-ca-token@hsm.service/pin; do
  cat "$secret" >/dev/null
  for place in "" "nsenter --target $pid --mount"; do
    if $place setpriv --reuid istio-hsm-ca --regid istio-hsm-ca --init-groups cat "$secret" >/dev/null 2>&1; then
      echo "the daemon's user can read $secret"
      exit 1
    fi
  done
done
# A host that dies is started again, and the daemon goes on with it.
kill -KILL "$(systemctl show --property MainPID --value istio-hsm-ca-token@hsm)"
sleep 2
ready
issue
systemctl restart istio-hsm-ca
ready
issue
systemctl stop istio-hsm-ca istio-hsm-ca-token@hsm
for unit in istio-hsm-ca istio-hsm-ca-token@hsm; do
  [ "$(systemctl show --property Result --value $unit)" = success ]
  [ "$(systemctl show --property ExecMainStatus --value $unit)" = 0 ]
done
"#;

/// The last line of a script that [`under_systemd`] runs.
pub const PASSED: &str = "echo passed > \"$WORK/passed\"";

#[test]
#[ignore = "needs systemd and root: make test-deploy"]
fn the_units_run_under_systemd_as_the_guide_says() {
    let blocks = guide::script(&guide::blocks(&guide::page(), guide::SYSTEMD));
    under_systemd(
        &guide::PROGRAMS.map(|(name, program)| (name, Path::new(program))),
        &[BEFORE, &blocks, CHECKS, AFTER, PASSED],
    );
}

/// Runs a script as a unit of a systemd of its own, in a checkout, with these programs in PATH. Its last line is to be
/// [`PASSED`].
pub fn under_systemd(programs: &[(&str, &Path)], script: &[&str]) {
    assert!(nix::unistd::geteuid().is_root(), "systemd in a namespace needs root; run it as root");
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path();
    fs::create_dir_all(work.join("checkout")).unwrap();
    fs::create_dir_all(work.join("programs")).unwrap();
    for name in ["deploy", "scripts", "softhsm"] {
        std::os::unix::fs::symlink(root().join(name), work.join("checkout").join(name)).unwrap();
    }
    for (name, program) in programs {
        std::os::unix::fs::symlink(program, work.join("programs").join(name)).unwrap();
    }
    fs::write(work.join("inner.sh"), script.join("\n")).unwrap();
    fs::write(work.join("outer.sh"), OUTER).unwrap();
    let at = work.display();
    let service = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nTimeoutStartSec=120\nEnvironment=WORK={at}\n\
         ExecStart=/bin/bash {at}/inner.sh\nExecStopPost=/bin/touch {at}/over\n\
         StandardOutput=append:{at}/log\nStandardError=append:{at}/log\n"
    );
    fs::write(work.join("test.service"), service).unwrap();
    fs::write(work.join("test.target"), "[Unit]\nDefaultDependencies=no\nWants=test.service\nAfter=test.service\n")
        .unwrap();
    let mut unshare = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--mount-proc", "--uts", "--ipc", "--net", "--kill-child=KILL"])
        .args(["bash", work.join("outer.sh").to_str().unwrap()])
        .env("WORK", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(work.join("outer.log")).unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !work.join("over").exists() && began.elapsed() < Duration::from_secs(150) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let _already_gone = unshare.kill();
    let _already_gone = unshare.wait();
    let reported = ["outer.log", "log", "istio-hsm-ca.log", "istio-hsm-ca-token@hsm.log"].map(|name| {
        let text = fs::read_to_string(work.join(name)).unwrap_or_default();
        let lines: Vec<String> = text.lines().rev().take(12).map(str::to_owned).collect();
        lines.into_iter().rev().collect::<Vec<_>>()
    });
    assert!(work.join("passed").exists(), "{reported:#?}");
}
