//! Faults on command, at the pool: the module in `tests/faulty-token` is between host and SoftHSM. The matrix of all
//! faults, with the daemon and its clients, is `tests/fault_matrix`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually;

use istio_hsm_ca::{
    signer::{SignError, Signer},
    token_pool::{HostEndpoint, Phase, Pool, Settings},
};
use nix::sys::signal::{Signal, kill};

use super::harness::{LOG_ORIGIN, Mill, PATIENCE, Site, hosts_of, is, pool};
use testkit::faulty::{Control, MODULE, once, proof_hash, through, times, until};
use token::key;

/// A token that fails on command.
struct Faulty {
    control: Control,
    name: String,
    mill: Arc<Mill>,
    site: Site,
}

/// Call timeout in these tests.
const CALL: Duration = Duration::from_secs(2);

impl Faulty {
    async fn new(name: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let site = Site::new();
        let control = Control::new(site.directory.path());
        let mut host = site.host_settings();
        host.uri = through(&MODULE, &host.uri);
        host.call_timeout = CALL;
        host.sessions = 2;
        let mut token = site.token_with(name, host);
        if let HostEndpoint::Child { environment, .. } = &mut token.endpoint {
            environment.extend(control.environment());
        }
        let mut settings = pool(vec![token]);
        settings.recovery_wait = PATIENCE;
        change(&mut settings);
        let mill = Mill::proven(settings, &site.issuer).await;
        mill.issue().await.unwrap();
        Self { control, name: name.to_owned(), mill: Arc::new(mill), site }
    }

    fn breaks(&self, command: &str) {
        self.control.breaks(command);
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
    assert_eq!(faulty.mill.snapshot(0).wrong, 0, "a signature of wrong length left the host");
    // Permanently: every wrong signature is detected, and the token goes out of service.
    faulty.breaks("C_Sign wrong");
    let recorded = faulty.mill.recorded().await;
    for _ in 0..3 {
        let signed = faulty.mill.sign(&recorded, istio_hsm_ca::signer::Priority::Normal, PATIENCE).await.unwrap();
        let issued = pki::Issued::assemble(Arc::clone(recorded.value()), &signed.signature);
        assert!(issued.is_err());
        faulty.pool().verdict(&signed.source, false);
    }
    faulty.mill.until("out of service", |health| !health.is_ready()).await;
    // The canary's signature is verified: while it is wrong, no request is sent to the token.
    let mark = faulty.control.mark();
    let end = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let (signed, id) = (faulty.control.books_since(mark).signed, faulty.mill.issuer.public_key().key_id());
        let id = key::hex(&id);
        let is_request = |(key, input): &(String, String)| *key == id && *input != proof_hash();
        assert!(signed.len() > 1 && !signed.iter().any(is_request), "{signed:?}");
        assert!(faulty.mill.snapshot(0).canaries_failed > 1);
        faulty.works();
    };
    let (issued, ()) = tokio::join!(faulty.mill.issue(), end);
    issued.unwrap();
    assert_eq!(faulty.mill.snapshot(0).wrong, 3);
    faulty.mill.until("serving", is(0, Phase::Serving)).await;
}

/// CKA_ID of the private key with a label.
fn id_of(site: &Site, label: &str) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
        .args(["inspect", "--output", "json", "--token", &site.host_settings().uri])
        .envs(site.environment())
        .output()
        .unwrap();
    let view: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let key = view["keys"].as_array().unwrap().iter().find(|key| key["label"] == label);
    key.unwrap_or_else(|| panic!("{view}"))["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_log_and_canary_keys_cause_no_outage_and_no_new_host() {
    let often = |settings: &mut Settings| settings.tokens[0].keep_alive = Duration::from_millis(100);
    let faulty = Faulty::new("faulty-helpers", often).await;
    let (log, canary) = (id_of(&faulty.site, key::LOG_KEY_LABEL), id_of(&faulty.site, key::CANARY_KEY_LABEL));
    let text = format!("{LOG_ORIGIN}\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n");
    // One code of each recovery, those that end a host included.
    for (killed, code) in (1..).zip([0x30, 0x5, 0x6, 0x70, 0x31, 0x101, 0xa0]) {
        let mark = faulty.control.mark();
        faulty.breaks(&format!("C_SignInit:{log} return=0x{code:x}\nC_SignInit:{canary} return=0x{code:x}"));
        // A new host comes into service without them.
        faulty.kill_host();
        faulty.mill.issue().await.unwrap_or_else(|error| panic!("0x{code:x}: {error}"));
        for _ in 0..3 {
            let checkpoint =
                faulty.pool().sign_checkpoint(text.as_bytes(), Instant::now() + Duration::from_secs(2)).await;
            let error = checkpoint.unwrap_err().to_string();
            assert!(error.contains("log key"), "{error}");
            faulty.mill.issue().await.unwrap_or_else(|error| panic!("0x{code:x}: {error}"));
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert!(faulty.pool().health().borrow().is_ready(), "0x{code:x}");
        }
        let faults = faulty.control.books_since(mark);
        for key in [&log, &canary] {
            assert!(faults.faults_of(&format!("C_SignInit:{key}")) > 0, "0x{code:x}: the fault did not happen");
        }
        let snapshot = faulty.mill.snapshot(0);
        assert_eq!((snapshot.hosts, snapshot.outages), (1 + killed, killed), "0x{code:x}: {snapshot:?}");
        // Each attempt costs a session, so that a key which fails is not tried each time: by 3 requests and 5 probes.
        for key in [&log, &canary] {
            let tried = faults.faults_of(&format!("C_SignInit:{key}"));
            assert!(tried <= 4, "0x{code:x}: {tried} attempts");
        }
    }
    faulty.works();
    eventually("a checkpoint", async || {
        faulty.pool().sign_checkpoint(text.as_bytes(), Instant::now() + Duration::from_secs(2)).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_sessions_than_configured_are_enough() {
    let faulty = Faulty::new("faulty-sessions", |_| {}).await;
    // One session for the login and one to sign with.
    faulty.breaks("C_OpenSession sessions=2");
    faulty.kill_host();
    for _ in 0..20 {
        faulty.mill.issue().await.unwrap();
    }
    assert_eq!(faulty.mill.snapshot(0).hosts, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_the_rest_is_served() {
    const QUEUE: usize = 8;
    let faulty = Faulty::new("faulty-full", |settings| settings.queue = QUEUE).await;
    faulty.breaks("C_Sign delay=10");
    let recorded = faulty.mill.recorded().await;
    let sign = || faulty.mill.sign(&recorded, istio_hsm_ca::signer::Priority::Normal, PATIENCE);
    let answers = futures_util::future::join_all((0..200).map(|_| sign())).await;
    let full = answers.iter().filter(|answer| matches!(answer, Err(SignError::QueueFull))).count();
    let signed = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(full + signed, 200, "{:?}", answers.iter().find(|answer| answer.is_err()));
    // Two sessions' windows, the queue, and what was signed while the others arrived.
    assert!((QUEUE + 64..QUEUE + 100).contains(&signed), "{signed}");
    // The other priority has a separate queue.
    let (mut bulk, mut first) = (Vec::new(), Vec::new());
    for _ in 0..120 {
        bulk.push(sign());
        first.push(faulty.mill.sign(&recorded, istio_hsm_ca::signer::Priority::High, PATIENCE));
    }
    let (bulk, first) = tokio::join!(futures_util::future::join_all(bulk), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        futures_util::future::join_all(first.into_iter().take(QUEUE)).await
    });
    assert!(bulk.iter().any(|answer| matches!(answer, Err(SignError::QueueFull))));
    assert!(first.iter().all(Result::is_ok), "normal priority filled the other queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_failed_calls_are_counted_by_function() {
    use token::call_metrics::{BOUNDS, Calls};

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
    let reported = until("the calls of the start", &|calls| !calls.durations.is_empty()).await;
    assert_eq!((reported.token.as_str(), slow(&reported)), ("measured", 0), "{reported:?}");

    // One call, whichever key signs.
    faulty.breaks("C_Sign delay=300 times=1,slow");
    faulty.mill.issue().await.unwrap();
    let reported = until("the slow signature", &|calls| slow(calls) > 0).await;
    assert_eq!(slow(&reported), 1, "{reported:?}");

    faulty.breaks("C_SignInit return=0xb3 times=1,failed");
    faulty.mill.issue().await.unwrap();
    let reported = until("the failed call", &|calls| !calls.errors.is_empty()).await;
    assert_eq!(reported.errors, [("C_SignInit", "CKR_SESSION_HANDLE_INVALID", 1)]);
    assert!(slow(&reported) >= 1, "counters of earlier hosts are lost: {reported:?}");
    // The host's own count of signatures, which the daemon compares with the log.
    eventually(std::fmt::from_fn(|f| write!(f, "{:?}", faulty.mill.snapshot(0))), async || {
        faulty.mill.snapshot(0).reported >= faulty.mill.snapshot(0).signed
    })
    .await;
    let snapshot = faulty.mill.snapshot(0);
    assert_eq!((snapshot.reported, snapshot.signed), (3, 3), "{snapshot:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_a_token_hides_at_first_are_found() {
    let often = |settings: &mut Settings| settings.tokens[0].keep_alive = Duration::from_millis(200);
    let faulty = Faulty::new("faulty-hidden", often).await;
    let text = format!("{LOG_ORIGIN}\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n");
    let text = text.as_bytes();
    let log_keys = faulty.pool().log_keys();
    assert_eq!(log_keys.len(), 1);
    // The library reports a login although there is none; and then a token that hides its objects for a while.
    let hidden = Duration::from_secs(2);
    for command in [format!("C_Login return=0x100 {}", once()), format!("C_FindObjects hide {}", until(hidden))] {
        let mark = faulty.control.mark();
        let hosts = faulty.mill.snapshot(0).hosts;
        faulty.breaks(&command);
        faulty.kill_host();
        faulty.mill.issue().await.unwrap_or_else(|error| panic!("{command}: {error}"));
        let function = command.split(' ').next().unwrap();
        assert!(faulty.control.books_since(mark).faults_of(function) > 0, "{command}");
        let made = faulty.pool().sign_checkpoint(text, Instant::now() + Duration::from_secs(3)).await;
        assert_eq!(made.unwrap_or_else(|error| panic!("{command}: {error}")).log_key, log_keys[0].1, "{command}");
        for proof in faulty.pool().canary().await {
            assert_eq!(proof.result, Ok(()), "{command}");
        }
        assert_eq!(faulty.mill.snapshot(0).hosts, hosts + 1, "{command}: in the same host");
        faulty.works();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn last_failure_of_an_ended_host_is_counted() {
    let faulty = Faulty::new("faulty-last", |_| {}).await;
    let errors = || faulty.pool().calls().remove(0).errors;
    // Failures of a signature, and of the start, which reach the daemon only this way: no keep-alive comes that soon.
    let mut expected = Vec::new();
    for (function, code, name) in [
        ("C_SignInit", 0x30, "CKR_DEVICE_ERROR"),
        ("C_Login", 0x5, "CKR_GENERAL_ERROR"),
        ("C_GetSessionInfo", 0x32, "CKR_DEVICE_REMOVED"),
        ("C_OpenSession", 0x30, "CKR_DEVICE_ERROR"),
    ] {
        let hosts = faulty.mill.snapshot(0).hosts;
        faulty.breaks(&format!("{function} return=0x{code:x} {}", once()));
        if function != "C_SignInit" {
            faulty.kill_host();
        }
        faulty.mill.issue().await.unwrap_or_else(|error| panic!("{function}: {error}"));
        expected.push((function, name, 1));
        expected.sort_unstable();
        assert_eq!(errors(), expected, "{function}");
        assert!(faulty.mill.snapshot(0).hosts > hosts, "{function}: its host ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_dropped_after_any_failed_signature() {
    let faulty = Faulty::new("faulty-dropped", |settings| {
        let HostEndpoint::Child { settings, .. } = &mut settings.tokens[0].endpoint else { panic!() };
        settings.sessions = 1;
    })
    .await;
    let session = async || {
        let recorded = faulty.mill.recorded().await;
        let signed = faulty.mill.sign(&recorded, istio_hsm_ca::signer::Priority::Normal, PATIENCE).await.unwrap();
        faulty.pool().verdict(&signed.source, true);
        signed.source.session
    };
    let mut before = session().await;
    assert_eq!(before, session().await, "a working session was closed");
    // One code of each class that does not end the host.
    for code in [0x6, 0x21, 0x31, 0x70, 0x90, 0x101] {
        for function in ["C_Sign", "C_SignInit"] {
            faulty.breaks(&format!("{function} return=0x{code:x} {}", once()));
            let after = session().await;
            assert_ne!(before, after, "0x{code:x} of {function}: the session that failed signs again");
            before = after;
        }
    }
    assert_eq!(faulty.mill.snapshot(0).hosts, 1, "the host was replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_back_signs_its_canary_and_then_one_request_until_that_is_verified() {
    let faulty = Faulty::new("faulty-one", |_| {}).await;
    let id = key::hex(&faulty.mill.issuer.public_key().key_id());
    let by_ca = |mark: u64| {
        let signed = faulty.control.books_since(mark).signed;
        // A new host also proves the key.
        let signed = signed.into_iter().filter(|(_, input)| *input != proof_hash());
        signed.map(|(key, _)| key == id).collect::<Vec<_>>()
    };
    let recorded = faulty.mill.recorded().await;
    let sign = || faulty.mill.sign(&recorded, istio_hsm_ca::signer::Priority::Normal, PATIENCE);
    // In the existing host: the request fails twice and is the one that is let through.
    let mark = faulty.control.mark();
    faulty.breaks(&format!("C_Sign return=0x31 {}", times(2)));
    let signed = sign().await.unwrap();
    assert_eq!(by_ca(mark), [false, true], "not the canary and then one of the CA");
    faulty.pool().verdict(&signed.source, true);
    faulty.mill.until("serving", is(0, Phase::Serving)).await;
    // In a new one.
    let mark = faulty.control.mark();
    faulty.kill_host();
    faulty.mill.until("half-open", is(0, Phase::HalfOpen)).await;
    assert_eq!(by_ca(mark), [false], "not only the canary signed");
    let asked: Vec<_> = (0..10).map(|_| Box::pin(sign())).collect();
    let (first, _, rest) = futures_util::future::select_all(asked).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(by_ca(mark), [false, true], "more than one request of many");
    faulty.pool().verdict(&first.unwrap().source, true);
    for answer in futures_util::future::join_all(rest).await {
        answer.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_a_token_drops_when_idle_cost_no_request() {
    const IDLE: Duration = Duration::from_millis(2500);
    // So many that they do not all get a turn with the keep-alive before they are idle.
    const SESSIONS: u32 = 8;
    let with = async |name: &str, keep_alive: Duration| {
        let faulty = Faulty::new(name, |settings| {
            settings.tokens[0].keep_alive = keep_alive;
            let HostEndpoint::Child { settings, .. } = &mut settings.tokens[0].endpoint else { panic!() };
            settings.sessions = SESSIONS;
        })
        .await;
        faulty.breaks(&format!("C_SignInit idle={}", IDLE.as_millis()));
        tokio::time::sleep(IDLE * 2).await;
        let mark = faulty.control.mark();
        for answer in futures_util::future::join_all((0..60).map(|_| faulty.mill.issue())).await {
            answer.unwrap();
        }
        let lost = faulty.control.books_since(mark).faults_of("C_SignInit");
        (faulty, lost)
    };
    let (faulty, lost) = with("faulty-idle", Duration::from_millis(800)).await;
    let snapshot = faulty.mill.snapshot(0);
    assert_eq!((lost, snapshot.faults, snapshot.hosts), (0, 0, 1), "{snapshot:?}");
    // Without it they are.
    let (_faulty, lost) = with("faulty-idle-lost", Duration::from_secs(60)).await;
    assert!(lost > 0, "the token closed no session");
}
