//! The cases. Each one verifies the predicates of the module, whether true or false.

use std::{
    fs,
    time::{Duration, Instant},
};

use istio_hsm_ca::token_pool::{Phase, Settings};
use nix::sys::signal::{Signal, kill};
use pki::PublicKey;
use serde_json::Value;

use testkit::{faulty, random};
use token::error::{Recovery, TABLE};

use super::{
    modules::{Capability, Key, Module, PIN},
    place::{Place, plug_in},
    profiles::CLOUDHSM_KWP,
};
use crate::harness::{Mill, PATIENCE, host_of, is, openssl_verifies, pool};

/// Compares what a module did with its predicate.
fn agrees(module: Module, what: Capability, can: bool, evidence: &str) {
    match (module.cannot(what), can) {
        (None, true) => {}
        (Some(reason), false) => println!("{module:?} cannot {what:?}: {reason}"),
        (None, false) => panic!("{module:?} should do {what:?} but does not: {evidence}"),
        (Some(reason), true) => panic!("{module:?} now does {what:?}; outdated: {reason}"),
    }
}

/// A software key is imported, wrapped if the module can unwrap, and signs.
pub async fn imported(module: Module, key: Key) {
    let place = Place::new(module);
    let ca = plug_in(key);
    let flags = module.import_flags(key);
    let weaknesses: Vec<_> = flags.iter().filter(|flag| flag.starts_with("--allow-")).collect();
    if !weaknesses.is_empty() {
        let refused = place.import(&ca, &[]);
        assert!(!refused.good && weaknesses.iter().all(|flag| refused.out.contains(**flag)), "{refused:?}");
    }
    let mut done = place.import(&ca, flags);
    agrees(module, Capability::Unwrap(key), done.good, &done.err);
    if !done.good {
        // The flag that weakens the import is suggested only if it helps, or if only the import itself shows that.
        if !done.err.contains("--allow-plaintext-import tries to") {
            let suggested = done.err.contains("--allow-plaintext-import");
            agrees(module, Capability::Take(key), suggested, &done.err);
        }
        done = place.import(&ca, &[flags, &["--allow-plaintext-import"]].concat());
        agrees(module, Capability::Take(key), done.good, &done.err);
        if !done.good {
            assert_eq!(place.keys(), 0, "an incomplete key is left: {done:?}");
            if module == Module::Tpm2 && key != Key::Ed25519 {
                let said = format!("{}{}", done.out, done.err);
                assert!(said.contains("`tpm2_ptool import`") && said.contains("adopt"), "{done:?}");
            }
            return;
        }
    }
    let wrapped = module.cannot(Capability::Unwrap(key)).is_none();
    let receipt = receipt(&done.json());
    let way = &receipt["private_key"];
    assert_eq!(way["how"], if wrapped { "wrapped" } else { "clear" }, "{receipt}");
    if wrapped {
        let level = module.level(key);
        assert_eq!(way["level"], level, "{way}");
        if level != "aes_key_generated_in_token" {
            agrees(module, Capability::OaepSha256, way["oaep_hash"] == "SHA-256", &way.to_string());
        }
        let key_wrap = &way["key_wrap"];
        match level {
            "aes_kwp_under_rsa_oaep" => {
                let standard = key_wrap == "CKM_AES_KEY_WRAP_KWP (0x210b)";
                agrees(module, Capability::KwpNumber, standard, &way.to_string());
            }
            "aes_cbc_pad_under_rsa_oaep" => assert_eq!(key_wrap, "CKM_AES_CBC_PAD (0x1085)"),
            "rsa_aes_key_wrap" => assert_eq!(key_wrap, "CKM_RSA_AES_KEY_WRAP (0x1054)"),
            "rsa_oaep" => assert_eq!(key_wrap, "CKM_RSA_PKCS_OAEP (0x9)"),
            "vendor_kwp_under_rsa_oaep" => {
                assert_eq!(key_wrap, &format!("the vendor's mechanism {CLOUDHSM_KWP}"));
            }
            _ => {}
        }
    }
    held(module, key, &receipt, false);
    let attempt = &receipt["wrap_attempt"];
    assert_ne!(attempt["outcome"], "accepted", "{receipt}");
    agrees(module, Capability::WrapOut(key), attempt["control"]["twin"] == "wrapped", &attempt.to_string());

    let before = contents(&place.inspect());
    let again = self::receipt(&place.import(&ca, flags).json());
    assert_eq!(again["private_key"]["how"], "already_there", "{again}");
    let is_stored = again["certificate"] == "unchanged";
    agrees(module, Capability::StoreCertificate, is_stored, &again["certificate"].to_string());
    assert_eq!(contents(&place.inspect()), before, "a second import changed the token");
    let renewed = self::receipt(&place.import(&ca.renewed(), flags).json());
    assert_eq!(renewed["private_key"]["how"], "already_there", "{renewed}");
    let is_replaced = renewed["certificate"] == "replaced";
    agrees(module, Capability::StoreCertificate, is_replaced, &renewed["certificate"].to_string());
    seen_and_serving(&place, &format!("{module:?}-{key:?}-imported"), false).await;
}

/// A key generated in the token, and its self-signed root.
pub async fn generated(module: Module, key: Key) {
    let place = Place::new(module);
    let done = place.generate(key);
    agrees(module, Capability::Generate(key), done.good, &done.err);
    if done.good {
        held(module, key, &done.json(), true);
        seen_and_serving(&place, &format!("{module:?}-{key:?}-generated"), false).await;
    } else {
        assert_eq!(place.keys(), 0, "an incomplete key is left: {done:?}");
    }
}

/// The receipt written by an import.
fn receipt(summary: &Value) -> Value {
    let [token] = summary["tokens"].as_array().unwrap().as_slice() else { panic!("{summary}") };
    let path = token["receipt"].as_str().unwrap_or_else(|| panic!("{summary}"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The key's attributes in a receipt, as read back.
fn held(module: Module, key: Key, receipt: &Value, made_there: bool) {
    let attributes = &receipt["attributes"];
    for (name, wanted) in
        [("token", true), ("private", true), ("sensitive", true), ("sign", true), ("extractable", false)]
    {
        assert_eq!(attributes[name], wanted, "{name}: {receipt}");
    }
    let recovers = attributes["sign_recover"] == true;
    let surplus = ["decrypt", "unwrap", "derive"].iter().any(|name| attributes[name] == true);
    if made_there {
        assert!(!surplus, "{receipt}");
        agrees(module, Capability::RefuseRecovery, !recovers, &attributes.to_string());
        agrees(module, Capability::Local, attributes["local"] == true, &attributes.to_string());
    } else {
        agrees(module, Capability::SignOnly(key), !surplus, &attributes.to_string());
        let unable = [Capability::SignOnly(key), Capability::RefuseRecovery].map(|what| module.cannot(what).is_some());
        assert_eq!(recovers, unable.contains(&true), "{receipt}");
        assert_ne!(attributes["local"], true, "{receipt}");
    }
    assert_ne!(attributes["always_authenticate"], true, "{receipt}");
    agrees(module, Capability::Unmodifiable, attributes["modifiable"] == false, &attributes.to_string());
    if !made_there {
        let restricted = receipt["restricted_to_mechanism"] == true;
        agrees(module, Capability::Restrict, restricted, &receipt["restricted_to_mechanism"].to_string());
        assert_eq!(receipt["read_attempt"], "CKR_ATTRIBUTE_SENSITIVE", "{receipt}");
    }
    helper_keys(module, receipt);
}

/// The helper keys in a receipt.
pub fn helper_keys(module: Module, receipt: &Value) {
    let keys = &receipt["service_keys"];
    for (name, key) in [("canary", Key::P256), ("log", Key::Ed25519)] {
        agrees(module, Capability::HelperKey(key), keys[name]["state"] == "made", &keys[name].to_string());
    }
}

fn contents(view: &Value) -> Value {
    serde_json::json!([view["keys"], view["certificates"]])
}

/// `inspect` finds the key, `check` reports no error, and a host signs with it, also after a host was killed.
pub async fn seen_and_serving(place: &Place, name: &str, extractable: bool) {
    let view = place.inspect();
    assert_eq!(view["bundle"]["key_in_token"], true, "{view}");
    let keys = view["keys"].as_array().unwrap();
    let paired: Vec<_> = keys.iter().filter(|key| key["pairs_with_bundle"] == true).collect();
    assert_eq!(paired.len(), 1, "{view}");
    assert_eq!(paired[0]["attributes"]["extractable"], extractable, "{view}");
    let errors: Vec<_> = place.check().into_iter().filter(|finding| finding["level"] == "error").collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let issuer = place.issuer();
    let mill = Mill::proven(pool(vec![place.token(name)]), &issuer).await;
    let chain = fs::read_to_string(place.path("bundle/cert-chain.pem")).unwrap();
    openssl_verifies(&mill.issue().await.unwrap(), &format!("{}{chain}", issuer.roots_pem()));
    let answers = futures_util::future::join_all((0..20).map(|_| mill.issue())).await;
    assert!(answers.iter().all(Result::is_ok));
    for proof in mill.pool.canary().await {
        let evidence = format!("{proof:?}");
        agrees(place.module, Capability::HelperKey(Key::P256), proof.result.is_ok(), &evidence);
    }
    let text = b"suite.test/log\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
    let checkpoint = mill.pool.sign_checkpoint(text, Instant::now() + PATIENCE).await;
    let evidence = format!("{checkpoint:?}");
    agrees(place.module, Capability::HelperKey(Key::Ed25519), checkpoint.is_ok(), &evidence);
    if let Ok(made) = checkpoint {
        let key = PublicKey::from_spki_der(&made.log_key).unwrap();
        key.verify(key.signature_algorithm(), text, &made.signed.signature).unwrap();
    }
    kill(host_of(name), Signal::SIGKILL).unwrap();
    mill.issue().await.unwrap();
    let snapshot = mill.snapshot(0);
    let hosts = 2 + place.module.hanging_hosts();
    assert_eq!((snapshot.hosts, snapshot.wrong), (hosts, 0), "{snapshot:?}");
    mill.end().await;
}

fn patient(place: &Place, name: &str) -> Settings {
    let mut settings = pool(vec![place.faulty_token(name)]);
    settings.recovery_wait = PATIENCE;
    settings
}

/// A lost session, a lost login, a token that is unavailable and comes back.
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

/// Return codes that are temporary or end with a session, a login or a host, of which a sample is returned once; no request
/// notices. `FAULT_SEED` repeats a sample.
pub async fn sampled_faults(module: Module) {
    let mut seed = random::fault_seed();
    println!("FAULT_SEED={seed}");
    let place = Place::filled(module);
    let name = format!("{module:?}-sampled");
    let mill = Mill::proven(patient(&place, &name), &place.issuer()).await;
    for function in ["C_SignInit", "C_Sign"] {
        for recovery in [Recovery::Retry, Recovery::NewSession, Recovery::Relogin, Recovery::NewProcess] {
            let codes: Vec<_> = TABLE.iter().filter(|entry| entry.recovery == recovery).collect();
            let entry = random::choose(&codes, &mut seed);
            place.breaks(&format!("{function} return={:#x} {}", entry.code, faulty::once()));
            if let Err(error) = mill.issue().await {
                panic!("{module:?}: after {} at {function}: {error}", entry.name);
            }
        }
    }
    place.breaks("");
    mill.until("serving again", is(0, Phase::Serving)).await;
    assert_eq!(mill.snapshot(0).wrong, 0);
    mill.end().await;
}

/// A wrong PIN is tried once, by any host; the correct one in its file is used automatically. Without a PIN, there is no
/// login.
#[tokio::main]
pub async fn wrong_pin(module: Module) {
    let place = Place::filled(module);
    if module.has_no_login() {
        let mill = Mill::proven(patient(&place, &format!("{module:?}-pin")), &place.issuer()).await;
        mill.issue().await.unwrap();
        mill.end().await;
        let books = fs::read_to_string(place.path("faults.calls")).unwrap();
        assert!(!books.lines().any(|line| line.starts_with("login ")), "{books}");
        return;
    }
    let before = fs::metadata(place.path("faults.calls")).map_or(0, |books| usize::try_from(books.len()).unwrap());
    place.write_pin("wrongpin");
    let name = format!("{module:?}-pin");
    let mill = Mill::start(patient(&place, &name), &place.issuer());
    mill.until("refused", is(0, Phase::PinRefused)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let books = fs::read_to_string(place.path("faults.calls")).unwrap().split_off(before);
    assert_eq!(books.lines().filter(|line| line.starts_with("login ")).count(), 1, "{books}");
    place.write_pin(PIN);
    mill.prove().await;
    // The key is found before the canary has signed; until then requests are rejected.
    mill.until("half-open", is(0, Phase::HalfOpen)).await;
    mill.issue().await.unwrap();
    mill.end().await;
}
