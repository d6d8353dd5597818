//! Faults on command, under load: the module in `tests/faulty-token` stands between host and SoftHSM.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use istio_hsm_ca::{
    signer::{SignError, Signer},
    token::client::{Link, Phase, Pool, Settings},
};
use nix::sys::signal::{Signal, kill};

use super::{
    common::softhsm::module_path,
    harness::{Mill, PATIENCE, Site, hosts_of, is, pool},
};

/// The module, built once; cargo is the one that runs the tests.
pub static MODULE: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("faulty-token");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(root.join("tests/faulty-token/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug/libfaulty_token.so")
});

/// A token that breaks on command.
struct Faulty {
    site: Site,
    name: String,
    mill: Arc<Mill>,
}

/// How long a call may take here.
const CALL: Duration = Duration::from_secs(2);

impl Faulty {
    async fn new(name: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let site = Site::new();
        let mut host = site.host_settings();
        host.uri = host.uri.replace(&module_path().display().to_string(), &MODULE.display().to_string());
        host.call_timeout = CALL;
        host.sessions = 2;
        let mut token = site.token_with(name, host);
        if let Link::Child { environment, .. } = &mut token.link {
            environment.insert("FAULTY_TOKEN_MODULE".to_owned(), module_path().display().to_string());
            environment
                .insert("FAULTY_TOKEN_CONTROL".to_owned(), site.directory.path().join("faults").display().to_string());
        }
        let mut settings = pool(vec![token]);
        settings.recovery_wait = PATIENCE;
        change(&mut settings);
        let mill = Mill::proven(settings, &site.issuer).await;
        mill.issue().await.unwrap();
        Self { site, name: name.to_owned(), mill: Arc::new(mill) }
    }

    fn breaks(&self, command: &str) {
        let (file, new) = (self.site.directory.path().join("faults"), self.site.directory.path().join("faults-new"));
        fs::write(&new, command).unwrap();
        fs::rename(new, file).unwrap();
    }

    fn works(&self) {
        self.breaks("");
    }

    fn pool(&self) -> &Pool {
        &self.mill.pool
    }

    fn kill_host(&self) {
        for host in hosts_of(std::process::id(), &self.name) {
            let _already_gone = kill(nix::unistd::Pid::from_raw(host.try_into().unwrap()), Signal::SIGKILL);
        }
    }

    /// Callers at work until `over`; answers how many certificates there were. No failure is one that a client would
    /// not try again.
    fn load(&self, over: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<u32>> {
        (0..4)
            .map(|_| {
                let (mill, over) = (Arc::clone(&self.mill), Arc::clone(over));
                tokio::spawn(async move {
                    let mut done = 0;
                    while !over.load(Ordering::Relaxed) {
                        match mill.issue_within(Duration::from_secs(20)).await {
                            Ok(_) => done += 1,
                            Err(SignError::Unavailable(_) | SignError::Deadline) => {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    done
                })
            })
            .collect()
    }
}

fn once() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("times=1,{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn until(from_now: Duration) -> String {
    let end = istio_hsm_ca::clock::now() + from_now;
    format!("until={}", end.duration_since(UNIX_EPOCH).unwrap().as_millis())
}

/// The functions that a host calls, and whether only one that starts does so.
const FUNCTIONS: [(&str, bool); 13] = [
    ("C_Initialize", true),
    ("C_GetSlotList", true),
    ("C_GetTokenInfo", true),
    ("C_Login", true),
    ("C_OpenSession", true),
    ("C_CloseSession", true),
    ("C_FindObjectsInit", true),
    ("C_FindObjects", true),
    ("C_FindObjectsFinal", true),
    ("C_GetAttributeValue", true),
    ("C_GetSessionInfo", true),
    ("C_SignInit", false),
    ("C_Sign", false),
];

/// One code of each class: no room, no such key, logged out, request, session gone, broken, gone, PIN.
const CODES: [(&str, &str); 8] = [
    ("CKR_SESSION_COUNT", "0xb1"),
    ("CKR_KEY_HANDLE_INVALID", "0x60"),
    ("CKR_USER_NOT_LOGGED_IN", "0x101"),
    ("CKR_DATA_LEN_RANGE", "0x21"),
    ("CKR_SESSION_HANDLE_INVALID", "0xb3"),
    ("CKR_GENERAL_ERROR", "0x5"),
    ("CKR_TOKEN_NOT_PRESENT", "0xe0"),
    ("CKR_DEVICE_ERROR", "0x30"),
];

/// A cell: the fault under load, its end, and how long the token took to sign again.
async fn cell(faulty: &Faulty, function: &str, starts: bool, code: &str, limit: &str, lasts: Duration) -> Duration {
    let over = Arc::new(AtomicBool::new(false));
    let load = faulty.load(&over);
    faulty.breaks(&format!("{function} return={code} {limit}"));
    if starts {
        faulty.kill_host();
    }
    tokio::time::sleep(lasts).await;
    faulty.works();
    let began = Instant::now();
    // One more than the callers: it is answered when the token signs again.
    let issued = faulty.mill.issue().await;
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    for caller in load {
        caller.await.unwrap();
    }
    issued.unwrap_or_else(|error| panic!("{function} {code} {limit}: {error}"));
    took
}

/// Every function with one code in CI, in turn; `--ignored` runs all of them.
async fn matrix(name: &str, cells: impl Iterator<Item = (usize, usize)>) {
    let faulty = Faulty::new(name, |_| {}).await;
    for (function, code) in cells {
        let (function, starts) = FUNCTIONS[function];
        let (code_name, code) = CODES[code];
        for (limit, lasts) in [(once(), 100), (until(Duration::from_millis(400)), 450), (String::new(), 700)] {
            let took = cell(&faulty, function, starts, code, &limit, Duration::from_millis(lasts)).await;
            println!("{function} {code_name} {limit}: {} ms", took.as_millis());
            // Backoff of a second at most, and a host's start.
            assert!(took < Duration::from_secs(2), "{function} {code_name} {limit}: back after {took:?}");
        }
    }
    assert_eq!(faulty.mill.snapshot(0).wrong, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_may_fail() {
    matrix("faulty-sample", (0..FUNCTIONS.len()).map(|function| (function, function % CODES.len()))).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: every function with every class of code"]
async fn every_function_may_fail_in_every_way() {
    let cells = (0..FUNCTIONS.len()).flat_map(|function| (0..CODES.len()).map(move |code| (function, code)));
    matrix("faulty-all", cells).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_crashes_or_hangs_takes_only_its_host_along() {
    let faulty = Faulty::new("faulty-crash", |_| {}).await;
    for action in ["abort", "segv", "exit", "hang"] {
        let before = faulty.mill.snapshot(0).hosts;
        faulty.breaks(&format!("C_Sign {action} {}", once()));
        let began = Instant::now();
        faulty.mill.issue().await.unwrap_or_else(|error| panic!("{action}: {error}"));
        assert_eq!(faulty.mill.snapshot(0).hosts, before + 1, "{action}");
        assert!(began.elapsed() < CALL + Duration::from_secs(4), "{action}: {:?}", began.elapsed());
        println!("{action}: {} ms", began.elapsed().as_millis());
    }
    faulty.breaks("C_Sign print");
    faulty.mill.issue().await.unwrap();
    assert!(faulty.pool().health().borrow().is_ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_login_is_made_again_in_the_same_host() {
    let faulty = Faulty::new("faulty-logout", |_| {}).await;
    faulty.breaks(&format!("C_SignInit logout {}", once()));
    for _ in 0..10 {
        faulty.mill.issue().await.unwrap();
    }
    let snapshot = faulty.mill.snapshot(0);
    assert_eq!((snapshot.hosts, snapshot.faults), (1, 0), "{snapshot:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_signature_leaves() {
    let faulty = Faulty::new("faulty-wrong", |_| {}).await;
    for action in ["truncate", "long"] {
        faulty.breaks(&format!("C_Sign {action} {}", once()));
        faulty.mill.issue().await.unwrap_or_else(|error| panic!("{action}: {error}"));
    }
    assert_eq!(faulty.mill.snapshot(0).wrong, 0, "what is too short or too long is not even handed on");
    // For good: every one is found, and the token goes out of service.
    faulty.breaks("C_Sign wrong");
    let recorded = faulty.mill.recorded().await;
    for _ in 0..3 {
        let signed = faulty.mill.sign(&recorded, istio_hsm_ca::signer::Class::Bulk, PATIENCE).await.unwrap();
        let issued = istio_hsm_ca::pki::Issued::assemble(Arc::clone(recorded.value()), &signed.signature);
        assert!(issued.is_err());
        faulty.pool().verdict(&signed.source, false);
    }
    faulty.mill.until("out of service", |health| !health.is_ready()).await;
    faulty.works();
    faulty.mill.issue().await.unwrap();
    assert_eq!(faulty.mill.snapshot(0).wrong, 3);
    faulty.mill.until("serving", is(0, Phase::Serving)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_sessions_than_configured_are_enough() {
    let faulty = Faulty::new("faulty-sessions", |_| {}).await;
    // One for the login and one to sign with.
    faulty.breaks("C_OpenSession sessions=2");
    faulty.kill_host();
    for _ in 0..20 {
        faulty.mill.issue().await.unwrap();
    }
    assert_eq!(faulty.mill.snapshot(0).hosts, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_failed_calls_are_told_by_function() {
    use istio_hsm_ca::telemetry::calls::{BOUNDS, Calls};

    let often = |settings: &mut Settings| settings.tokens[0].keep_alive = Duration::from_millis(50);
    let faulty = Faulty::new("measured", often).await;
    // Calls of C_Sign between 0.2 s and 0.5 s.
    let slow = |calls: &Calls| {
        let at = BOUNDS.iter().position(|bound| *bound == 500_000_000).unwrap();
        calls.durations.iter().find(|(name, _)| *name == "C_Sign").map_or(0, |(_, histogram)| histogram.buckets[at])
    };
    let until = async |what: &str, wanted: &dyn Fn(&Calls) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let calls = faulty.pool().calls().remove(0);
            if wanted(&calls) {
                return calls;
            }
            assert!(Instant::now() < deadline, "{what}: {calls:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = until("the calls of the start", &|calls| !calls.durations.is_empty()).await;
    assert_eq!((told.token.as_str(), slow(&told)), ("measured", 0), "{told:?}");

    // The binding asks for the length first: twice 150 ms.
    faulty.breaks("C_Sign delay=150 times=2,slow");
    faulty.mill.issue().await.unwrap();
    let told = until("the slow signature", &|calls| slow(calls) > 0).await;
    assert_eq!(slow(&told), 1, "{told:?}");

    faulty.breaks("C_SignInit return=0x30 times=1,failed");
    faulty.mill.issue().await.unwrap();
    let told = until("the failed call", &|calls| !calls.errors.is_empty()).await;
    assert_eq!(told.errors, [("C_SignInit", "CKR_DEVICE_ERROR", 1)]);
    assert!(slow(&told) >= 1, "what earlier hosts counted stays: {told:?}");
}
