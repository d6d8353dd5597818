//! SIGTERM drains, a restart continues the log, and the log has every certificate that clients received.

use std::{fs, path::Path, process::Output, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::judges::judge;
use testkit::{
    daemon::{Ask, Daemon, IDENTITY, Site},
    plug_in::PlugIn,
};

/// The token hosts that a daemon started.
pub fn children(of: Pid) -> Vec<Pid> {
    let parent = |process: &Path| {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok()
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| parent(&entry.path()) == Some(of.as_raw()))
        .map(|entry| Pid::from_raw(entry.file_name().to_str().unwrap().parse().unwrap()))
        .collect()
}

fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.get("/metrics").1;
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// `log verify` with the key of the receipt; returns the number of intents.
fn verified_intents(site: &Site) -> u64 {
    let receipts = fs::read_dir(site.bundle())
        .unwrap()
        .flatten()
        .filter_map(|entry| serde_json::from_str::<serde_json::Value>(&fs::read_to_string(entry.path()).ok()?).ok());
    let keys: Vec<String> =
        receipts.filter_map(|receipt| receipt["log_verifier_key"].as_str().map(str::to_owned)).collect();
    let [key] = keys.as_slice() else { panic!("the receipts name the log's keys {keys:?}") };
    let directory = site.log().display().to_string();
    let output = site.run(&["--output", "json", "log", "verify", "--directory", &directory, "--verifier-key", key]);
    let report: serde_json::Value = serde_json::from_str(&succeeded(&output)).unwrap();
    assert_eq!(report["sound"], true, "{report}");
    assert_eq!(report["signatures_checked"], true, "{report}");
    assert!(report["checkpoints"].as_u64().unwrap() > 0, "{report}");
    report["intents"].as_u64().unwrap()
}

fn is_in_the_log(site: &Site, certificate: &str) {
    let file = site.softhsm.path().join("certificate.pem");
    fs::write(&file, certificate).unwrap();
    let (log, file) = (site.log().display().to_string(), file.display().to_string());
    succeeded(&site.run(&["log", "check-certificate", "--directory", &log, &file]));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_progress_are_answered_before_the_end() {
    const REQUESTS: usize = 100;
    let site = Site::new(&PlugIn::intermediate());
    let mut daemon = site.serve("");
    let mut received = daemon.send(daemon.ask()).await.unwrap()[..1].to_vec();

    let mut channels = Vec::new();
    for _ in 0..4 {
        channels.push(daemon.connect(None).await);
    }
    let asks: Vec<Ask> = (0..REQUESTS).map(|_| daemon.ask()).collect();

    // The token is stopped, so that requests are in flight when the signal arrives.
    let hosts = children(daemon.pid());
    assert_eq!(hosts.len(), 1);
    nix::sys::signal::kill(hosts[0], Signal::SIGSTOP).unwrap();
    let before = metric(&daemon, "citadel_server_csr_count_total");
    let asks = asks.into_iter().zip(channels.iter().cycle());
    let tasks: Vec<_> = asks.map(|(ask, channel)| tokio::spawn(ask.send(channel.clone()))).collect();
    for _ in 0..500 {
        if metric(&daemon, "citadel_server_csr_count_total") - before >= 100.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(metric(&daemon, "citadel_server_csr_count_total") - before, 100.0);
    daemon.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(daemon.running(), "it does not wait for requests in flight");
    nix::sys::signal::kill(hosts[0], Signal::SIGCONT).unwrap();
    for task in tasks {
        let reply = task.await.unwrap().expect("a request in flight was dropped");
        judge("drained", &reply, process::clock::now());
        received.push(reply[0].clone());
    }
    let status = daemon.ended();
    assert_eq!(status.code(), Some(0), "{}", daemon.stderr());
    daemon.wait_line(|line| {
        line["message"].as_str().is_some_and(|text| text.contains("all requests in progress were answered"))
    });
    daemon.wait_line(|line| line["message"] == "ended");

    // 101 agents' certificates and the serving certificate.
    assert_eq!(verified_intents(&site), 102);
    let daemon = site.serve("");
    received.push(daemon.send(daemon.ask()).await.unwrap()[0].clone());
    let (status, text) = daemon.stop();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_eq!(verified_intents(&site), 104, "the second run did not continue the log");
    for certificate in &received {
        is_in_the_log(&site, certificate);
    }
    // A certificate that was not recorded is not in the log.
    let (strange, _) = testkit::plug_in::leaf(&PlugIn::intermediate().ca, IDENTITY, |_| {});
    let file = site.softhsm.path().join("strange.pem");
    fs::write(&file, strange).unwrap();
    let (log, file) = (site.log().display().to_string(), file.display().to_string());
    assert_eq!(site.run(&["log", "check-certificate", "--directory", &log, &file]).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_issues_through_the_daemon_and_alone() {
    const ADMIN: &str = "spiffe://cluster.local/ns/istio-system/sa/operator";
    let plug_in = PlugIn::intermediate();
    let site = Site::new(&plug_in);
    let config = site.configure("").display().to_string();
    let request = site.softhsm.path().join("request.pem");
    fs::write(&request, Ask::new(ADMIN).csr).unwrap();
    let request = request.display().to_string();
    let issue = |more: &[&str]| {
        let usual = ["issue", "--config", &config, "--csr", &request, "--spiffe-id", ADMIN];
        site.run(&[&usual, more].concat())
    };
    let judged = |output: Output| {
        let text = succeeded(&output);
        let mut elements: Vec<String> =
            text.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect();
        assert_eq!(elements.len(), 3, "{text}");
        elements[2] = plug_in.root_cert.clone();
        judge("operator", &elements, process::clock::now());
        is_in_the_log(&site, &elements[0]);
    };
    judged(issue(&[]));
    let daemon = site.serve("");
    judged(issue(&[]));
    daemon.wait_line(|line| line["message"] == "listening");
    let output = issue(&["--alone"]);
    assert_eq!(output.status.code(), Some(1), "the log is not locked");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("log"), "{text}");
    // The operator cannot obtain a name that is not configured, either.
    let foreign = ["issue", "--config", &config, "--csr", &request, "--dns-name", "google.com"];
    assert_eq!(site.run(&foreign).status.code(), Some(1));
    // A malformed request is rejected before the daemon is contacted, with the file's name.
    daemon.wait_line(|line| line["message"] == "operator request refused");
    let before = daemon.stderr().matches("operator request refused").count();
    let certificate = site.bundle().join("ca-cert.pem").display().to_string();
    let directory = site.bundle().display().to_string();
    for (file, reason) in
        [(certificate.as_str(), "ca-cert.pem: no request"), (&directory, "cannot be read; name a PEM")]
    {
        let output = site.run(&["issue", "--config", &config, "--csr", file, "--spiffe-id", ADMIN]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && error.contains(reason), "{error}");
    }
    assert_eq!(daemon.stderr().matches("operator request refused").count(), before);
    let no_identity = site.run(&["issue", "--config", &config, "--csr", &request, "--spiffe-id", "spiffe://a/b"]);
    assert_eq!(no_identity.status.code(), Some(2));
    let (status, text) = daemon.stop();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(!site.socket().exists(), "the socket is not removed");
    judged(issue(&["--alone"]));
    assert_eq!(verified_intents(&site), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_daemon_continues_its_log_after_a_restart() {
    let site = Site::new(&PlugIn::intermediate());
    let mut received = Vec::new();
    for _ in 0..3 {
        let mut daemon = site.serve("");
        for _ in 0..5 {
            received.push(daemon.send(daemon.ask()).await.unwrap()[0].clone());
        }
        daemon.signal(Signal::SIGKILL);
        daemon.ended();
    }
    let (status, text) = site.serve("").stop();
    assert_eq!(status.code(), Some(0), "{text}");
    for certificate in &received {
        is_in_the_log(&site, certificate);
    }
    // 15 agents' certificates and four serving certificates.
    assert_eq!(verified_intents(&site), 19);
}

/// A crash of a process with a key or a PIN writes no core file, and no other process of the same user can read its
/// memory.
#[tokio::test(flavor = "multi_thread")]
async fn no_process_leaves_its_memory_behind() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let hosts = children(daemon.pid());
    assert_eq!(hosts.len(), 1);
    for process in hosts.into_iter().chain([daemon.pid()]) {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        // The hard limit, too: the soft limit is 0 on many machines anyway.
        assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{line}");
    }
}
