//! A token with random faults under load: nothing leaks, nothing wrong is released, and at the end everything works.
//!
//! Runs for a minute by default; `SOAK_SECONDS` makes it longer.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::{
    books,
    clients::{Clients, Held, Mesh},
    proc_status::{Usage, children},
    random::Random,
};
use testkit::{
    daemon::{Daemon, Site},
    faulty::{Control, MODULE, once, proof_hash, through, times},
    plug_in::PlugIn,
};

const AGENTS: usize = 8;
/// Pause between two requests of an agent: a load at which the end of a fault is noticeable.
const PAUSE: Duration = Duration::from_millis(30);
/// Maximum time until the token signs again after a fault: a second of backoff, a host's start, a busy machine.
const BACK: Duration = Duration::from_secs(15);

/// Functions that a host calls while it works, and those it calls when it starts or opens a session.
const FUNCTIONS: [&str; 12] = [
    "C_Sign",
    "C_Sign",
    "C_SignInit",
    "C_SignInit",
    "C_OpenSession",
    "C_CloseSession",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
    "C_GetSessionInfo",
    "C_GetTokenInfo",
    "C_Initialize",
];

/// A code of each class except the PIN's: after those, no retry happens until the PIN file changes.
const CODES: [&str; 14] =
    ["0x5", "0x6", "0x2", "0x21", "0x30", "0x31", "0x54", "0x60", "0x82", "0xb1", "0xb3", "0xe0", "0x101", "0x130"];

/// A fault: name, command for the module, signal to the host, and duration.
struct Fault {
    name: String,
    command: String,
    signal: Option<Signal>,
    lasts: Duration,
}

fn fault(random: &mut Random) -> Fault {
    let lasts = Duration::from_millis(random.between(50, 1500));
    let limit = match random.between(0, 2) {
        0 => once(),
        1 => times(u32::try_from(random.between(2, 9)).unwrap()),
        _ => String::new(),
    };
    let with = |name: &str, command: String| Fault { name: name.to_owned(), command, signal: None, lasts };
    match random.between(0, 12) {
        0..=3 => {
            let (function, code) = (*random.of(&FUNCTIONS), *random.of(&CODES));
            let mut fault = with("code", format!("{function} return={code} {limit}"));
            // Functions called only at the start fail at a start.
            fault.signal = random.between(0, 3).eq(&0).then_some(Signal::SIGKILL);
            fault
        }
        4 => with("delay", format!("C_Sign delay={} {limit}", random.between(5, 300))),
        5 => with("crash", format!("C_Sign {} {}", random.of(&["abort", "segv", "exit"]), once())),
        6 => with("hang", format!("C_Sign hang {}", once())),
        7 => with("wrong", format!("C_Sign wrong {limit}")),
        8 => with("length", format!("C_Sign {} {limit}", random.of(&["truncate", "long"]))),
        9 => with("logout", format!("C_SignInit logout {}", once())),
        10 => with("sessions", format!("C_OpenSession sessions={}", random.between(1, 3))),
        11 => with("renumber", format!("C_SignInit renumber={} {}", random.between(1, 99), once())),
        _ => {
            let signal = *random.of(&[Signal::SIGKILL, Signal::SIGSTOP]);
            Fault { signal: Some(signal), ..with(signal.as_str(), String::new()) }
        }
    }
}

/// The token host; `None` while it is being replaced.
fn host(daemon: &Daemon) -> Option<Pid> {
    children(daemon.pid()).first().copied()
}

/// Usage of daemon and host: the median of several moments, since both vary.
async fn usage(daemon: &Daemon, of: Duration) -> (Usage, Usage) {
    let (mut daemons, mut hosts) = (Vec::new(), Vec::new());
    let until = Instant::now() + of;
    while Instant::now() < until {
        daemons.extend(Usage::of(daemon.pid()));
        hosts.extend(host(daemon).and_then(Usage::of));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (median(&daemons), median(&hosts))
}

fn median(all: &[Usage]) -> Usage {
    let middle = |of: fn(&Usage) -> u64| {
        let mut values: Vec<u64> = all.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    Usage {
        memory: middle(|usage| usage.memory),
        threads: middle(|usage| usage.threads),
        descriptors: middle(|usage| usage.descriptors),
    }
}

/// Nothing has grown beyond variation: memory by a quarter and 8 MiB (allocators keep freed memory), threads and
/// descriptors by a few.
fn has_not_grown(what: &str, before: Usage, after: Usage) {
    println!("{what}: {before:?} at first, {after:?} at last");
    assert!(after.memory <= before.memory * 5 / 4 + 8 * 1024, "{what}: memory grows: {before:?}, then {after:?}");
    assert!(after.threads <= before.threads + 4, "{what}: threads grow: {before:?}, then {after:?}");
    assert!(after.descriptors <= before.descriptors + 8, "{what}: descriptors grow: {before:?}, then {after:?}");
}

/// Waits for this number of further certificates.
async fn more(held: &Held, daemon: &Daemon, count: u64, what: &str) -> Duration {
    let (wanted, began) = (held.count() + count, Instant::now());
    while held.count() < wanted {
        assert!(began.elapsed() < BACK, "not recovered {BACK:?} after {what}: {:?}\n{}", held.refusals(), tail(daemon));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

fn tail(daemon: &Daemon) -> String {
    let text = daemon.stderr();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_fails_at_random_costs_nothing_for_good() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let mut random = Random::seeded("faults");
    let site = Site::new(&PlugIn::intermediate());
    let control = Control::new(site.softhsm.path());
    let environment: toml::Table =
        control.environment().into_iter().map(|(name, value)| (name, value.into())).collect();
    let mut daemon = site.serve(&format!(
        "[logging]\nfilter = \"warn,istio_hsm_ca::daemon=info\"\n[[token]]\nname = \"faulty\"\nuri = \"{}\"\nsessions = 2\n\
         call_timeout = \"1s\"\nkeep_alive = \"500ms\"\nenvironment = {environment_inline}\n",
        through(&MODULE, &site.softhsm.uri("istio-ca")),
        environment_inline = inline(&environment),
    ));
    let (mesh, held) = (Arc::new(Mesh::new(&site)), Arc::new(Held::default()));
    let clients = Clients::start(&mesh, &held, daemon.address, AGENTS, PAUSE);
    let end = Instant::now() + Duration::from_secs(seconds);

    // Warm-up: one fault of each kind that replaces something, then the usage without a fault.
    for command in ["C_Sign abort", "C_Sign wrong", "C_SignInit logout", "C_Sign return=0x30"] {
        more(&held, &daemon, 50, "the start").await;
        control.breaks(&format!("{command} {}", once()));
        more(&held, &daemon, 50, command).await;
    }
    control.works();
    more(&held, &daemon, 200, "the warm-up").await;
    let (daemon_before, host_before) = usage(&daemon, Duration::from_secs(2)).await;

    let (mut counts, mut longest) = (BTreeMap::<String, u32>::new(), (Duration::ZERO, String::new()));
    let mut most = daemon_before;
    while Instant::now() + Duration::from_secs(8) < end {
        let fault = fault(&mut random);
        let what = format!("{} ({})", fault.name, fault.command);
        control.breaks(&fault.command);
        if let Some(signal) = fault.signal {
            control.signal(|| host(&daemon).into_iter().collect(), signal).await;
        }
        tokio::time::sleep(fault.lasts).await;
        control.works();
        let took = more(&held, &daemon, 10, &what).await;
        if took > longest.0 {
            longest = (took, what);
        }
        *counts.entry(fault.name).or_default() += 1;
        most = most.most(Usage::of(daemon.pid()).expect("the daemon has ended"));
        tokio::time::sleep(Duration::from_millis(random.between(0, 500))).await;
    }
    // The last host settles like the first one.
    more(&held, &daemon, 200, "all faults").await;
    let (daemon_after, host_after) = usage(&daemon, Duration::from_secs(2)).await;
    assert!(daemon.running());
    assert_eq!(daemon.get("/readyz").0, 200, "{}", daemon.get("/readyz").1);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let excess = books::metric(&daemon, "istio_hsm_ca_excess_signatures");
    let wrong = sum(&daemon, "istio_hsm_ca_wrong_signatures_total");
    clients.stop().await;
    let (status, text) = daemon.stop();
    assert_eq!(status.code(), Some(0), "{text}");

    let intents = books::are_right(&site, &held);
    println!("faults: {counts:?}; the longest way back {longest:?}");
    println!("faults: {} certificates held, {intents} intents, {wrong} wrong signatures", held.count());
    println!("faults: refusals {:?}; at most {most:?}", held.refusals());
    has_not_grown("daemon", daemon_before, daemon_after);
    has_not_grown("host", host_before, host_after);
    assert_eq!(excess, 0.0, "a false alarm: signatures without an intent");
    signed_nothing_else(&site, &control);
}

/// Everything that the module signed with the CA key, by its own records, is in the log or proves the key.
fn signed_nothing_else(site: &Site, control: &Control) {
    let ca_key = ca_key_id(site);
    let intents: HashSet<String> = books::intents(&site.log()).iter().map(|hash| hex(hash)).collect();
    let signed = control.books_since(0).signed;
    let by_ca: Vec<_> = signed.iter().filter(|(id, _)| *id == ca_key).collect();
    assert!(by_ca.len() > 100, "{} of {}", by_ca.len(), signed.len());
    let proof = proof_hash();
    let strange = by_ca.iter().filter(|(_, input)| *input != proof && !intents.contains(input)).count();
    assert_eq!(strange, 0, "not in the log, of {} signatures", by_ca.len());
}

/// CKA_ID of the CA key: SHA-1 of the public key's bits, as set by `import`.
fn ca_key_id(site: &Site) -> String {
    use x509_cert::der::DecodePem;
    let pem = std::fs::read(site.bundle().join("ca-cert.pem")).unwrap();
    let certificate = x509_cert::Certificate::from_pem(&pem).unwrap();
    let key = certificate.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes().to_vec();
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &key).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn inline(table: &toml::Table) -> String {
    let pairs: Vec<String> = table.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    format!("{{ {} }}", pairs.join(", "))
}

/// A metric summed over its labels.
fn sum(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.get("/metrics").1;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
