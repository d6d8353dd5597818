//! A host counts what it signs, and the daemon compares that with its log, which detects a host that has signed for
//! others. Here a proxy between the daemon and a real host reports a higher count.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use testkit::wait::eventually;

use token_host::protocol::{Frame, Kind, Reply};

use super::telemetry::Scraped;
use testkit::{
    daemon::{SERVER, Site},
    plug_in::PlugIn,
};

/// A host that is killed when dropped.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _already_gone = self.0.wait();
    }
}

fn start(site: &Site, socket: &Path) -> Host {
    let directory = site.softhsm.path();
    let month = Duration::from_secs(30 * 86_400);
    let mut settings = token_host::Settings::new(site.uri(), directory.join("pin-refused"), site.bundle(), month);
    settings.trust_domains = vec!["cluster.local".parse().unwrap()];
    settings.dns_names = vec![SERVER.parse().unwrap()];
    settings.ip_addresses = vec!["127.0.0.1".parse().unwrap()];
    let config = directory.join("token-host.toml");
    fs::write(&config, toml::to_string(&settings).unwrap()).unwrap();
    let host = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca-token-host"))
        .args(["--config"])
        .arg(&config)
        .arg("--socket")
        .arg(socket)
        .env("SOFTHSM2_CONF", site.softhsm.conf())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Host(host.unwrap())
}

/// Forwards data in one direction until either side closes.
fn pass(mut from: UnixStream, mut to: UnixStream, mut change: impl FnMut(&mut Vec<u8>) -> Vec<u8>) {
    let (mut held, mut bytes) = (Vec::new(), [0; 65_536]);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        held.extend_from_slice(&bytes[..count]);
        if to.write_all(&change(&mut held)).is_err() {
            break;
        }
    }
    let _already_gone = to.shutdown(std::net::Shutdown::Both);
}

/// Forwards whole frames, with the host's count of leaves increased by `more`.
fn told_more(held: &mut Vec<u8>, more: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((frame, length)) = Frame::split(held).unwrap() {
        let correlation = frame.correlation;
        match Reply::decode(frame).unwrap() {
            Reply::Status(mut status) => {
                for count in status.signed.iter_mut().filter(|count| count.kind == Kind::Leaf) {
                    count.count += more;
                }
                Reply::Status(status).encode(correlation, &mut out).unwrap();
            }
            _ => out.extend_from_slice(&held[..length]),
        }
        held.drain(..length);
    }
    out
}

/// The socket of a proxy between the daemon and its host.
fn between(socket: &Path, host: &Path, more: &Arc<AtomicU64>) {
    let listener = UnixListener::bind(socket).unwrap();
    let (host, more) = (host.to_owned(), Arc::clone(more));
    // Both threads end with the test's process.
    std::thread::spawn(move || {
        while let Ok((daemon, _)) = listener.accept() {
            let Ok(host) = UnixStream::connect(&host) else { continue };
            let (daemon_too, host_too) = (daemon.try_clone().unwrap(), host.try_clone().unwrap());
            std::thread::spawn(move || pass(daemon_too, host_too, std::mem::take));
            let more = Arc::clone(&more);
            std::thread::spawn(move || pass(host, daemon, |held| told_more(held, more.load(Ordering::Relaxed))));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_signs_more_than_the_log_holds_raises_the_alarm() {
    let site = Site::new(&PlugIn::intermediate());
    let (host, socket) = (site.softhsm.path().join("host.sock"), site.softhsm.path().join("between.sock"));
    let _host = start(&site, &host);
    let more = Arc::new(AtomicU64::new(0));
    between(&socket, &host, &more);
    let daemon = site
        .serve(&format!("[[token]]\nname = \"counted\"\nsocket = \"{}\"\nkeep_alive = \"100ms\"\n", socket.display()));
    for _ in 0..10 {
        daemon.send(daemon.ask()).await.unwrap();
    }
    let excess = || Scraped::new(&daemon).of("istio_hsm_ca_excess_signatures", &[]);
    // Long enough for the count to be reported several times.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(excess(), Some(0.0), "signatures without a line in the log");
    more.store(5, Ordering::Relaxed);
    eventually(std::fmt::from_fn(|f| write!(f, "{:?}", excess())), async || excess() == Some(5.0)).await;
    assert!(daemon.get("/readyz").1.starts_with("ready"), "an alarm, and no outage");
}
