//! Writes a log, in this process or in a child that a test traces, starves or kills.
//!
//! The child is this test program, controlled by environment variables. For each acknowledged record it writes a line
//! to a file with one system call after `record` has returned, so every line there is an acknowledged record.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use testkit::wait::eventually_blocking;

use audit_log::{
    CheckpointSignError, CheckpointSignature, CheckpointSigner, Intent, Log, Outcome, Settings,
    checkpoint::{VerifierKeys, verifier_key},
    show, verify,
};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use istio_hsm_ca::auth::Caller;
use pki::{Issuer, Profile, PublicKey, Tbs, Template, identity::Name, tbs::Serial};

pub const ORIGIN: &str = "ca.example/replica-0";

/// A log key in software.
#[derive(Debug)]
pub struct LogKey(Ed25519KeyPair);

impl LogKey {
    pub fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    pub fn verifier_key(&self) -> String {
        verifier_key(ORIGIN, self.0.public_key().as_ref().try_into().unwrap()).unwrap()
    }
}

impl CheckpointSigner for LogKey {
    fn sign_checkpoint<'a>(
        &'a self,
        text: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<CheckpointSignature, CheckpointSignError>> + Send + 'a>> {
        let signature = CheckpointSignature {
            public_key: self.0.public_key().as_ref().try_into().unwrap(),
            signature: self.0.sign(text).as_ref().try_into().unwrap(),
        };
        Box::pin(async move { Ok(signature) })
    }
}

/// Creates intents with one issuer, one workload key and unique serial numbers.
pub struct Intents {
    issuer: Arc<Issuer>,
    workload: PublicKey,
}

impl Intents {
    pub fn new() -> Self {
        let public = || {
            let pair = rcgen::KeyPair::generate().unwrap();
            PublicKey::from_spki_der(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap()
        };
        let (now, day) = (whole_second(), Duration::from_secs(86_400));
        let subject = b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x0a\x0c\x01\x61".to_vec();
        Self {
            issuer: Arc::new(Issuer::self_signed(subject, public(), now - day, now + 900 * day)),
            workload: public(),
        }
    }

    pub fn next(&self, account: &str) -> Intent {
        let (time, second) = (process::clock::now(), whole_second());
        let template = Template {
            profile: Profile::Leaf,
            public_key: self.workload.clone(),
            names: vec![Name::Spiffe(format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap())],
            not_before: second,
            not_after: second + Duration::from_secs(86_400),
        };
        let tbs = Tbs::build(template, Arc::clone(&self.issuer), Serial::random()).unwrap();
        Intent { request_id: "6f1c".to_owned(), time, caller: (&Caller::operator(7)).into(), tbs: Arc::new(tbs) }
    }
}

/// The current time with the precision of certificates.
fn whole_second() -> std::time::SystemTime {
    let since = process::clock::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    std::time::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Writes some records with their outcomes and closes the log.
pub fn written(settings: Settings, count: u64) {
    runtime().block_on(async {
        let (log, _) = Log::open(settings, Some(Arc::new(LogKey::new(1)))).unwrap();
        record(&log, &Intents::new(), count).await;
        log.close().await;
    });
}

/// Records intents and their outcomes, for the accounts `a0`, `a1` and so on.
pub async fn record(log: &Log, intents: &Intents, count: u64) {
    for number in 0..count {
        let recorded = log.record(intents.next(&format!("a{number}"))).await.unwrap();
        log.outcome(recorded.index(), Outcome::Issued { token: "one".to_owned() });
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Parameters of a child.
pub struct Job {
    pub directory: PathBuf,
    /// The file with its reports.
    pub acks: PathBuf,
    /// Number of successful records after which it ends.
    pub count: u64,
    /// Number of concurrent records.
    pub tasks: u64,
    pub segment_bytes: u64,
    pub checkpoint: Duration,
}

impl Job {
    pub fn new(scratch: &Path) -> Self {
        Self {
            directory: scratch.join("log"),
            acks: scratch.join("acks"),
            count: u64::MAX,
            tasks: 1,
            segment_bytes: 1 << 20,
            checkpoint: Duration::from_millis(100),
        }
    }

    /// Starts the child, optionally under another program with arguments.
    pub fn start(&self, before: &[&str]) -> Running {
        let me = std::env::current_exe().unwrap();
        let me = me.to_str().unwrap();
        let words: Vec<&str> = before.iter().copied().chain([me, "--exact", "writer::child", "--nocapture"]).collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .env("TEST_LOG_DIRECTORY", &self.directory)
            .env("TEST_LOG_ACKS", &self.acks)
            .env(
                "TEST_LOG_NUMBERS",
                format!("{} {} {} {}", self.count, self.tasks, self.segment_bytes, self.checkpoint.as_millis()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; install it by `make deps`", words[0]));
        Running(child)
    }

    /// The child's reports, one per line, without an incomplete last line.
    pub fn reported(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.acks).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// Acknowledged indices and their serial numbers.
    pub fn acknowledged(&self) -> BTreeMap<u64, String> {
        let mut all = BTreeMap::new();
        for line in self.reported() {
            if let ["ack", index, serial] = line.split(' ').collect::<Vec<_>>()[..] {
                let before = all.insert(index.parse().unwrap(), serial.to_owned());
                assert_eq!(before, None, "the index {index} was used twice");
            }
        }
        all
    }

    /// Waits until the child has reported something.
    pub fn wait_for(&self, what: &str, enough: impl Fn(&[String]) -> bool) {
        eventually_blocking(
            std::fmt::from_fn(|f| write!(f, "{what} did not happen; the last output: {:?}", self.reported().last())),
            || enough(&self.reported()),
        );
    }

    /// Checks the whole log: it verifies, indices have no gaps, and it contains every acknowledged record. Returns the
    /// number of intents.
    pub fn check(&self) -> u64 {
        let keys = Some(VerifierKeys::parse(&[LogKey::new(1).verifier_key()]).unwrap());
        let request = verify::Request { directory: self.directory.clone(), keys, checkpoints: Vec::new() };
        let report = verify::verify(&request).unwrap();
        assert_eq!(report.findings, [], "{report:?}");
        let entries = show::entries(&self.directory, &show::Filter::default()).unwrap();
        for (entry, index) in entries.iter().zip(0..) {
            assert_eq!(entry.intent.index, index, "the indices have a gap");
        }
        let count = u64::try_from(entries.len()).unwrap();
        assert_eq!(count, report.intents);
        for (index, serial) in self.acknowledged() {
            let entry = entries.get(usize::try_from(index).unwrap());
            let entry = entry.unwrap_or_else(|| panic!("the acknowledged intent {index} is not in the log"));
            assert_eq!(entry.intent.serial, serial, "intent {index}");
        }
        count
    }
}

/// A child that is killed when dropped.
pub struct Running(Child);

impl Running {
    /// Sends SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it ends successfully.
    pub fn ended(mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => {
                    assert!(status.success(), "{status}");
                    return;
                }
                None => assert!(Instant::now() < until, "the writer does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Usually it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Code of the child; does nothing when run as a test.
#[test]
fn child() {
    let (Some(directory), Some(acks), Ok(numbers)) =
        (std::env::var_os("TEST_LOG_DIRECTORY"), std::env::var_os("TEST_LOG_ACKS"), std::env::var("TEST_LOG_NUMBERS"))
    else {
        return;
    };
    let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
    let [count, tasks, segment_bytes, checkpoint] = numbers[..] else { panic!("four numbers") };
    let settings = Settings {
        segment_bytes,
        checkpoint_interval: Duration::from_millis(checkpoint),
        ..Settings::new(directory, ORIGIN)
    };
    let acks = Arc::new(OpenOptions::new().append(true).create(true).open(acks).unwrap());
    runtime().block_on(async {
        let (log, _) = Log::open(settings, Some(Arc::new(LogKey::new(1)))).unwrap();
        let (intents, left) = (Arc::new(Intents::new()), Arc::new(AtomicU64::new(count)));
        let workers: Vec<_> = (0..tasks)
            .map(|_| tokio::spawn(work(log.clone(), Arc::clone(&intents), Arc::clone(&left), Arc::clone(&acks))))
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        log.close().await;
        tell(&acks, "closed");
    });
}

async fn work(log: Log, intents: Arc<Intents>, left: Arc<AtomicU64>, acks: Arc<File>) {
    let mut health = log.health();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        loop {
            let intent = intents.next("a");
            let serial = intent.tbs.serial().to_hex();
            let result = log.record(intent).await;
            // Reported by the task that reports the record, so that both stay in order.
            if health.has_changed().unwrap() {
                let writable = health.borrow_and_update().writable.clone();
                tell(&acks, &format!("health {}", writable.err().unwrap_or_else(|| "well".to_owned())));
            }
            match result {
                Ok(recorded) => {
                    tell(&acks, &format!("ack {} {serial}", recorded.index()));
                    log.outcome(recorded.index(), Outcome::Issued { token: "one".to_owned() });
                    break;
                }
                Err(error) => {
                    tell(&acks, &format!("refused {error:?}"));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Writes one line with one system call.
fn tell(mut acks: &File, line: &str) {
    acks.write_all(format!("{line}\n").as_bytes()).unwrap();
}
