//! Two modules at the same time: one import, one CA, and each works without the other.

use std::{collections::BTreeMap, fs};

use istio_hsm_ca::token_pool::Phase;

use super::{
    adopted,
    modules::{Capability, Key, Module},
    place::{self, Place, plug_in},
};
use crate::harness::{Mill, PATIENCE, is, pool};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other modules: make test-tokens"]
async fn softhsm_and_kryoptic_share_the_load() {
    imported(Module::SoftHsm, Module::Kryoptic, Key::P256, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other modules: make test-tokens"]
async fn opencryptoki_and_kryoptic_share_the_load() {
    imported(Module::OpenCryptoki, Module::Kryoptic, Key::Rsa2048, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other modules: make test-tokens"]
async fn nss_and_p11_kit_share_the_load() {
    imported(Module::Nss, Module::P11Kit, Key::P256, &["--allow-plaintext-import"]).await;
}

/// The TPM gets the key by its own tool, the other token by `import`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other modules: make test-tokens"]
async fn tpm_and_softhsm_share_the_load() {
    let places = [Place::new(Module::Tpm2), Place::new(Module::SoftHsm)];
    let ca = plug_in(Key::P256);
    adopted::By::Import(&ca, "ecc").put(&places[0]);
    places[0].adopt(&["--allow-decrypt", "--allow-extractable"]).json();
    places[1].import(&ca, &[]).json();
    both(places).await;
}

/// One import of one key into both.
async fn imported(first: Module, second: Module, key: Key, flags: &[&str]) {
    let places = [Place::new(first), Place::new(second)];
    let ca = plug_in(key);
    ca.write(&places[0].path("ca"));
    let environment: BTreeMap<String, String> = places.iter().flat_map(Place::environment).collect();
    let (from, bundle) = (places[0].text("ca"), places[0].text("bundle"));
    let uris = [places[0].uri(), places[1].uri()];
    let words = ["--output", "json", "import", "--from", &from, "--bundle", &bundle];
    let tokens = ["--token", &uris[0], "--token", &uris[1]];
    let done = place::run(places[0].timeout(), &environment, &[&words[..], &tokens, flags].concat());
    let summary = done.json();
    let tokens = summary["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 2, "{summary}");
    for (token, module) in tokens.iter().zip([first, second]) {
        let how = if module.cannot(Capability::Unwrap(key)).is_none() { "wrapped" } else { "clear" };
        assert!(token["error"].is_null() && token["private_key"]["how"] == how, "{token}");
    }
    fs::create_dir(places[1].path("bundle")).unwrap();
    for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        fs::copy(places[0].path("bundle").join(file), places[1].path("bundle").join(file)).unwrap();
    }

    both(places).await;
}

/// Both sign, and each without the other.
async fn both(places: [Place; 2]) {
    let [first, second] = [places[0].module, places[1].module];
    let names = [0, 1].map(|at: usize| format!("{first:?}-{second:?}-{at}"));
    let mut settings = pool(vec![places[0].faulty_token(&names[0]), places[1].faulty_token(&names[1])]);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::proven(settings, &places[0].issuer()).await;
    for at in [0, 1] {
        until_serving(&mill, at).await;
    }
    for failing in [0, 1] {
        let other = 1 - failing;
        let before = [mill.snapshot(0).signed, mill.snapshot(1).signed];
        many(&mill).await;
        for at in [0, 1] {
            assert!(mill.snapshot(at).signed > before[at], "token {at} got no requests");
        }
        places[failing].breaks("* removed");
        many(&mill).await;
        mill.until("out of service", |health| !health.tokens[failing].phase.is_ready()).await;
        let before = [mill.snapshot(0).signed, mill.snapshot(1).signed];
        many(&mill).await;
        assert_eq!(mill.snapshot(failing).signed, before[failing], "a token out of service got requests");
        assert_eq!(mill.snapshot(other).signed, before[other] + MANY);
        places[failing].breaks("");
        until_serving(&mill, failing).await;
    }
    assert_eq!([mill.snapshot(0).wrong, mill.snapshot(1).wrong], [0, 0]);
    mill.end().await;
}

const MANY: u64 = 40;

async fn many(mill: &Mill) {
    for answer in futures_util::future::join_all((0..MANY).map(|_| mill.issue())).await {
        answer.unwrap();
    }
}

/// A half-open breaker closes with the first request that is let through.
async fn until_serving(mill: &Mill, at: usize) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is(at, Phase::Serving)(&mill.pool.health().borrow().clone()) {
        assert!(std::time::Instant::now() < deadline, "token {at}: {:?}", mill.pool.health().borrow());
        many(mill).await;
    }
}
