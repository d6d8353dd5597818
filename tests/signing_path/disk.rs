//! The log's disk fills up under a running daemon: nothing is issued, the condition is reported, and the daemon
//! recovers.

use std::fs;
use testkit::wait::eventually;

use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use testkit::{
    daemon::{Daemon, SOON, Site},
    mount::Mount,
    plug_in::PlugIn,
};

async fn health(daemon: &Daemon) -> ServingStatus {
    let mut client = HealthClient::new(daemon.connect(None).await);
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    answer.into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_stops_issuance_until_there_is_room() {
    let site = Site::new(&PlugIn::intermediate());
    let small = site.softhsm.path().join("small");
    let _mount = Mount::new(&small, "size=640k");
    let log = format!("[log]\ndirectory = \"{}\"\nsegment_bytes = 65536", small.join("log").display());
    let daemon = site.serve(&log);
    daemon.send(daemon.ask()).await.unwrap();
    assert_eq!(health(&daemon).await, ServingStatus::Serving);

    let ballast = small.join("ballast");
    let mut filled = fs::File::create(&ballast).unwrap();
    // Until there is no space at all.
    while std::io::Write::write_all(&mut filled, &[1; 512]).is_ok() {}
    let channel = daemon.connect(None).await;
    let deadline = std::time::Instant::now() + SOON;
    // Preallocated space still accepts lines; then requests fail with a code that an agent retries.
    let status = loop {
        if let Err(status) = daemon.ask().send(channel.clone()).await {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "requests succeed with a full disk");
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("the issuance log cannot be written now"), "{status}");
    daemon.wait_line(|line| line["message"] == "not ready" && line["part"] == "issuance log");
    let (code, body) = daemon.get("/readyz");
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("issuance log: ") && body.contains("No space left"), "{body}");
    assert_eq!(daemon.get("/livez").0, 200);
    eventually("health does not follow", async || health(&daemon).await == ServingStatus::NotServing).await;

    drop(filled);
    fs::remove_file(ballast).unwrap();
    daemon.wait_ready();
    daemon.send(daemon.ask()).await.unwrap();
    assert_eq!(health(&daemon).await, ServingStatus::Serving);
    daemon.stop();
    let directory = small.join("log").display().to_string();
    let verified = site.run(&["log", "verify", "--without-signatures", "--directory", &directory]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}
