//! Operation without faults.

use std::time::{Duration, Instant};

use istio_hsm_ca::{
    signer::{Priority, SignError, Signer},
    token_pool::Phase,
};
use pki::PublicKey;
use rcgen::{KeyPair, RsaKeySize};

use super::harness::{Ca, LOG_ORIGIN, Mill, PATIENCE, Site, hosts_of, is, openssl_verifies, pool};

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_leaf_is_signed_and_verifies() {
    let site = Site::new();
    let mill = Mill::proven(pool(vec![site.token("happy")]), &site.issuer).await;
    // The breaker lets one request through until its verdict.
    let issued = mill.issue().await.unwrap();
    openssl_verifies(&issued, site.issuer.roots_pem());
    mill.until("serving", is(0, Phase::Serving)).await;

    let answers = futures_util::future::join_all((0..200).map(|_| mill.issue())).await;
    assert!(answers.iter().all(Result::is_ok));
    let snapshot = mill.snapshot(0);
    assert_eq!((snapshot.signed, snapshot.wrong, snapshot.faults, snapshot.hosts), (201, 0, 0, 1));
    for proof in mill.pool.canary().await {
        assert_eq!(proof.result, Ok(()));
    }
    assert_eq!(hosts_of(std::process::id(), "happy").len(), 1);
    mill.end().await;
    assert_eq!(hosts_of(std::process::id(), "happy"), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_key_signs_checkpoints_and_nothing_else() {
    let site = Site::new();
    let mill = Mill::proven(pool(vec![site.token("checkpoint")]), &site.issuer).await;
    let text = format!("{LOG_ORIGIN}\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n");
    let text = text.as_bytes();
    let deadline = || Instant::now() + PATIENCE;
    let made = mill.pool.sign_checkpoint(text, deadline()).await.unwrap();
    let key = PublicKey::from_spki_der(&made.log_key).unwrap();
    key.verify(key.signature_algorithm(), text, &made.signed.signature).unwrap();
    assert_eq!(mill.pool.log_keys(), [("checkpoint".into(), made.log_key)]);
    // A certificate is not a checkpoint, whatever the daemon calls it.
    let tbs = mill.recorded().await;
    let refused = mill.pool.sign_checkpoint(tbs.value().der(), deadline()).await;
    assert!(matches!(refused, Err(SignError::Refused(_))), "{refused:?}");
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_with_two_sessions() {
    let ca = Ca::import(&KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap());
    let site = ca.site();
    let mut settings = site.host_settings();
    settings.sessions = 2;
    let mill = Mill::proven(pool(vec![site.token_with("rsa", settings)]), &site.issuer).await;
    openssl_verifies(&mill.issue().await.unwrap(), site.issuer.roots_pem());
    let mut sessions = std::collections::BTreeSet::new();
    let recorded = mill.recorded().await;
    let signatures =
        futures_util::future::join_all((0..100).map(|_| mill.sign(&recorded, Priority::Normal, PATIENCE))).await;
    for signed in signatures {
        sessions.insert(signed.unwrap().source.session);
    }
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_request_never_reaches_the_token() {
    let site = Site::new();
    let mill = Mill::proven(pool(vec![site.token("expired")]), &site.issuer).await;
    mill.issue().await.unwrap();
    let recorded = mill.recorded().await;
    let answer = mill.sign(&recorded, Priority::High, Duration::ZERO).await;
    assert_eq!(answer.unwrap_err(), SignError::Deadline);
    assert_eq!(mill.snapshot(0).signed, 1);
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_signature_replaces_the_session_and_repeated_ones_the_host() {
    let site = Site::new();
    let mill = Mill::proven(pool(vec![site.token("wrong")]), &site.issuer).await;
    mill.issue().await.unwrap();
    let recorded = mill.recorded().await;
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let signed = mill.sign(&recorded, Priority::Normal, PATIENCE).await.unwrap();
        mill.pool.verdict(&signed.source, false);
        sessions.push(signed.source.session);
    }
    let last = mill.sign(&recorded, Priority::Normal, PATIENCE).await.unwrap();
    assert!(sessions[0] != sessions[1] && !sessions.contains(&last.source.session), "{sessions:?}");
    mill.pool.verdict(&last.source, false);
    mill.issue().await.unwrap();
    let snapshot = mill.snapshot(0);
    assert_eq!((snapshot.wrong, snapshot.outages, snapshot.hosts), (3, 1, 2), "{snapshot:?}");
    mill.end().await;
}
