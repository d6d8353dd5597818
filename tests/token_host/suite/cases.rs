//! The cases. Each asks the module what the predicate says, either way.

use std::{
    fs,
    time::{Duration, Instant},
};

use istio_hsm_ca::token_pool::{Phase, Settings};
use nix::sys::signal::{Signal, kill};
use pki::PublicKey;
use serde_json::Value;

use testkit::{faulty, softhsm::PIN};

use super::{
    modules::{Capability, Key, Module},
    place::{Place, plug_in},
};
use crate::harness::{Mill, PATIENCE, host_of, is, openssl_verifies, pool};

/// Holds what a module did against what is said of it.
fn agrees(module: Module, what: Capability, can: bool, evidence: &str) {
    match (module.cannot(what), can) {
        (None, true) => {}
        (Some(reason), false) => println!("{module:?} cannot {what:?}: {reason}"),
        (None, false) => panic!("{module:?} is said to do {what:?} and does not: {evidence}"),
        (Some(reason), true) => panic!("{module:?} does {what:?} now; this is out of date: {reason}"),
    }
}

/// A software key goes in, wrapped where the module can, and signs.
pub async fn imported(module: Module, key: Key) {
    let place = Place::new(module);
    let ca = plug_in(key);
    let mut done = place.import(&ca, &[]);
    agrees(module, Capability::Unwrap(key), done.good, &done.err);
    if !done.good {
        done = place.import(&ca, &["--allow-plaintext-import"]);
        agrees(module, Capability::Take(key), done.good, &done.err);
        if !done.good {
            assert_eq!(place.keys(), 0, "what was begun is undone: {done:?}");
            return;
        }
    }
    let wrapped = module.cannot(Capability::Unwrap(key)).is_none();
    let receipt = receipt(&done.json());
    let way = &receipt["private_key"];
    assert_eq!(way["how"], if wrapped { "wrapped" } else { "clear" }, "{receipt}");
    if wrapped {
        assert_eq!(way["level"], "aes_kwp_under_rsa_oaep", "the strictest level, as ever: {way}");
        agrees(module, Capability::OaepSha256, way["oaep_hash"] == "SHA-256", &way.to_string());
        agrees(module, Capability::KwpNumber, way["key_wrap"] == "CKM_AES_KEY_WRAP_KWP (0x210b)", &way.to_string());
    }
    held(module, &receipt, false);
    let attempt = &receipt["wrap_attempt"];
    assert_ne!(attempt["outcome"], "accepted", "{receipt}");
    agrees(module, Capability::WrapOut(key), attempt["control"]["twin"] == "wrapped", &attempt.to_string());

    let before = contents(&place.inspect());
    let again = self::receipt(&place.import(&ca, &[]).json());
    assert_eq!((&again["private_key"]["how"], &again["certificate"]), (&"already_there".into(), &"unchanged".into()));
    assert_eq!(contents(&place.inspect()), before, "a second import changes nothing");
    seen_and_serving(&place, &format!("{module:?}-{key:?}-imported")).await;
}

/// A key made in the token, and its self-signed root.
pub async fn generated(module: Module, key: Key) {
    let place = Place::new(module);
    let done = place.generate(key);
    agrees(module, Capability::Generate(key), done.good, &done.err);
    if done.good {
        held(module, &done.json(), true);
        seen_and_serving(&place, &format!("{module:?}-{key:?}-generated")).await;
    } else {
        assert_eq!(place.keys(), 0, "what was begun is undone: {done:?}");
    }
}

/// A key that the vendor's own tool has made: no canary key and no log key beside it.
pub async fn made_by_the_vendor(module: Module) {
    seen_and_serving(&Place::filled(module), &format!("{module:?}-vendor")).await;
}

/// The receipt that an import has written.
fn receipt(summary: &Value) -> Value {
    let [token] = summary["tokens"].as_array().unwrap().as_slice() else { panic!("{summary}") };
    let path = token["receipt"].as_str().unwrap_or_else(|| panic!("{summary}"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What a receipt says of the key's attributes, as they were read back.
fn held(module: Module, receipt: &Value, made_there: bool) {
    let attributes = &receipt["attributes"];
    for (name, wanted) in
        [("token", true), ("private", true), ("sensitive", true), ("sign", true), ("extractable", false)]
    {
        assert_eq!(attributes[name], wanted, "{name}: {receipt}");
    }
    for name in ["decrypt", "unwrap", "derive", "sign_recover", "always_authenticate"] {
        assert_ne!(attributes[name], true, "{name}: {receipt}");
    }
    assert_eq!(attributes["local"] == true, made_there, "{receipt}");
    agrees(module, Capability::Unmodifiable, attributes["modifiable"] == false, &attributes.to_string());
    if !made_there {
        let restricted = receipt["restricted_to_mechanism"] == true;
        agrees(module, Capability::Restrict, restricted, &receipt["restricted_to_mechanism"].to_string());
        assert_eq!(receipt["read_attempt"], "CKR_ATTRIBUTE_SENSITIVE", "{receipt}");
    }
    let keys = &receipt["service_keys"];
    assert_eq!(keys["canary"]["state"], "made", "{receipt}");
    agrees(module, Capability::Generate(Key::Ed25519), keys["log"]["state"] == "made", &keys["log"].to_string());
}

fn contents(view: &Value) -> Value {
    serde_json::json!([view["keys"], view["certificates"]])
}

/// `inspect` sees the key, `check` has nothing against it, and a host signs with it, also one that follows a killed one.
async fn seen_and_serving(place: &Place, name: &str) {
    let view = place.inspect();
    assert_eq!(view["bundle"]["key_in_token"], true, "{view}");
    let keys = view["keys"].as_array().unwrap();
    let paired: Vec<_> = keys.iter().filter(|key| key["pairs_with_bundle"] == true).collect();
    assert_eq!(paired.len(), 1, "{view}");
    assert_eq!(paired[0]["attributes"]["extractable"], false, "{view}");
    let errors: Vec<_> = place.check().into_iter().filter(|finding| finding["level"] == "error").collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let issuer = place.issuer();
    let mill = Mill::proven(pool(vec![place.token(name)]), &issuer).await;
    openssl_verifies(&mill.issue().await.unwrap(), issuer.roots_pem());
    let answers = futures_util::future::join_all((0..20).map(|_| mill.issue())).await;
    assert!(answers.iter().all(Result::is_ok));
    for proof in mill.pool.canary().await {
        let evidence = format!("{proof:?}");
        agrees(place.module, Capability::Generate(Key::P256), proof.result.is_ok(), &evidence);
    }
    let text = b"suite.test/log\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
    let checkpoint = mill.pool.sign_checkpoint(text, Instant::now() + PATIENCE).await;
    let evidence = format!("{checkpoint:?}");
    agrees(place.module, Capability::Generate(Key::Ed25519), checkpoint.is_ok(), &evidence);
    if let Ok(made) = checkpoint {
        let key = PublicKey::from_spki_der(&made.log_key).unwrap();
        key.verify(key.signature_algorithm(), text, &made.signed.signature).unwrap();
    }
    kill(host_of(name), Signal::SIGKILL).unwrap();
    mill.issue().await.unwrap();
    let snapshot = mill.snapshot(0);
    assert_eq!((snapshot.hosts, snapshot.wrong), (2, 0), "{snapshot:?}");
    mill.end().await;
}

fn patient(place: &Place, name: &str) -> Settings {
    let mut settings = pool(vec![place.faulty_token(name)]);
    settings.recovery_wait = PATIENCE;
    settings
}

/// A lost session, a lost login, a token that goes and comes back.
pub async fn recovers(module: Module) {
    let place = Place::filled(module);
    let name = format!("{module:?}-recovers");
    let mill = Mill::proven(patient(&place, &name), &place.issuer()).await;
    mill.issue().await.unwrap();
    let faults = [
        ("a lost session", format!("C_SignInit return=0xb3 {}", faulty::once())),
        ("a lost login", format!("C_SignInit logout {}", faulty::once())),
        ("an unknown key handle", format!("C_SignInit return=0x60 {}", faulty::once())),
        ("a token that is away", format!("* removed {}", faulty::until(Duration::from_secs(1)))),
        ("a module that crashes", format!("C_Sign segv {}", faulty::once())),
    ];
    for (what, commands) in faults {
        place.breaks(&commands);
        if let Err(error) = mill.issue().await {
            panic!("{module:?}: after {what}: {error}");
        }
    }
    place.breaks("");
    mill.until("serving again", is(0, Phase::Serving)).await;
    assert_eq!(mill.snapshot(0).wrong, 0);
    mill.end().await;
}

/// A wrong PIN is tried once, by whatever host; the right one in its file is taken by itself.
#[tokio::main]
pub async fn wrong_pin(module: Module) {
    let place = Place::filled(module);
    place.write_pin("wrong-and-long-enough");
    let name = format!("{module:?}-pin");
    let mill = Mill::start(patient(&place, &name), &place.issuer());
    mill.until("refused", is(0, Phase::PinRefused)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let books = fs::read_to_string(place.path("faults.calls")).unwrap();
    assert_eq!(books.lines().filter(|line| line.starts_with("login ")).count(), 1, "{books}");
    place.write_pin(PIN);
    mill.prove().await;
    // The key is found before the canary has signed; until then requests are rejected.
    mill.until("half-open", is(0, Phase::HalfOpen)).await;
    mill.issue().await.unwrap();
    mill.end().await;
}
