//! A client without credentials cannot fill the disk or hide others: repeated log lines are counted, not written.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::task::JoinSet;
use tonic::Code;

use testkit::{
    daemon::{Ask, Daemon, IDENTITY, Site},
    plug_in::PlugIn,
};

/// How much a flood of each kind may write: a few lines in full and a few with numbers, 400 bytes each.
const BYTES_PER_KIND: usize = 8 * 1024;
const REQUESTS: usize = 3000;

/// The number of counted lines of a kind, and that of lines in full.
fn reported(daemon: &Daemon, kind: &str) -> (u64, usize) {
    let lines = daemon.lines();
    let counted = lines.iter().filter(|line| line["of_kind"] == kind).filter_map(|line| line["count"].as_u64()).sum();
    (counted, lines.iter().filter(|line| line["kind"] == kind).count())
}

/// Waits until so many lines of a kind were written or counted.
async fn wait_told(daemon: &Daemon, kind: &str, lines: usize) {
    testkit::wait::eventually(format!("{lines} lines of kind {kind}"), async || {
        let (counted, full) = reported(daemon, kind);
        usize::try_from(counted).unwrap() + full == lines
    })
    .await;
    let (_, full) = reported(daemon, kind);
    assert!((1..=8).contains(&full), "{kind}: {full} lines in full");
}

/// Sends so many requests, 64 at a time, and gives the codes of the answers.
async fn flood(daemon: &Daemon, requests: usize, ask: impl Fn() -> Ask) -> Vec<Code> {
    let mut channel = daemon.connect(None).await;
    let mut tasks = JoinSet::new();
    let mut codes = Vec::new();
    let csr = ask().csr;
    for request in 0..requests {
        // A connection on which no certificate is issued ends after [listen.limits] unauthenticated_bytes.
        if request % 20 == 19 {
            channel = daemon.connect(None).await;
        }
        if tasks.len() >= 64 {
            codes.extend(tasks.join_next().await.unwrap().unwrap());
        }
        let (ask, channel) = (ask().csr(csr.as_str()), channel.clone());
        tasks.spawn(async move { ask.send(channel).await.err().map(|status| status.code()) });
    }
    codes.extend(tasks.join_all().await.into_iter().flatten());
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_refused_requests_writes_little_and_is_counted_exactly() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let before = daemon.stderr().len();
    let codes = flood(&daemon, REQUESTS, || Ask::new(IDENTITY)).await;
    assert_eq!(codes, [Code::Unauthenticated].repeat(REQUESTS));
    wait_told(&daemon, "no_credentials", REQUESTS).await;
    let written = daemon.stderr().len() - before;
    assert!(written < BYTES_PER_KIND, "{written} bytes of log for {REQUESTS} requests:\n{}", daemon.stderr());
    let first = daemon.wait_line(|line| line["kind"] == "no_credentials");
    assert_eq!(first["message"], "refused");
    assert_eq!(first["level"], "WARN");
    assert!(first["peer"].is_string() && first["reason"].is_string(), "{first}");
    let metrics = daemon.get("/metrics").1;
    let counted =
        metrics.lines().find(|line| line.starts_with("istio_hsm_ca_requests_total{outcome=\"no_credentials\""));
    assert!(counted.is_some_and(|line| line.ends_with(&format!(" {REQUESTS}"))), "{counted:?}");
    // One row with the number, and others are still seen.
    daemon.send(daemon.ask().validity(91 * 86_400)).await.unwrap_err();
    let page = daemon.status_page();
    assert_eq!(page.matches("class=\"w\">no_credentials</td>").count(), 1, "{page}");
    assert!(page.contains(&format!("data-is=\"times\">{REQUESTS}</td>")), "{page}");
    assert_eq!(page.matches("class=\"w\">ttl_too_long</td>").count(), 1, "{page}");
    // What others do is written in full.
    daemon.wait_line(|line| line["kind"] == "ttl_too_long");
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_broken_connections_writes_little() {
    const CONNECTIONS: usize = 300;
    let site = Site::new(&PlugIn::intermediate());
    let mut daemon = site.serve("");
    let before = daemon.stderr().len();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _closed_early = stream.write_all(b"GET / HTTP/1.1\r\nhost: ca\r\n\r\n");
        let _closed = stream.read_to_end(&mut Vec::new());
    }
    wait_told(&daemon, "tls_handshake", CONNECTIONS).await;
    // HTTP/2 that a library complains of at each frame: acknowledgements of pings that nobody sent.
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-alpn", "h2", "-connect", &daemon.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let acknowledgement = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &[7; 8]].concat();
    let _closed_early = stdin.write_all(
        &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice(), &acknowledgement.repeat(20_000)].concat(),
    );
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(stdin);
    client.kill().unwrap();
    client.wait().unwrap();
    let written = daemon.stderr().len() - before;
    assert!(written < 3 * BYTES_PER_KIND, "{written} bytes of log:\n{}", daemon.stderr());
    assert!(daemon.running());
    daemon.send(daemon.ask()).await.expect("it still serves");
}
