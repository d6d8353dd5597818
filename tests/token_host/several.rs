//! Several tokens: who gets the work, and that a token that holds another key gets none.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use istio_hsm_ca::token::client::{Link, Phase, TokenSettings};
use nix::sys::signal::{Signal, kill};
use rcgen::KeyPair;

use super::{
    common::faulty::{Control, MODULE, through},
    harness::{Ca, Mill, PATIENCE, Site, host_of, is, pool},
};

/// The site's token behind the module that breaks on command.
fn faulty(site: &Site, name: &str, control: &Control) -> TokenSettings {
    let mut settings = site.host_settings();
    settings.uri = through(&MODULE, &settings.uri);
    let mut token = site.token_with(name, settings);
    if let Link::Child { environment, .. } = &mut token.link {
        environment.extend(BTreeMap::from(control.environment()));
    }
    token
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_with_the_least_work_is_first() {
    let (slow, fast) = (Site::new(), Site::new());
    let control = Control::new(slow.directory.path());
    let tokens = vec![faulty(&slow, "slow", &control), fast.token("fast")];
    let mill = Arc::new(Mill::proven(pool(tokens), &slow.issuer).await);
    // One after the other they would all go to the first.
    let deadline = std::time::Instant::now() + PATIENCE;
    while ![0, 1].iter().all(|at| is(*at, Phase::Serving)(&mill.pool.health().borrow().clone())) {
        assert!(std::time::Instant::now() < deadline, "{:?}", mill.pool.health().borrow());
        let (one, other) = tokio::join!(mill.issue(), mill.issue());
        one.and(other).unwrap();
    }
    // Two calls a signature: a fifth of a second each.
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
    // By turns it would be a hundred each.
    assert!(slow > 0 && fast > 2 * slow, "slow {slow}, fast {fast}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_key_is_found_out_at_the_start_and_after_a_recovery() {
    let stranger = Ca::import(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()).site();
    let (good, swapped) = (Site::new(), Site::new());
    // At the start: the token has a key, and it is not this CA's. Its host is told of this CA's certificate.
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

    // After a recovery: the token's files are exchanged for the stranger's while its host is away.
    let tokens = swapped.directory.path().join("tokens");
    fs::rename(&tokens, swapped.directory.path().join("away")).unwrap();
    let copy = stranger.directory.duplicate();
    fs::rename(copy.path().join("tokens"), &tokens).unwrap();
    let before = mill.snapshot(1).signed;
    kill(host_of("swapped"), Signal::SIGKILL).unwrap();
    mill.until("found out", |health| health.tokens[1].keys == 0).await;
    // Long enough for the new host to be asked for the key more than once.
    let new_host = |mill: &Mill| mill.snapshot(1).hosts >= 2 && mill.pool.health().borrow().tokens[1].phase.is_ready();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !new_host(&mill) {
        assert!(std::time::Instant::now() < deadline, "{:?}", mill.pool.health().borrow());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..40 {
        mill.issue().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(mill.pool.health().borrow().tokens[1].keys, 0);
    let (swapped_now, total_wrong) = (mill.snapshot(1), mill.snapshot(0).wrong + mill.snapshot(1).wrong);
    assert_eq!((swapped_now.signed, total_wrong), (before, 0), "nothing of another key was even asked for");

    // The right key is back: the token is, too, by itself.
    fs::rename(&tokens, swapped.directory.path().join("stranger")).unwrap();
    fs::rename(swapped.directory.path().join("away"), &tokens).unwrap();
    kill(host_of("swapped"), Signal::SIGKILL).unwrap();
    mill.until("back", |health| health.tokens[1].keys == 1).await;
    mill.end().await;
}
