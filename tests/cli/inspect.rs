//! `inspect`: tokens, keys, certificates.

use super::harness::Machine;
use testkit::{
    faulty::{Control, MODULE, through},
    softhsm::module_path,
};

#[test]
fn a_module_lists_its_tokens_without_a_login() {
    let machine = Machine::new();
    machine.directory.init_token("second");
    let module = ["--module".to_owned(), module_path().display().to_string()];
    let text = machine.run("inspect", &module);
    assert_eq!(text.status, 0, "{text:?}");
    assert!(
        text.out.contains("2 tokens") && text.out.contains("second") && text.out.contains("PIN in order"),
        "{text:?}"
    );
    let json = machine.run("inspect --output json", &module);
    let listing: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let mut labels: Vec<_> = listing["tokens"].as_array().unwrap().iter().map(|token| &token["label"]).collect();
    labels.sort_by_key(|label| label.to_string());
    assert_eq!(labels, ["ca", "second"]);
    // A URI must match exactly one token.
    let uri = ["--token".to_owned(), format!("pkcs11:?module-path={}", module_path().display())];
    machine.run("inspect", &uri).usage(&["selects no token"]);
}

#[test]
fn keys_and_certificates_are_shown() {
    let machine = Machine::new();
    let root = "--self-signed --organization Mesh --bundle $/bundle --log $/log --days 100";
    machine.done(&format!("generate --algorithm p256 {root}"));
    machine.done("generate --algorithm p384 --label other --csr $/other.csr --subject CN=other");
    let view = machine.json("inspect --bundle $/bundle");
    let keys = view["keys"].as_array().unwrap();
    let key = |label: &str| keys.iter().find(|key| key["label"] == label).unwrap_or_else(|| panic!("{label}: {view}"));
    assert_eq!(key("istio-ca")["pairs_with_bundle"], true);
    assert_eq!(key("istio-ca")["kind"], "P-256");
    assert_eq!(key("istio-ca")["attributes"]["extractable"], false);
    assert_eq!(key("other")["pairs_with_bundle"], false);
    assert_eq!(key("istio-hsm-ca canary key")["pairs_with_bundle"], false);
    assert_eq!(view["certificates"][0]["content"]["key_present"], true);
    assert_eq!(view["logged_in"], true);

    let text = machine.done("inspect --bundle $/bundle").out;
    for expected in ["pairs with ca-cert.pem", "!extractable", "O=Mesh", "99 days left", "its key is in the token"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Without a PIN private objects are hidden, and nothing is claimed about them.
    let public = machine.run("inspect --bundle $/bundle", &["--token".into(), machine.uri("ca")]);
    assert_eq!(public.status, 0, "{public:?}");
    assert!(public.out.contains("hidden without a login") && !public.out.contains("pairs"), "{public:?}");
    assert!(public.err.contains("--pin-file"), "{public:?}");
}

#[test]
fn a_bundle_of_another_key_does_not_pair() {
    let (one, other) = (Machine::new(), Machine::new());
    for machine in [&one, &other] {
        machine.done("generate --algorithm p256 --self-signed --organization o --bundle $/bundle --log $/log");
    }
    let bundle = other.path("bundle");
    let view = one.json(&format!("inspect --bundle {}", bundle.display()));
    assert_eq!(view["bundle"]["key_in_token"], false);
    assert!(view["keys"].as_array().unwrap().iter().all(|key| key["pairs_with_bundle"] == false), "{view}");
}

#[test]
fn each_obstacle_to_inspect_is_reported() {
    let machine = Machine::new();
    machine.refused("inspect --bundle $/nowhere", &["the bundle is refused", "nowhere: is not a directory"]);
    machine.write("half/cert-chain.pem", "");
    machine.refused("inspect --bundle $/half", &["the bundle is refused", "ca-cert.pem: is missing", "root-cert.pem"]);
    machine.run("inspect", &[]).usage(&["--token"]);
    machine.run("inspect --module /nowhere.so", &[]).refused(&["/nowhere.so"]);
    machine.run("inspect --module /nowhere.so --bundle $/b", &[]).usage(&["--bundle"]);
    machine.run("inspect", &["--token".into(), machine.uri("nowhere")]).refused(&["no token in", "`ca`"]);
    let wrong = machine.pin_file("wrong", "999999");
    let token = ["--token".into(), machine.uri("ca"), "--pin-file".into(), wrong.display().to_string()];
    machine.run("inspect", &token).refused(&["refuses the PIN"]);
}

#[test]
fn malformed_token_information_costs_that_field_only() {
    let machine = Machine::new();
    Control::new(machine.directory.path()).breaks("C_GetTokenInfo malformed");
    let module = ["--module".to_owned(), MODULE.display().to_string()];
    let json = machine.run("inspect --output json", &module);
    let listing: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&listing["tokens"][0]["label"], &listing["unreadable"]), (&"ca".into(), &serde_json::json!([])));
    assert!(listing["library"]["description"].as_str().is_some_and(|text| text.contains("PKCS11")), "{listing}");
    let text = machine.run("inspect", &module).out;
    assert!(text.contains("malformed: the clock reads \"        05:49:45\""), "{text}");
    // Such a token can be selected and used.
    let token: Vec<_> = machine.token().iter().map(|argument| through(&MODULE, argument)).collect();
    let made = machine.run("generate --algorithm p256 --csr $/ca.csr --subject CN=ca", &token);
    assert_eq!(made.status, 0, "{made:?}");
    let text = machine.run("inspect", &token).out;
    assert!(text.contains("private keys: ") && text.contains("malformed: the clock reads"), "{text}");
}

#[test]
fn slot_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    let machine = Machine::new();
    Control::new(machine.directory.path()).breaks("C_GetTokenInfo return=0x30");
    let listed = machine.run("inspect", &["--module".to_owned(), MODULE.display().to_string()]);
    let said = "its token cannot be read: C_GetTokenInfo returned CKR_DEVICE_ERROR";
    assert!(listed.status == 0 && listed.out.contains("0 tokens") && listed.out.contains(said), "{listed:?}");
    let token = ["--token".to_owned(), through(&MODULE, &machine.uri("ca"))];
    machine.run("inspect", &token).refused(&["a token in slot", "cannot be read", "CKR_DEVICE_ERROR", "vendor's tool"]);
}
