//! A wrong PIN is tried once, whichever process restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};
use testkit::wait::eventually;

use istio_hsm_ca::{
    signer::SignError,
    token_pool::{HostEndpoint, Phase, TokenSettings},
};
use nix::sys::signal::{Signal, kill};

use super::harness::{Mill, PATIENCE, Site, host_of, is, pool};
use testkit::{
    faulty::{Control, MODULE, once, through},
    softhsm::{PIN, module_path},
};

/// OpenSC's module that logs and forwards every call.
fn spy() -> PathBuf {
    let places =
        ["/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so", "/usr/lib64/pkcs11-spy.so"];
    let found = places.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("pkcs11-spy.so is missing: install the package opensc-pkcs11"))
}

/// The token with every call logged.
fn spied(site: &Site, name: &str, sessions: u32) -> (TokenSettings, PathBuf) {
    let calls = site.directory.path().join("calls");
    let mut settings = site.host_settings();
    settings.uri = settings.uri.replace(&module_path().display().to_string(), &spy().display().to_string());
    settings.sessions = sessions;
    let mut token = site.token_with(name, settings);
    if let HostEndpoint::Child { environment, .. } = &mut token.endpoint {
        environment.extend(BTreeMap::from([
            ("PKCS11SPY".to_owned(), module_path().display().to_string()),
            ("PKCS11SPY_OUTPUT".to_owned(), calls.display().to_string()),
        ]));
    }
    (token, calls)
}

fn logins(calls: &PathBuf) -> usize {
    fs::read_to_string(calls).unwrap_or_default().lines().filter(|line| line.ends_with(": C_Login")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_and_never_again_until_its_file_changes() {
    let site = Site::new();
    fs::write(site.pin(), "wrong-pin\n").unwrap();
    let (token, calls) = spied(&site, "pin", 1);
    for start in 0..2 {
        let mill = Mill::start(pool(vec![token.clone()]), &site.issuer);
        mill.until("refused", is(0, Phase::PinRefused)).await;
        eventually("three hosts", async || mill.snapshot(0).hosts >= 3).await;
        assert_eq!(logins(&calls), 1, "start {start}");
        // Requests do not wait for a PIN.
        let error = mill.issue().await.unwrap_err();
        assert!(matches!(&error, SignError::Unavailable(reason) if reason.contains("pin")), "{error}");
        assert!(!error.to_string().contains("wrong-pin"));
        mill.end().await;
    }
    assert!(site.marker().exists());

    let mill = Mill::start(pool(vec![token]), &site.issuer);
    mill.until("refused", is(0, Phase::PinRefused)).await;
    fs::write(site.pin(), PIN).unwrap();
    mill.until("up", |health| is(0, Phase::HalfOpen)(health)).await;
    for proof in mill.prove().await {
        assert_eq!(proof.result, Ok(()));
    }
    mill.issue().await.unwrap();
    assert_eq!(logins(&calls), 2);
    assert!(!site.marker().exists(), "the correct PIN did not clear the marker");
    mill.end().await;
}

/// The token with the module that fails on command and this number of sessions.
fn faulty(site: &Site, name: &str, sessions: u32) -> (TokenSettings, Control) {
    let control = Control::new(site.directory.path());
    let mut settings = site.host_settings();
    settings.uri = through(&MODULE, &settings.uri);
    settings.sessions = sessions;
    let mut token = site.token_with(name, settings);
    if let HostEndpoint::Child { environment, .. } = &mut token.endpoint {
        environment.extend(control.environment());
    }
    (token, control)
}

/// Waits until two more hosts have been started or connected to.
async fn two_more_hosts(mill: &Mill, before: u64) {
    eventually("two more hosts", async || mill.snapshot(0).hosts >= before + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_became_wrong_is_tried_once_by_all_sessions_together() {
    let site = Site::new();
    let (token, control) = faulty(&site, "pin-sessions", 4);
    let mut settings = pool(vec![token]);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::proven(settings, &site.issuer).await;
    mill.issue().await.unwrap();
    // All sessions are open and in use.
    for answer in futures_util::future::join_all((0..100).map(|_| mill.issue())).await {
        answer.unwrap();
    }
    fs::write(site.pin(), "wrong-pin").unwrap();
    let mark = control.mark();
    control.breaks(&format!("C_SignInit logout {}", once()));
    for answer in futures_util::future::join_all((0..100).map(|_| mill.issue())).await {
        if let Err(error) = answer {
            assert!(matches!(error, SignError::Unavailable(_)), "{error}");
        }
    }
    mill.until("refused", is(0, Phase::PinRefused)).await;
    two_more_hosts(&mill, mill.snapshot(0).hosts).await;
    assert_eq!(control.books_since(mark).logins.len(), 1);
    fs::write(site.pin(), PIN).unwrap();
    mill.until("up", |health| health.is_ready()).await;
    mill.issue().await.unwrap();
    assert_eq!(control.books_since(mark).logins.len(), 2);
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_try_is_not_spent_and_a_locked_pin_is_not_tried() {
    let site = Site::new();
    let (token, control) = faulty(&site, "pin-last", 1);
    let mut settings = pool(vec![token]);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::proven(settings, &site.issuer).await;
    mill.issue().await.unwrap();
    for (state, word) in [("final", "one PIN try left"), ("locked", "is locked")] {
        let mark = control.mark();
        control.breaks(&format!("C_GetTokenInfo pin={state}"));
        kill(host_of("pin-last"), Signal::SIGKILL).unwrap();
        let reported = |health: &_| is(0, Phase::PinRefused)(health) && health.reason().contains(word);
        mill.until(state, reported).await;
        // The stored result applies whatever the token reports next, as long as the file is unchanged.
        control.works();
        two_more_hosts(&mill, mill.snapshot(0).hosts).await;
        mill.until(state, reported).await;
        assert_eq!(control.books_since(mark).logins.len(), 0, "{state}");
        assert!(site.marker().exists());
        fs::write(site.pin(), PIN).unwrap();
        mill.until("up", |health| health.is_ready()).await;
        mill.issue().await.unwrap();
        assert_eq!(control.books_since(mark).logins.len(), 1, "{state}");
    }
    // A wrong attempt of another application does not matter.
    control.breaks("C_GetTokenInfo pin=low");
    kill(host_of("pin-last"), Signal::SIGKILL).unwrap();
    mill.issue().await.unwrap();
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_whose_refusal_could_not_be_remembered_is_not_tried() {
    let site = Site::new();
    fs::write(site.pin(), "wrong-pin").unwrap();
    let (mut token, calls) = spied(&site, "pin-forgetful", 1);
    let state = site.directory.path().join("state");
    if let HostEndpoint::Child { settings, .. } = &mut token.endpoint {
        settings.pin_marker = state.join("pin-refused");
    }
    let mill = Mill::start(pool(vec![token]), &site.issuer);
    let reported = |health: &_| is(0, Phase::Down)(health) && health.reason().contains("pin-refused cannot be used");
    mill.until("down", reported).await;
    two_more_hosts(&mill, mill.snapshot(0).hosts).await;
    assert_eq!(logins(&calls), 0);
    fs::create_dir(&state).unwrap();
    mill.until("refused", is(0, Phase::PinRefused)).await;
    two_more_hosts(&mill, mill.snapshot(0).hosts).await;
    assert_eq!(logins(&calls), 1);
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_file_that_vanishes_is_waited_for() {
    let site = Site::new();
    let mut settings = pool(vec![site.token("vanished")]);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::proven(settings, &site.issuer).await;
    mill.issue().await.unwrap();
    let away = site.directory.path().join("away");
    fs::rename(site.pin(), &away).unwrap();
    mill.issue().await.unwrap();
    kill(host_of("vanished"), Signal::SIGKILL).unwrap();
    let pin = site.pin().display().to_string();
    mill.until("down", |health| is(0, Phase::Down)(health) && health.reason().contains(&pin)).await;
    fs::rename(&away, site.pin()).unwrap();
    mill.issue().await.unwrap();
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keep_alive_exercises_every_session() {
    let site = Site::new();
    let (mut token, calls) = spied(&site, "keep-alive", 3);
    token.keep_alive = Duration::from_millis(200);
    let mill = Mill::proven(pool(vec![token]), &site.issuer).await;
    mill.issue().await.unwrap();
    let signing = || -> BTreeSet<String> {
        let text = fs::read_to_string(&calls).unwrap();
        let mut lines = text.lines();
        let mut sessions = BTreeSet::new();
        while let Some(line) = lines.next() {
            if line.ends_with(": C_SignInit") {
                sessions.extend(lines.find(|line| line.contains("hSession")).map(str::to_owned));
            }
        }
        sessions
    };
    eventually(std::fmt::from_fn(|f| write!(f, "{:?}", signing())), async || signing().len() >= 3).await;
    mill.end().await;
}
