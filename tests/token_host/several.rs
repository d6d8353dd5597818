//! Several tokens: distribution of requests, and that a token with another key gets none.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually;

use istio_hsm_ca::token_pool::{HostEndpoint, Phase, TokenSettings};
use nix::sys::signal::{Signal, kill};
use rcgen::KeyPair;

use super::harness::{Ca, LOG_ORIGIN, Mill, PATIENCE, Site, host_of, is, pool};
use testkit::faulty::{Control, MODULE, once, through};

/// The site's token with the module that fails on command.
fn faulty(site: &Site, name: &str, control: &Control) -> TokenSettings {
    let mut settings = site.host_settings();
    settings.uri = through(&MODULE, &settings.uri);
    let mut token = site.token_with(name, settings);
    if let HostEndpoint::Child { environment, .. } = &mut token.endpoint {
        environment.extend(BTreeMap::from(control.environment()));
    }
    token
}

/// Sends requests one after the other until each token has signed one.
async fn both_serve(mill: &Mill) {
    for at in [0, 1] {
        mill.until("half-open", is(at, Phase::HalfOpen)).await;
    }
    for at in [0, 1] {
        mill.issue().await.unwrap();
        mill.until("serving", is(at, Phase::Serving)).await;
    }
}

/// A healthy token, and one that fails on command, with this call timeout.
async fn behind(name: &str, call: Duration) -> (Mill, Control, [Site; 2]) {
    let sites = [Site::new(), Site::new()];
    let control = Control::new(sites[1].directory.path());
    let mut trial = faulty(&sites[1], name, &control);
    trial.call_timeout = call;
    if let HostEndpoint::Child { settings, .. } = &mut trial.endpoint {
        settings.call_timeout = call;
    }
    let settings = pool(vec![sites[0].token("before"), trial]);
    let mill = Mill::proven(settings, &sites[0].issuer).await;
    both_serve(&mill).await;
    (mill, control, sites)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_behind_a_serving_one_is_proven_by_the_first_request() {
    let (mill, control, _sites) = behind("proven", Duration::from_secs(10)).await;
    for _ in 0..3 {
        kill(host_of("proven"), Signal::SIGKILL).unwrap();
        mill.until("half-open", is(1, Phase::HalfOpen)).await;
        let before = mill.snapshot(1).signed;
        mill.issue().await.unwrap();
        mill.until("serving", is(1, Phase::Serving)).await;
        assert_eq!(mill.snapshot(1).signed, before + 1);
    }
    // Slower than a caller should wait: another token signs, and the late signature is sufficient proof.
    kill(host_of("proven"), Signal::SIGKILL).unwrap();
    mill.until("half-open", is(1, Phase::HalfOpen)).await;
    control.breaks(&format!("C_Sign delay=1500 {}", once()));
    let (before, began) = ([mill.snapshot(0).signed, mill.snapshot(1).signed], Instant::now());
    mill.issue().await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1400), "{:?}", began.elapsed());
    assert_eq!([mill.snapshot(0).signed, mill.snapshot(1).signed], [before[0] + 1, before[1]]);
    mill.until("serving", is(1, Phase::Serving)).await;
    assert_eq!(mill.snapshot(1).signed, before[1] + 1);
    // A request with little time left is not used as a probe.
    kill(host_of("proven"), Signal::SIGKILL).unwrap();
    mill.until("half-open", is(1, Phase::HalfOpen)).await;
    mill.issue_within(Duration::from_millis(400)).await.unwrap();
    assert!(is(1, Phase::HalfOpen)(&mill.pool.health().borrow().clone()));
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_fails_costs_its_caller_nothing() {
    let call = Duration::from_secs(2);
    let (mill, control, _sites) = behind("on-trial", call).await;
    for action in ["return=0x30", "return=0x6", "return=0x21", "abort", "hang"] {
        kill(host_of("on-trial"), Signal::SIGKILL).unwrap();
        mill.until("half-open", is(1, Phase::HalfOpen)).await;
        control.breaks(&format!("C_Sign {action}"));
        let (faults, before) = (control.mark(), mill.snapshot(0).signed);
        // Requests one after the other, for longer than the module may hang.
        let began = Instant::now();
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while began.elapsed() < call * 2 {
            let asked = Instant::now();
            mill.issue().await.unwrap_or_else(|error| panic!("{action}: {error}"));
            longest = longest.max(asked.elapsed());
            count += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(control.books_since(faults).faults_of("C_Sign") > 0, "{action}: the trial did not happen");
        assert_eq!(mill.snapshot(0).signed - before, count, "{action}");
        assert!(longest < Duration::from_millis(1500), "{action}: a request waited for {longest:?}");
        println!("{action}: {count} certificates, the longest took {} ms", longest.as_millis());
        control.works();
        // In service again automatically, with one request at a time.
        let deadline = Instant::now() + PATIENCE;
        while !is(1, Phase::Serving)(&mill.pool.health().borrow().clone()) {
            assert!(Instant::now() < deadline, "{action}: {:?}", mill.pool.health().borrow());
            mill.issue().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_with_the_least_work_is_first() {
    let (slow, fast) = (Site::new(), Site::new());
    let control = Control::new(slow.directory.path());
    let tokens = vec![faulty(&slow, "slow", &control), fast.token("fast")];
    let mill = Arc::new(Mill::proven(pool(tokens), &slow.issuer).await);
    both_serve(&mill).await;
    // Two calls per signature: a fifth of a second.
    control.breaks("C_Sign delay=100");
    let before = [mill.snapshot(0).signed, mill.snapshot(1).signed];
    let callers = (0..4).map(|_| {
        let mill = Arc::clone(&mill);
        tokio::spawn(async move {
            for _ in 0..50 {
                mill.issue().await.unwrap();
            }
        })
    });
    for caller in futures_util::future::join_all(callers).await {
        caller.unwrap();
    }
    let [slow, fast] = [mill.snapshot(0).signed - before[0], mill.snapshot(1).signed - before[1]];
    assert_eq!(slow + fast, 200);
    // With round-robin it would be a hundred each.
    assert!(slow > 0 && fast > 2 * slow, "slow {slow}, fast {fast}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reports_a_token_that_does_not_hold_the_key() {
    let other = Ca::import(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
    let site = Site { bundle: other.bundle(), ..Site::new() };
    let mill = Mill::start(pool(vec![site.token("no-key")]), &other.issuer);
    assert!(mill.prove().await.iter().all(|proof| proof.result.is_err()));
    let health = mill.until("half-open", is(0, Phase::HalfOpen)).await;
    assert!(health.reason().contains("no private key whose signature verifies with ca-cert.pem"), "{health:?}");
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_key_is_found_out_at_the_start_and_after_a_recovery() {
    let stranger = Ca::import(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()).site();
    let (good, swapped) = (Site::new(), Site::new());
    // At the start: the token has a key, but not this CA's. Its host is given this CA's certificate.
    let mut settings = stranger.host_settings();
    settings.bundle.clone_from(&good.bundle);
    let mut tokens = vec![good.token("good"), swapped.token("swapped"), stranger.token_with("stranger", settings)];
    for token in &mut tokens {
        token.keep_alive = Duration::from_millis(200);
    }
    let mut settings = pool(tokens);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::start(settings, &good.issuer);
    let proofs = mill.prove().await;
    let proven: Vec<_> = proofs.iter().map(|proof| (&*proof.token, proof.result.is_ok())).collect();
    assert_eq!(proven, [("good", true), ("swapped", true), ("stranger", false)], "{proofs:?}");
    for _ in 0..40 {
        mill.issue().await.unwrap();
    }
    assert_eq!(mill.snapshot(2).signed, 0);

    // After a recovery: the token's files are replaced by the other token's while its host is not running.
    let tokens = swapped.directory.path().join("tokens");
    fs::rename(&tokens, swapped.directory.path().join("away")).unwrap();
    let copy = stranger.directory.duplicate();
    fs::rename(copy.path().join("tokens"), &tokens).unwrap();
    let before = mill.snapshot(1).signed;
    kill(host_of("swapped"), Signal::SIGKILL).unwrap();
    mill.until("found out", |health| health.tokens[1].keys == 0).await;
    // Long enough for the new host to be asked for the key more than once.
    let new_host = |mill: &Mill| mill.snapshot(1).hosts >= 2 && mill.pool.health().borrow().tokens[1].phase.is_ready();
    eventually(std::fmt::from_fn(|f| write!(f, "{:?}", mill.pool.health().borrow())), async || new_host(&mill)).await;
    for _ in 0..40 {
        mill.issue().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(mill.pool.health().borrow().tokens[1].keys, 0);
    let (swapped_now, total_wrong) = (mill.snapshot(1), mill.snapshot(0).wrong + mill.snapshot(1).wrong);
    assert_eq!((swapped_now.signed, total_wrong), (before, 0), "the token with another key got a request");

    // The correct key is back, and the token returns automatically.
    fs::rename(&tokens, swapped.directory.path().join("stranger")).unwrap();
    fs::rename(swapped.directory.path().join("away"), &tokens).unwrap();
    kill(host_of("swapped"), Signal::SIGKILL).unwrap();
    mill.until("back", |health| health.tokens[1].keys == 1).await;
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_the_log_signs_checkpoints_and_no_certificate() {
    let sites = [Site::new(), Site::new()];
    let names = ["log-only-0", "log-only-1"];
    let mut tokens = vec![sites[0].token(names[0]), sites[1].token(names[1])];
    tokens[1].log_only = true;
    let mill = Mill::start(pool(tokens), &sites[0].issuer);
    let proofs = mill.prove().await;
    assert_eq!(proofs.iter().map(|proof| &*proof.token).collect::<Vec<_>>(), [names[0]], "the other is not asked");
    for _ in 0..10 {
        mill.issue().await.unwrap();
    }
    let text = format!("{LOG_ORIGIN}\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n");
    eventually("a checkpoint", async || {
        let made = mill.pool.sign_checkpoint(text.as_bytes(), Instant::now() + Duration::from_secs(2)).await;
        made.is_ok_and(|made| &*made.signed.source.token == names[1])
    })
    .await;
    assert_eq!(mill.pool.log_keys().len(), 1, "the CA's token signs no checkpoints");
    let health = mill.pool.health().borrow().clone();
    assert_eq!((health.log_key, health.tokens[1].keys), (Some(true), 0));
    // Without it certificates are issued all the same.
    nix::sys::signal::kill(host_of(names[1]), nix::sys::signal::Signal::SIGKILL).unwrap();
    mill.issue().await.unwrap();
    assert!(mill.pool.health().borrow().is_ready());
    mill.end().await;
}
