//! SIGKILL of the daemon under load, repeatedly on one log and one token: clients' certificates are in the log.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually;

use nix::{sys::signal::Signal, unistd::Pid};

use crate::{
    books,
    clients::{Clients, Held, Mesh},
    proc_status::{children, lives},
    random::Random,
};
use testkit::{daemon::Site, plug_in::PlugIn};

const KILLS: usize = 30;
const AGENTS: usize = 8;

/// Small segments and many checkpoints, so that kills happen between two of each; a host that reports its count often.
const CONFIGURATION: &str = r#"
[log]
segment_bytes = 65536
checkpoint_lines = 40
"#;

/// A host ends even if its daemon is killed.
async fn ended(host: Pid, kill: usize) {
    let since = Instant::now();
    while lives(host) {
        assert!(since.elapsed() < Duration::from_secs(5), "kill {kill}: host {host} has outlived its daemon");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The log's files with this extension, oldest first.
fn files(log: &Path, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect();
    files.sort();
    files
}

/// Appends half a line, as left by a power failure during a write that was not acknowledged. Not to a sealed segment,
/// which is never written: the kill happened before the next one was created.
fn tear(log: &Path) -> bool {
    let newest = files(log, "jsonl").pop().unwrap();
    if newest.with_extension("seal").exists() {
        return false;
    }
    let text = fs::read(&newest).unwrap();
    // Preallocated space is not a line.
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let file = fs::OpenOptions::new().write(true).open(&newest).unwrap();
    file.write_all_at(br#"{"type":"intent","index":7,"time":"20"#, end.try_into().unwrap()).unwrap();
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_thirty_times_under_load_leaves_sound_books() {
    let mut random = Random::seeded("killed");
    let site = Site::new(&PlugIn::intermediate());
    let configuration = format!(
        "{CONFIGURATION}\n[[token]]\nname = \"softhsm\"\nuri = \"{}\"\nkeep_alive = \"200ms\"\n",
        site.softhsm.uri("istio-ca")
    );
    let (mesh, held) = (Arc::new(Mesh::new(&site)), Arc::new(Held::default()));
    let mut torn = 0;
    for kill in 0..KILLS {
        let mut daemon = site.serve(&configuration);
        let before = held.count();
        let clients = Clients::start(&mesh, &held, daemon.address, AGENTS, Duration::ZERO);
        eventually(
            std::fmt::from_fn(|f| write!(f, "kill {kill}: no load: {:?}\n{}", held.refusals(), daemon.stderr())),
            async || held.count() >= before + 30,
        )
        .await;
        // At varying distances from a flush, a checkpoint, a segment's end.
        tokio::time::sleep(Duration::from_micros(random.between(0, 150_000))).await;
        let hosts = children(daemon.pid());
        assert_eq!(hosts.len(), 1, "kill {kill}: {hosts:?}");
        if kill.is_multiple_of(5) {
            // Time for the host's count to be reported and compared.
            tokio::time::sleep(Duration::from_millis(1300)).await;
            assert_eq!(books::metric(&daemon, "istio_hsm_ca_excess_signatures"), 0.0, "kill {kill}: a false alarm");
        }
        if kill.is_multiple_of(2) {
            // As soon as a client has a certificate, its line must be in the log.
            let now = held.count();
            while held.count() == now {
                tokio::task::yield_now().await;
            }
        }
        let at_kill = held.count();
        daemon.signal(Signal::SIGKILL);
        daemon.ended();
        ended(hosts[0], kill).await;
        clients.stop().await;
        assert!(at_kill > before, "kill {kill}: it was not under load");
        if kill % 10 == 9 {
            books::are_right(&site, &held);
        }
        if kill % 3 == 2 && tear(&site.log()) {
            torn += 1;
        }
    }
    // The log is recovered after the last kill, too.
    let daemon = site.serve(&configuration);
    let before = held.count();
    let clients = Clients::start(&mesh, &held, daemon.address, AGENTS, Duration::from_millis(5));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(books::metric(&daemon, "istio_hsm_ca_excess_signatures"), 0.0, "a false alarm");
    clients.stop().await;
    assert!(held.count() > before);
    assert_eq!(files(&site.log(), "torn").len(), torn, "incomplete lines set aside");
    let (status, text) = daemon.stop();
    assert_eq!(status.code(), Some(0), "{text}");
    let intents = books::are_right(&site, &held);
    println!("killed: {} certificates held, {intents} intents, refusals {:?}", held.count(), held.refusals());
    // Intents without a certificate: at most the requests in flight and the serving certificate of each run.
    let most = held.count() + u64::try_from((KILLS + 1) * (AGENTS + 1)).unwrap();
    assert!(intents <= most, "{intents} intents for {} certificates", held.count());
}
