//! Metrics that do not depend on a request's content: limits, rejected files, a shared flush.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};
use testkit::wait::eventually;

use nix::sys::signal::{Signal, kill};
use tonic::Code;

use crate::{ending::children, telemetry::Scraped};
use testkit::{
    daemon::{Ask, Daemon, IDENTITY, Site},
    plug_in::PlugIn,
};

/// Waits until a series exceeds a value.
async fn grows(daemon: &Daemon, name: &str, labels: &[(&str, &str)], beyond: f64) {
    let state = std::fmt::from_fn(|f| {
        let value = Scraped::new(daemon).of(name, labels);
        write!(f, "{name} {labels:?} is {value:?}\n{}", daemon.get("/metrics").1)
    });
    eventually(state, async || Scraped::new(daemon).of(name, labels).is_some_and(|value| value > beyond)).await;
}

const RELOADS: &str = "istio_hsm_ca_reloads_total";

fn workload(site: &Site, number: usize) -> Ask {
    let account = format!("w{number}");
    Ask::new(&format!("spiffe://cluster.local/ns/demo/sa/{account}")).token(&site.token("demo", &account))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_has_its_series() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve(
        "[rate_limits]\nper_identity = 1\nper_identity_burst = 1\n\
         [listen.limits]\nconnections_per_address = 4\nrequests = 6\nhandshake_timeout = \"1s\"",
    );
    let outcome = |outcome: &'static str| [("outcome", outcome)];
    let channel = daemon.connect(None).await;

    // Too many requests of one identity.
    let mut limited = 0;
    for _ in 0..3 {
        if let Err(status) = daemon.ask().send(channel.clone()).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            limited += 1;
        }
    }
    assert!(limited > 0);
    assert_eq!(
        Scraped::new(&daemon).of("istio_hsm_ca_requests_total", &outcome("rate_limit_identity")),
        Some(f64::from(limited))
    );

    // More concurrent requests than permitted.
    let asks: Vec<Ask> = (0..40).map(|number| workload(&site, number)).collect();
    let tasks: Vec<_> = asks.into_iter().map(|ask| tokio::spawn(ask.send(channel.clone()))).collect();
    let mut overload = 0;
    for task in tasks {
        if let Err(status) = task.await.unwrap() {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("overloaded"), "{status}");
            overload += 1;
        }
    }
    assert!(overload > 0, "40 concurrent requests did not exceed the limit of six");
    assert_eq!(
        Scraped::new(&daemon).of("istio_hsm_ca_requests_total", &outcome("overload")),
        Some(f64::from(overload))
    );

    // A failed handshake, and one that never starts.
    let before = Scraped::new(&daemon);
    let failed =
        |reason: &'static str| before.of("istio_hsm_ca_handshakes_failed_total", &[("reason", reason)]).unwrap_or(0.0);
    let mut garbage = TcpStream::connect(daemon.address).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let silent = TcpStream::connect(daemon.address).unwrap();
    grows(&daemon, "istio_hsm_ca_handshakes_failed_total", &[("reason", "error")], failed("error")).await;
    grows(&daemon, "istio_hsm_ca_handshakes_failed_total", &[("reason", "timeout")], failed("timeout")).await;
    drop((garbage, silent));
    // An agent under COMPLIANCE_POLICY=fips-140-2.
    let address = daemon.address.to_string();
    let old = Command::new("openssl").args(["s_client", "-tls1_2", "-connect", &address]).stdin(Stdio::null()).output();
    assert!(!old.unwrap().status.success());
    grows(&daemon, "istio_hsm_ca_handshakes_failed_total", &[("reason", "version")], 0.0).await;
    daemon.wait_line(|line| line["message"].as_str().is_some_and(|message| message.contains("allow_tls12 = true")));

    // More connections of one address than it may have: idle ones make room, those with requests do not.
    let many: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(daemon.address).unwrap()).collect();
    grows(&daemon, "istio_hsm_ca_connections_dropped_total", &[], 0.0).await;
    drop((many, channel));
    let host = children(daemon.pid())[0];
    kill(host, Signal::SIGSTOP).unwrap();
    let mut waiting = Vec::new();
    for number in 100..104 {
        let channel = daemon.connect(None).await;
        waiting.push(tokio::spawn(workload(&site, number).send(channel)));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _one_more = TcpStream::connect(daemon.address).unwrap();
    grows(&daemon, "istio_hsm_ca_connections_refused_total", &[], 0.0).await;
    kill(host, Signal::SIGCONT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_files_and_denied_certificates_have_their_series() {
    let plug_in = PlugIn::intermediate();
    let site = Site::new(&plug_in);
    let daemon = site.serve("");
    let first = daemon.ask();
    let key = first.key_pem.clone();
    let reply = daemon.send(first).await.unwrap();
    let reloads = |what: &'static str, outcome: &'static str| [("what", what), ("outcome", outcome)];

    site.deny(IDENTITY);
    daemon.signal(Signal::SIGHUP);
    grows(&daemon, RELOADS, &reloads("callers", "taken"), 0.0).await;
    let denied = Ask::new(IDENTITY).send(daemon.connect(Some((&reply[..2].concat(), &key))).await).await;
    assert_eq!(denied.unwrap_err().code(), Code::Unauthenticated);
    let labels = [("outcome", "certificate_denied"), ("method", "none")];
    assert_eq!(Scraped::new(&daemon).of("istio_hsm_ca_requests_total", &labels), Some(1.0));
    site.deny("nonsense");
    grows(&daemon, RELOADS, &reloads("callers", "refused"), 0.0).await;

    fs::write(site.bundle().join("ca-cert.pem"), "nothing").unwrap();
    grows(&daemon, RELOADS, &reloads("bundle", "refused"), 0.0).await;
    grows(&daemon, "istio_hsm_ca_bundle_refused", &[], 0.5).await;
    plug_in.write_public(&site.bundle());
    eventually("a bundle that was put back is still refused", async || {
        Scraped::new(&daemon).of("istio_hsm_ca_bundle_refused", &[]) == Some(0.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flush_serves_many_certificates() {
    const CERTIFICATES: u32 = 200;
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let channel = daemon.connect(None).await;
    daemon.ask().send(channel.clone()).await.unwrap();
    let flushes = || Scraped::new(&daemon).of("istio_hsm_ca_log_flushes_total", &[]).unwrap();
    // Metrics counted elsewhere are set once per second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let before = flushes();
    let asks: Vec<Ask> = (0..CERTIFICATES).map(|_| daemon.ask()).collect();
    let tasks: Vec<_> = asks.into_iter().map(|ask| tokio::spawn(ask.send(channel.clone()))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let each = (flushes() - before) / f64::from(CERTIFICATES);
    assert!(each < 0.75, "{each} flushes a certificate");
    assert!(each > 0.0);
}

/// Checked with Prometheus' own parser and its linter of names, units and help texts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs promtool: make test-foreign"]
async fn prometheus_takes_the_metrics_as_they_are() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    daemon.send(daemon.ask()).await.unwrap();
    daemon.send(daemon.ask().csr("garbage")).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let text = daemon.get("/metrics").1;
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool is missing: install the package prometheus");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let reported = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // Istio's own names are as Istio defined them.
    let ours: Vec<&str> = reported.lines().filter(|line| !line.starts_with("citadel_server_")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert!(matches!(output.status.code(), Some(0 | 3)), "{reported}");
}
