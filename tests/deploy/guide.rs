//! docs/GUIDE.md: the marked blocks are run in order, in one shell, against a real API server and SoftHSM.

use std::{
    fmt::Write,
    fs,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use crate::{
    rendered::root,
    tools::{Cluster, tool},
};

/// Blocks that run against an API server and SoftHSM, and those that run as root under systemd.
const RUN: &str = "```sh run";
pub const SYSTEMD: &str = "```sh systemd";

/// Programs that an installation has in its PATH.
pub const PROGRAMS: [(&str, &str); 2] = [
    ("istio-hsm-ca", env!("CARGO_BIN_EXE_istio-hsm-ca")),
    ("istio-hsm-ca-token-host", env!("CARGO_BIN_EXE_istio-hsm-ca-token-host")),
];

/// The guide's text.
pub fn page() -> String {
    fs::read_to_string(root().join("docs/GUIDE.md")).unwrap()
}

/// The blocks of a page with this fence, each with its line number.
pub fn blocks(page: &str, fence: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line == fence {
            let block: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            found.push((number + 2, block.join("\n")));
        }
    }
    found
}

/// One script of these blocks, which prints its position before each.
pub fn script(blocks: &[(usize, String)]) -> String {
    let mut script = String::from("set -euo pipefail\n");
    for (line, block) in blocks {
        write!(script, "echo '## line {line}' >&2\n{block}\n").unwrap();
    }
    script
}

#[test]
fn every_block_is_run_or_said_not_to_be() {
    let page = page();
    let fences: Vec<&str> = page.lines().filter(|line| line.starts_with("```") && *line != "```").collect();
    let known = |fence: &&str| *fence == RUN || *fence == SYSTEMD;
    assert!(fences.len() >= 13 && fences.iter().all(known), "{fences:?}");
    for (line, block) in blocks(&page, RUN) {
        let tools = ["istioctl", "systemctl", "rollout", "port-forward"];
        assert!(tools.iter().all(|tool| !block.contains(tool)), "line {line} cannot be run without more");
    }
}

#[test]
#[ignore = "needs Helm and an API server: make test-deploy"]
fn the_guide_works_as_it_is_written() {
    let server = Cluster::start();
    let directory = tempfile::tempdir().unwrap();
    let programs = directory.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for (name, program) in PROGRAMS {
        symlink(program, programs.join(name)).unwrap();
    }
    for name in ["kubectl", "helm"] {
        symlink(tool(name), programs.join(name)).unwrap();
    }
    // The guide's commands run in a checkout.
    let checkout = directory.path().join("checkout");
    fs::create_dir(&checkout).unwrap();
    for name in ["deploy", "scripts", "softhsm"] {
        symlink(root().join(name), checkout.join(name)).unwrap();
    }
    fs::write(directory.path().join("guide.sh"), script(&blocks(&page(), RUN))).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .arg(directory.path().join("guide.sh"))
        .current_dir(&checkout)
        .env("PATH", path)
        .env("KUBECONFIG", server.kubeconfig())
        .env("HOME", directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let reported = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<_> = reported.lines().rev().take(30).collect();
    let tail: Vec<_> = tail.into_iter().rev().collect();
    assert!(output.status.success(), "{tail:#?}\n{}", String::from_utf8_lossy(&output.stdout));

    // The result is as described: the public files are in the ConfigMap, and no Secret has the key any more.
    let bundle = server.must(&["get", "configmap", "istio-hsm-ca-bundle", "-n", "istio-system", "-o", "json"]);
    for file in ["ca-cert.pem", "root-cert.pem", "cert-chain.pem"] {
        assert!(bundle.contains(file), "{file}");
    }
    let secrets = server.must(&["get", "secrets", "-A", "-o", "json"]);
    assert!(!secrets.contains("\"ca-key.pem\"") && !secrets.contains("\"ca.key\""));
}
