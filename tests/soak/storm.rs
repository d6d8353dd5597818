//! All agents of a mesh connect at once from one address, as behind a NAT, by the load generator (`istio-hsm-ca-bench endpoint --storm`),
//! with Istio's five tries: all are served, and the daemon's memory is bounded by what a connection may cost.
//!
//! A thousand agents by default; `STORM_AGENTS` sets another number.

use std::{fs, time::Duration};

use nix::unistd::Pid;
use serde_json::Value;

use crate::{books, clients::Held, proc_status::children};
use testkit::{
    daemon::{ISSUER, SERVER, Site},
    plug_in::PlugIn,
};

/// Permitted memory per connection in KiB, and for the work on many of them at once.
const EACH: u64 = 64;
const BESIDES: u64 = 96 * 1024;

fn kib(pid: Pid, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_comes_at_once_is_served() {
    let agents: u64 = std::env::var("STORM_AGENTS").map_or(1000, |text| text.parse().expect("STORM_AGENTS"));
    let site = Site::new(&PlugIn::intermediate());
    let mut daemon = site
        .serve("[logging]\nfilter = \"warn,istio_hsm_ca::daemon=info\"\n[listen.limits]\nhandshake_wait = \"60s\"\n");
    let host = children(daemon.pid())[0];
    tokio::time::sleep(Duration::from_millis(500)).await;
    let idle = kib(daemon.pid(), "VmRSS:");
    let roots = site.bundle().join("root-cert.pem").display().to_string();
    let (address, key) = (daemon.address.to_string(), site.issuer_key_file().display().to_string());
    let storm = agents.to_string();
    let server = ["--output", "json", "endpoint", "--address", &address, "--server-name", SERVER];
    let agent = ["--roots", &roots, "--token-key", &key, "--issuer", ISSUER, "--namespace", "storm"];
    let storm = ["--storm", &storm, "--storm-sources", "1"];
    let output = site.run_bench(&[&server[..], &agent, &storm].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}\n{}", String::from_utf8_lossy(&output.stderr), daemon.stderr());
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["served"].as_u64(), Some(agents), "{report}");
    assert_eq!(report["lost"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    let most = kib(daemon.pid(), "VmHWM:");
    println!("storm: {report}\nstorm: {idle} KiB idle, at most {most} KiB, host {} KiB", kib(host, "VmHWM:"));
    let bound = idle + EACH * agents + BESIDES;
    assert!(most <= bound, "{most} KiB at most, more than {bound}");
    assert_eq!(children(daemon.pid()), [host], "the token's host was not replaced");
    assert!(daemon.running());
    assert_eq!(daemon.get("/readyz").0, 200, "{}", daemon.get("/readyz").1);
    let (status, text) = daemon.stop();
    assert_eq!(status.code(), Some(0), "{text}");
    // Each agent's, and the serving certificate.
    assert!(books::are_right(&site, &Held::default()) > agents);
}
