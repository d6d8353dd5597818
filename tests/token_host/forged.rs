//! A daemon that is not ours any more gets nothing out of a host but what the host's own rules allow.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually_blocking;

use der::{Decode, Encode};
use pki::{Issuer, Profile, PublicKey, Tbs, identity::Name, tbs::Serial};
use rcgen::KeyPair;
use token_host::{
    canary_message,
    protocol::{Frame, Kind, Reply, Request, Sign, Status, VERSION},
};

use super::harness::{MAX_VALIDITY, PATIENCE, PROGRAM, Site, soft_issuer, template};
use testkit::faulty::{Control, MODULE, through};

/// Who has it may raise priorities; its number in capabilities(7).
const CAP_SYS_NICE: u32 = 23;

/// The other end of a host, byte by byte.
pub struct Forger {
    socket: UnixStream,
    buffer: Vec<u8>,
    correlation: u64,
}

impl Forger {
    /// Connects to a host's socket. Its file is there a moment before somebody listens.
    pub fn connect(socket: &Path) -> Self {
        let began = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(socket) => return Self::new(socket),
                Err(error) => assert!(began.elapsed() < PATIENCE, "{}: {error}", socket.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, buffer: Vec::new(), correlation: 0 }
    }

    /// A reply; none when the host hangs up.
    pub fn ask(&mut self, request: &Request<'_>) -> Option<Reply> {
        self.correlation += 1;
        let mut bytes = Vec::new();
        request.encode(self.correlation, &mut bytes).unwrap();
        self.socket.write_all(&bytes).ok()?;
        self.reply()
    }

    /// Asks several things at once, in one write, and gives the replies in their order; waits for none that never come.
    fn ask_all(&mut self, requests: &[Request<'_>]) -> Vec<Reply> {
        self.send(requests);
        self.answers(requests.len())
    }

    fn send(&mut self, requests: &[Request<'_>]) {
        let mut bytes = Vec::new();
        for request in requests {
            self.correlation += 1;
            request.encode(self.correlation, &mut bytes).unwrap();
        }
        self.socket.write_all(&bytes).unwrap();
    }

    /// The answers to the last requests, in the requests' order; threads of the host answer as they get done.
    fn answers(&mut self, count: usize) -> Vec<Reply> {
        let mut replies: Vec<_> = std::iter::from_fn(|| self.frame()).take(count).collect();
        replies.sort_by_key(|(correlation, _)| *correlation);
        let expected = (self.correlation + 1 - u64::try_from(count).unwrap())..=self.correlation;
        assert!(replies.iter().map(|(correlation, _)| *correlation).eq(expected), "{replies:?}");
        replies.into_iter().map(|(_, reply)| reply).collect()
    }

    fn reply(&mut self) -> Option<Reply> {
        let (correlation, reply) = self.frame()?;
        assert_eq!(correlation, self.correlation);
        Some(reply)
    }

    fn frame(&mut self) -> Option<(u64, Reply)> {
        loop {
            if let Some((frame, length)) = Frame::split(&self.buffer).unwrap() {
                let answer = (frame.correlation, Reply::decode(frame).unwrap());
                self.buffer.drain(..length);
                return Some(answer);
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend(bytes.iter().take(count)),
            }
        }
    }

    pub fn hello(&mut self, settings: &[u8]) -> Status {
        match self.ask(&Request::Hello { version: VERSION, settings }) {
            Some(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn sign(&mut self, kind: Kind, key: [u8; 32], message: &[u8]) -> Option<Reply> {
        self.ask(&Request::Sign(Sign { kind, key, request_id: "forged", deadline_ms: 30_000, message }))
    }

    /// Sends bytes and tells whether the host hangs up on them.
    fn hangs_up(mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).unwrap();
        self.reply().is_none()
    }
}

/// A host as a child of this process.
fn child(site: &Site) -> (Child, Forger) {
    child_of(Command::new(PROGRAM), site)
}

/// The same, with this in front of the arguments.
fn child_of(mut command: Command, site: &Site) -> (Child, Forger) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = command
        .args(["--child", "forged"])
        .envs(site.environment())
        .envs(Control::new(site.directory.path()).environment())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, Forger::new(ours))
}

fn leaf(issuer: &Arc<Issuer>, change: impl FnOnce(&mut pki::Template)) -> Vec<u8> {
    let mut template = template();
    change(&mut template);
    Tbs::build(template, Arc::clone(issuer), Serial::random()).unwrap().der().to_vec()
}

/// Replaces the one place where `from` stands.
fn patched(tbs: &[u8], from: &[u8], to: &[u8], which: usize) -> Vec<u8> {
    let places: Vec<usize> = (0..tbs.len()).filter(|at| tbs[*at..].starts_with(from)).collect();
    let mut tbs = tbs.to_vec();
    tbs[places[which]..][..to.len()].copy_from_slice(to);
    tbs
}

/// A leaf of a hundred years, by another builder.
fn hundred_years(issuer: &Arc<Issuer>) -> Vec<u8> {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2126, 1, 1);
    let other = rcgen::Issuer::from_ca_cert_pem(issuer.roots_pem(), pair).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = params.signed_by(&key, &other).unwrap();
    x509_cert::Certificate::from_der(certificate.der()).unwrap().tbs_certificate().to_der().unwrap()
}

/// What no host may sign: a name, the kind it pretends to be, the message, and a word of the refusal.
pub fn forgeries(issuer: &Arc<Issuer>) -> Vec<(&'static str, Kind, Vec<u8>, &'static str)> {
    let honest = leaf(issuer, |_| {});
    let ca = leaf(issuer, |template| {
        template.profile = Profile::Intermediate { organization: "evil".to_owned() };
        template.names.clear();
    });
    let foreign = leaf(issuer, |template| {
        template.names = vec![Name::Spiffe("spiffe://evil.example/ns/default/sa/httpbin".parse().unwrap())];
    });
    let both = leaf(issuer, |template| template.names.push(Name::Dns("evil.example".parse().unwrap())));
    let unlisted =
        leaf(issuer, |template| template.names = vec![Name::Dns("istiod.istio-system.svc".parse().unwrap())]);
    let address = leaf(issuer, |template| template.names = vec![Name::Ip("10.0.0.1".parse().unwrap())]);
    let long = leaf(issuer, |template| template.not_after += MAX_VALIDITY);
    let later = leaf(issuer, |template| {
        template.not_before += Duration::from_secs(365 * 86_400);
        template.not_after += Duration::from_secs(365 * 86_400);
    });
    let renamed = patched(&honest, b"token host test", b"tokem host test", 0);
    let strange = leaf(&soft_issuer(), |_| {});
    vec![
        ("CA:TRUE", Kind::Leaf, ca.clone(), "end entity"),
        ("CA:TRUE, honestly named", Kind::Intermediate, ca, "does not allow intermediates"),
        ("a leaf as an intermediate", Kind::Intermediate, honest.clone(), ""),
        ("a foreign trust domain", Kind::Leaf, foreign, "evil.example"),
        ("a foreign name beside an honest one", Kind::Leaf, both, "evil.example"),
        ("a DNS name", Kind::Leaf, unlisted, "istiod.istio-system.svc"),
        ("an address", Kind::Leaf, address, "10.0.0.1"),
        ("a day and an hour", Kind::Leaf, long, ""),
        ("a year from now", Kind::Leaf, later, "later than the host allows"),
        ("a hundred years", Kind::Leaf, hundred_years(issuer), ""),
        ("the name of another issuer", Kind::Leaf, renamed, "issuer"),
        ("another CA's leaf", Kind::Leaf, strange, ""),
        ("nothing", Kind::Leaf, Vec::new(), ""),
        ("garbage", Kind::Leaf, vec![0x30; 300], ""),
        ("half a leaf", Kind::Leaf, honest[..honest.len() / 2].to_vec(), ""),
        ("a leaf and more", Kind::Leaf, [honest.as_slice(), b"\0"].concat(), ""),
        ("a leaf as a checkpoint", Kind::Checkpoint, honest.clone(), "not a checkpoint"),
        ("a leaf as a canary", Kind::Canary, honest, "not a canary's"),
        ("a canary as a leaf", Kind::Leaf, canary_message(), ""),
        ("a canary as a checkpoint", Kind::Checkpoint, canary_message(), "not a checkpoint"),
    ]
}

/// Has a host refuse everything forged, and then sign what is honest.
pub fn refuses_all(forger: &mut Forger, issuer: &Arc<Issuer>) {
    let key = issuer.public_key();
    assert_eq!(forger.ask(&Request::Open { key: key.fingerprint() }), Some(Reply::Opened));
    let forgeries = forgeries(issuer);
    for (name, kind, message, word) in &forgeries {
        match forger.sign(*kind, key.fingerprint(), message) {
            Some(Reply::Refused { reason }) => assert!(reason.contains(word), "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let honest = leaf(issuer, |_| {});
    // Neither the log key nor the canary key signs a certificate, nor does a key that the bundle does not name.
    let Some(Reply::Status(status)) = forger.ask(&Request::Ping) else { panic!() };
    for other in [&status.log_key, &status.canary_key] {
        let fingerprint = PublicKey::from_spki_der(other).unwrap().fingerprint();
        assert!(matches!(forger.sign(Kind::Leaf, fingerprint, &honest), Some(Reply::Refused { .. })));
        assert!(matches!(forger.ask(&Request::Open { key: fingerprint }), Some(Reply::Refused { .. })));
    }
    assert!(matches!(forger.sign(Kind::Leaf, [0; 32], &honest), Some(Reply::Refused { .. })));
    match forger.sign(Kind::Leaf, key.fingerprint(), &honest) {
        Some(Reply::Signed { signature, .. }) => key.verify(key.signature_algorithm(), &honest, &signature).unwrap(),
        other => panic!("{other:?}"),
    }
    let Some(Reply::Status(status)) = forger.ask(&Request::Ping) else { panic!() };
    let leaves = status.signed.iter().filter(|count| count.kind != Kind::Canary).map(|count| count.count).sum::<u64>();
    assert_eq!((status.refused, leaves), (u64::try_from(forgeries.len()).unwrap() + 3, 1));
}

#[test]
fn a_forged_daemon_gets_nothing_that_the_host_does_not_allow() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    let settings = serde_json::to_vec(&site.host_settings()).unwrap();
    let status = forger.hello(&settings);
    assert_eq!((status.version, status.pid, status.sessions), (VERSION, host.id(), 1));
    refuses_all(&mut forger, &site.issuer);
    // A second hello changes nothing.
    let again = forger.ask(&Request::Hello { version: VERSION, settings: &settings });
    assert!(matches!(again, Some(Reply::Refused { .. })), "{again:?}");
    drop(forger);
    assert!(host.wait().unwrap().success(), "a host whose daemon hangs up ends well");
}

#[test]
fn what_is_not_the_protocol_ends_the_connection() {
    let (mut reply, mut ping) = (Vec::new(), Vec::new());
    Reply::Opened.encode(0, &mut reply).unwrap();
    Request::Ping.encode(0, &mut ping).unwrap();
    let cases: [(&str, bool, Vec<u8>); 6] = [
        ("a gigabyte", true, vec![0x40, 0, 0, 0]),
        ("an empty frame", true, vec![0; 4]),
        // Correlation 1, and an empty body of the unknown number 15.
        ("an unknown body", true, vec![0, 0, 0, 4, 0x08, 1, 0x7a, 0]),
        ("a reply", true, reply),
        ("HTTP", true, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a ping before the hello", false, ping),
    ];
    let site = Site::new();
    for (name, greeted, bytes) in cases {
        let (mut host, mut forger) = child(&site);
        if greeted {
            forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
        }
        assert!(forger.hangs_up(&bytes), "{name}");
        host.wait().unwrap();
    }
}

#[test]
fn settings_that_the_host_does_not_know_are_refused() {
    let site = Site::new();
    let good = serde_json::to_string(&site.host_settings()).unwrap();
    for bad in ["", "{}", "null", &good.replace("bundle", "bundel"), &good.replace("cluster.local", "Cluster Local")] {
        let (mut host, mut forger) = child(&site);
        let reply = forger.ask(&Request::Hello { version: VERSION, settings: bad.as_bytes() });
        assert!(matches!(reply, Some(Reply::Fault(_))), "{bad}: {reply:?}");
        assert!(!host.wait().unwrap().success());
    }
}

#[test]
fn a_host_shows_nothing_of_itself() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let process = std::path::PathBuf::from(format!("/proc/{}", host.id()));
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    // The hard limit too: the soft one is 0 on many machines without us.
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // A process that is not dumpable belongs to root in /proc, whoever runs it; as root that shows nothing, and
    // `supervised` has it for another user.
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(process.join("mem")).unwrap());
    assert_eq!(owner, 0);
    for secret in ["environ", "cmdline"] {
        let text = std::fs::read(process.join(secret)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(testkit::softhsm::PIN), "{secret}");
    }
    drop(forger);
    host.wait().unwrap();
}

/// The settings with the module that breaks on command, one whose calls may take long.
fn faulty_settings(site: &Site) -> Vec<u8> {
    let mut settings = site.host_settings();
    settings.uri = through(&MODULE, &settings.uri);
    settings.call_timeout = Duration::from_secs(60);
    serde_json::to_vec(&settings).unwrap()
}

#[test]
fn what_is_late_at_the_host_is_not_signed() {
    let site = Site::new();
    let control = Control::new(site.directory.path());
    let (mut host, mut forger) = child(&site);
    forger.hello(&faulty_settings(&site));
    let key = site.issuer.public_key().fingerprint();
    let message = leaf(&site.issuer, |_| {});
    let sign =
        |deadline_ms| Request::Sign(Sign { kind: Kind::Leaf, key, request_id: "late", deadline_ms, message: &message });
    assert_eq!(forger.ask(&sign(0)), Some(Reply::Expired));
    assert!(matches!(forger.ask(&sign(30_000)), Some(Reply::Signed { .. })));
    // Behind one that takes long, the second one's time is over; the third one's is not.
    control.breaks("C_Sign delay=300");
    let mark = control.mark();
    let replies = forger.ask_all(&[sign(30_000), sign(100), sign(30_000)]);
    assert!(matches!(replies[..], [Reply::Signed { .. }, Reply::Expired, Reply::Signed { .. }]), "{replies:?}");
    assert_eq!(control.books_since(mark).signed.len(), 2, "it reached the token");
    // When the host has seen that the token is slow it reads ahead: now the second one's time is over while it waits for
    // the session, which the first one has.
    control.breaks("C_Sign delay=30");
    assert_eq!(forger.ask_all(&std::array::from_fn::<_, 8, _>(|_| sign(30_000))).len(), 8);
    control.breaks("C_Sign delay=1000");
    let mark = control.mark();
    forger.send(&[sign(30_000)]);
    std::thread::sleep(Duration::from_millis(500));
    forger.send(&[sign(100), sign(30_000)]);
    let replies = forger.answers(3);
    assert!(matches!(replies[..], [Reply::Signed { .. }, Reply::Expired, Reply::Signed { .. }]), "{replies:?}");
    assert_eq!(control.books_since(mark).signed.len(), 2, "it reached the token");
    let Some(Reply::Status(status)) = forger.ask(&Request::Ping) else { panic!() };
    assert_eq!(status.expired, 3);
    drop(forger);
    host.wait().unwrap();
}

/// Neither the parent's death nor a call's limit is at hand here: the watchdog sees that the daemon has hung up.
#[test]
fn a_host_whose_daemon_hangs_up_ends_although_a_call_hangs() {
    for supervised in [false, true] {
        let site = Site::new();
        let control = Control::new(site.directory.path());
        let socket = site.directory.path().join("host.sock");
        let (mut host, mut forger) = if supervised {
            let config = site.directory.path().join("token-host.toml");
            let settings: token_host::Settings = serde_json::from_slice(&faulty_settings(&site)).unwrap();
            std::fs::write(&config, toml::to_string(&settings).unwrap()).unwrap();
            let mut command = Command::new(PROGRAM);
            command.args(["--config"]).arg(&config).arg("--socket").arg(&socket);
            let started = command.envs(site.environment()).envs(control.environment()).stdin(Stdio::null()).spawn();
            (started.unwrap(), Forger::connect(&socket))
        } else {
            child(&site)
        };
        forger.hello(&faulty_settings(&site));
        control.breaks("C_Sign hang");
        let mark = control.mark();
        let (key, message) = (site.issuer.public_key().fingerprint(), leaf(&site.issuer, |_| {}));
        let sign = Sign { kind: Kind::Leaf, key, request_id: "hangs", deadline_ms: 30_000, message: &message };
        let mut bytes = Vec::new();
        Request::Sign(sign).encode(99, &mut bytes).unwrap();
        forger.socket.write_all(&bytes).unwrap();
        eventually_blocking("it was not asked", || control.books_since(mark).faults_of("C_Sign") != 0);
        drop(forger);
        let began = Instant::now();
        let status = loop {
            if let Some(status) = host.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > Duration::from_secs(10) {
                host.kill().unwrap();
                panic!("supervised {supervised}: the host lives on");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(!status.success(), "supervised {supervised}: {status}");
    }
}

/// A host goes before the daemon, with all its threads, where the system lets it.
#[test]
fn a_host_has_a_higher_priority_if_it_may() {
    let nice = |task: &Path| -> i32 {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        // The name, in parentheses, may hold anything; nice is the 19th field, the 17th after it.
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
    };
    let site = Site::new();
    let (mut host, mut forger) = child_of(Command::new(PROGRAM), &site);
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let own = nice(Path::new("/proc/self"));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let may = u64::from_str_radix(capabilities, 16).unwrap() & (1 << CAP_SYS_NICE) != 0;
    let expected = if may { (own - 10).max(-20) } else { own };
    let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", host.id())).unwrap().flatten().collect();
    assert!(tasks.len() > 1, "the watchdog at least");
    for task in tasks {
        assert_eq!(nice(&task.path()), expected, "{}", task.path().display());
    }
    drop(forger);
    host.wait().unwrap();
}

/// What a host may have open: standard input and output, one socket, and what its module has opened.
#[test]
fn a_host_keeps_no_descriptor_of_whoever_started_it() {
    let site = Site::new();
    let theirs = ["log", "key"].map(|name| site.directory.path().join(name));
    theirs.iter().for_each(|path| std::fs::write(path, "secret").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 7<\"$1\" 9>>\"$2\"; shift 2; exec \"$@\"", "sh"]).args(&theirs).arg(PROGRAM);
    let (mut host, mut forger) = child_of(shell, &site);
    // No module is loaded before it is told which.
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let open = |process: u32| -> Vec<(u32, String)> {
        let listing = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let number = |entry: &std::fs::DirEntry| entry.file_name().to_str().unwrap().parse().unwrap();
        let target = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path()).unwrap().display().to_string();
        listing.flatten().map(|entry| (number(&entry), target(&entry))).collect()
    };
    let descriptors = open(host.id());
    assert_eq!(descriptors.iter().find(|(number, _)| *number == 0).unwrap().1, "/dev/null", "{descriptors:?}");
    let error = &descriptors.iter().find(|(number, _)| *number == 2).unwrap().1;
    let sockets: std::collections::BTreeSet<_> =
        descriptors.iter().filter(|(_, to)| to.starts_with("socket:")).collect();
    let sockets: std::collections::BTreeSet<_> =
        sockets.into_iter().map(|(_, to)| to).filter(|to| *to != error).collect();
    assert_eq!(sockets.len(), 1, "its own alone: {descriptors:?}");
    let module = site.directory.path().join("tokens").display().to_string();
    for (number, to) in &descriptors {
        let known = *number <= 2 || sockets.contains(to) || to.starts_with(&module);
        assert!(known, "{number} is {to}: {descriptors:?}");
    }
    drop(forger);
    host.wait().unwrap();
}
