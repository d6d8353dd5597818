//! deploy/systemd: the units are well formed, hardened, and fit the program that they start.

use std::{fs, path::Path, process::Command};

use istio_hsm_ca::token::host;

use crate::rendered::root;

/// systemd's own marks, from 0 (safe) to 100. The hosts may map memory
/// that is writable and executable, as vendors' modules do.
const THRESHOLDS: [(&str, u32); 2] = [("istio-hsm-ca.service", 13), ("istio-hsm-ca-token@hsm.service", 15)];

/// A tree as it is after installation, with the program.
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
            // An absolute path stands where the tests run, and the program does not.
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
        // What is only warned about counts too.
        let ours: Vec<_> = text.lines().filter(|line| line.contains("istio-hsm-ca")).collect();
        assert!(ours.is_empty(), "{unit}: {ours:#?}");
    }
    let path = units.join("istio-hsm-ca.service");
    let broken = fs::read_to_string(&path).unwrap().replace("ProtectSystem=strict", "ProtectSistem=strict");
    fs::write(&path, broken).unwrap();
    let (_, text) = analyze(&["verify", "--man=no", "--recursive-errors=no", "./istio-hsm-ca.service"], &units);
    assert!(text.contains("ProtectSistem"), "a mistake is seen: {text}");
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
        assert!(!security(0).0, "the threshold is looked at");
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
        let settings: host::Settings = toml::from_str(&text).unwrap();
        let pin = settings.pin_file.unwrap();
        assert_eq!(pin, Path::new("/run/credentials/istio-hsm-ca-token@hsm.service/pin"));
        assert!(settings.pin_marker.starts_with("/var/lib/istio-hsm-ca-token/hsm"));
    }
}
