//! The worst that the limits allow, against the memory that the deploy files allow.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use testkit::{
    daemon::Site,
    http2::{self, END_HEADERS, Raw, call, call_headers, frame, header},
    plug_in::PlugIn,
};
use tokio::{io::AsyncWriteExt, task::JoinSet};

use crate::{
    agents::{HOME, ask_for},
    attacker::{address, client_hello, config, kib, tcp, tls},
};

/// The chart's memory limit of the daemon in MiB.
fn limit() -> u64 {
    let values = std::fs::read_to_string(testkit::root().join("deploy/helm/istio-hsm-ca/values.yaml")).unwrap();
    let daemon = values.split("\ndaemon:").nth(1).unwrap();
    let memory = daemon.split("limits: { memory: ").nth(1).unwrap().split(' ').next().unwrap();
    match memory.strip_suffix("Gi") {
        Some(gibibytes) => gibibytes.parse::<u64>().unwrap() * 1024,
        None => memory.strip_suffix("Mi").unwrap().parse().unwrap(),
    }
}

/// A cgroup that limits a process's memory, as a container's does: the kernel ends a process that needs more.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` where this user may not create one. What the process has already is not counted, so `bytes` does not include it.
    fn limit(pid: nix::unistd::Pid, bytes: u64) -> Option<Self> {
        let (parent, file) = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
            .into_iter()
            .find(|(parent, _)| fs::exists(format!("{parent}/cgroup.procs")).unwrap_or(false))?;
        let group = Self(PathBuf::from(parent).join(format!("istio-hsm-ca-test-{pid}")));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(file), bytes.to_string()).ok()?;
        fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(group)
    }

    /// The most that was used, in KiB.
    fn peak(&self) -> Option<u64> {
        let read = |file| fs::read_to_string(self.0.join(file)).ok()?.trim().parse::<u64>().ok();
        read("memory.peak").or_else(|| read("memory.max_usage_in_bytes")).map(|bytes| bytes / 1024)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while the process runs; the caller ends it first.
        let _ = fs::remove_dir(&self.0);
    }
}

/// A connection that holds as much as one can: a chain, frames begun and not ended, streams without a body.
async fn hoard(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) {
    let mut raw = Raw::begin(stream).await;
    // As much as an unauthenticated client may send: 128 KiB in all.
    for number in 0..18 {
        let block = [call_headers("/istio.v1.auth.IstioCertificateService/CreateCertificate"), header(4000)].concat();
        raw.send(&frame(http2::HEADERS, END_HEADERS, 2 * number + 1, &block)).await;
    }
    raw.send(&frame(http2::HEADERS, 0, 255, &[call_headers("/x"), header(12_000)].concat())).await;
    let begun = frame(http2::CONTINUATION, END_HEADERS, 255, &header(16_000));
    raw.send(&begun[..16_000]).await;
    std::future::pending::<()>().await;
}

/// By parts of the default limits, so that it takes seconds; `make test-long` runs it whole.
async fn worst(part: usize) {
    process::hardening::raise_open_files().unwrap();
    let limits = istio_hsm_ca::grpc::settings::Limits::default();
    let (connections, unauthenticated) = (limits.connections / part, limits.unauthenticated_connections / part);
    let memory = limits.request_memory / part;
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(&format!(
        "[listen.limits]\nconnections = {connections}\nunauthenticated_connections = {unauthenticated}\n\
         request_memory = {memory}\nhandshake_timeout = \"60s\"\nrequest_timeout = \"120s\""
    )));
    ask_for(&site, &daemon, HOME, Duration::from_secs(1)).await;
    let idle = kib(&daemon, "VmRSS:");
    let budget = limit() * 1024;
    let cgroup = Cgroup::limit(daemon.pid(), (budget / part as u64 - idle / part as u64) * 1024);
    let client = config(&daemon, Some(10_000));
    let mut held = JoinSet::new();
    let mut opened = 0;
    for number in 0..unauthenticated {
        let from = address((number % 16) as u8);
        if let Ok(stream) = tls(&daemon, from, Arc::clone(&client)).await {
            opened += 1;
            held.spawn(hoard(stream));
        }
    }
    // The rest waits with half a ClientHello, as long as one may be.
    let mut hello = client_hello(&client);
    hello[3..5].copy_from_slice(&16_000_u16.to_be_bytes());
    hello.resize(15_000, 0);
    let mut waiting = Vec::new();
    for number in 0..connections - unauthenticated {
        if let Ok(mut stream) = tcp(&daemon, address((16 + number % 16) as u8)).await {
            let _ = stream.write_all(&hello).await;
            waiting.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let most = kib(&daemon, "VmHWM:");
    let whole = idle + (most - idle) * part as u64;
    println!(
        "worst load, 1/{part}: {opened} unauthenticated, {} that wait, {idle} KiB idle, {most} KiB at most; \
         whole: {whole} of {budget} KiB; in its cgroup: {:?} KiB",
        waiting.len(),
        cgroup.as_ref().map(Cgroup::peak)
    );
    assert!(whole < budget, "{whole} KiB are more than the chart's {budget} KiB");
    let served = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    assert!(served.latencies.len() * 10 >= served.tried * 9, "{served}: {:#?}", served.failed);
    // A request that is part of a call may still come.
    drop((held, waiting, call(1)));
    assert!(Arc::into_inner(daemon).unwrap().running());
    drop(cgroup);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_worst_load_fits_its_part_of_the_charts_memory() {
    worst(16).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and 32,768 open files: make test-long"]
async fn the_worst_load_fits_the_charts_memory() {
    worst(1).await;
}
