//! `revoke` as an operator uses it: selectors, questions, mistakes. Its effects are in tests/signing_path.

use std::fs;

use serde_json::Value;

use super::harness::{Done, Machine};

const ARGUMENTS: &str = "--config $/config.toml";

/// A machine with a CA, `[revocation]`, and a log with the certificates that `issue` has made.
struct Revoking(Machine);

impl Revoking {
    fn new() -> Self {
        let machine = Machine::new();
        machine.done("generate --algorithm p256 --self-signed --organization o --bundle $/bundle --log $/log");
        let root = machine.directory.path().display().to_string();
        let environment = format!("environment = {{ SOFTHSM2_CONF = \"{}\" }}\n", machine.directory.conf().display());
        let configuration = machine.configuration().replace("[serving]", &format!("{environment}[serving]"));
        machine.write(
            "config.toml",
            format!("{configuration}[revocation]\nstore = {{ file = \"{root}/state/revocations.json\" }}\n"),
        );
        fs::create_dir(machine.path("state")).unwrap();
        Self(machine)
    }

    /// Issues a certificate for a workload; returns its serial number.
    fn issue(&self, namespace: &str, account: &str) -> String {
        self.0.openssl("ecparam -name prime256v1 -genkey -noout -out key.pem");
        self.0.openssl("req -new -key key.pem -subj / -out csr.pem");
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let done = self.0.run(&format!("issue {ARGUMENTS} --csr $/csr.pem --spiffe-id {id} --output json"), &[]);
        assert_eq!(done.status, 0, "{done:?}");
        let reply: Value = serde_json::from_str(&done.out).unwrap();
        reply["serial"].as_str().unwrap().to_owned()
    }

    fn revoke(&self, words: &str) -> Done {
        self.0.run(&format!("revoke {ARGUMENTS} {words}"), &[])
    }

    fn json(&self, words: &str) -> Value {
        let done = self.revoke(&format!("--output json {words}"));
        assert_eq!(done.status, 0, "{words}: {done:?}");
        serde_json::from_str(&done.out).unwrap()
    }

    fn serials(&self, words: &str) -> Vec<String> {
        let report = self.json(&format!("--dry-run {words}"));
        assert_eq!(report["revision"], Value::Null);
        let serials = report["certificates"].as_array().unwrap().iter();
        serials.map(|one| one["serial"].as_str().unwrap().to_owned()).collect()
    }
}

fn sorted(mut serials: Vec<String>) -> Vec<String> {
    serials.sort();
    serials
}

#[test]
fn selectors_find_what_they_name_and_nothing_else() {
    let revoking = Revoking::new();
    let (web, api, cart) =
        (revoking.issue("shop", "web"), revoking.issue("shop", "api"), revoking.issue("cart", "web"));
    let all = |serials: &[&String]| sorted(serials.iter().map(|serial| (*serial).clone()).collect());
    let log = revoking.0.run("log show --directory $/log --output json", &[]);
    let entries: Value = serde_json::from_str(&log.out).unwrap();
    let key = entries
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["intent"]["serial"] == api.as_str())
        .and_then(|entry| entry["intent"]["spki_sha256"].as_str())
        .unwrap();
    for (words, expected) in [
        ("--namespace shop".to_owned(), all(&[&web, &api])),
        ("--namespace sho --no-revoke".to_owned(), Vec::new()),
        ("--identity spiffe://cluster.local/ns/shop/sa/web".to_owned(), all(&[&web])),
        (format!("--serial {} --serial {}", web.to_uppercase(), cart), all(&[&web, &cart])),
        (format!("--key {key}"), all(&[&api])),
        ("--since 2020-01-01 --until 2100-01-01".to_owned(), all(&[&web, &api, &cart])),
        (format!("--namespace shop --serial {api}"), all(&[&api])),
    ] {
        assert_eq!(sorted(revoking.serials(&words)), expected, "{words}");
    }
    for words in ["--since 2100-01-01", "--until 2020-01-01", "--node worker-1 --no-block"] {
        revoking
            .revoke(&format!("--dry-run {words}"))
            .refused(&["no certificate that is still valid matches", "--log"]);
    }
    assert!(!revoking.0.path("state/revocations.json").exists(), "a dry run changes nothing");
    // What a selector blocks.
    for (words, block) in [
        ("--namespace shop", Value::from("namespace=shop")),
        ("--namespace shop --no-block", Value::Null),
        ("--namespace shop --until 2100-01-01", Value::Null),
        ("--namespace shop --until 2100-01-01 --block", Value::from("namespace=shop")),
        ("--node worker-1", Value::from("node=worker-1")),
        (&format!("--serial {web}"), Value::Null),
    ] {
        assert_eq!(revoking.json(&format!("--dry-run {words}"))["block"], block, "{words}");
    }
}

#[test]
fn change_is_made_after_an_answer_and_listed() {
    let revoking = Revoking::new();
    let web = revoking.issue("shop", "web");
    let words = format!("--serial {web} --reason certificateHold");
    revoking
        .revoke(&words)
        .refused(&["nothing was changed, because there is no terminal", "give --yes to revoke 1 certificate"]);
    let at_terminal = |answer| {
        let line = format!("revoke {ARGUMENTS} {words}");
        revoking.0.at_terminal(&line, &[], &[("Type yes:", answer)])
    };
    let (status, screen) = at_terminal("y");
    assert!(status == 1 && screen.contains("nothing was changed") && screen.contains(&web), "{screen}");
    let (status, screen) = at_terminal("yes");
    assert!(status == 0 && screen.contains("revoked 1 certificate"), "{screen}");
    let list = revoking.revoke("--list").out;
    assert!(list.contains("revision 1\n") && list.contains(&format!("{web}  certificateHold")), "{list}");
    let released = revoking.json(&format!("--release --serial {web} --yes"));
    assert_eq!(released["revision"], 2);
    assert!(!revoking.revoke("--list").out.contains(&web));
}

#[test]
fn mistakes_have_their_remedies() {
    let revoking = Revoking::new();
    revoking.revoke("").refused(&["nothing is selected; name certificates by --serial"]);
    revoking.revoke("--serial 0a --yes").refused(&["is in none of the logs", "--log, or its notAfter by --expires"]);
    revoking
        .revoke("--serial 0a --log $/nowhere --yes")
        .refused(&["nowhere cannot be read; name another one by --log"]);
    revoking.revoke("--release --serial 0a --yes").refused(&["the certificate 0a is not revoked"]);
    revoking.revoke("--release --namespace shop --yes").refused(&["no selected certificate is on hold"]);
    revoking.revoke("--unblock 3 --yes").refused(&["there is no block 3; `istio-hsm-ca revoke --list`"]);
    revoking.revoke("--serial 0a --block --yes").refused(&["a block needs --identity, --namespace, --node or --key"]);
    let both = "--namespace shop --key 00 --block";
    revoking.revoke(both).usage(&["is not the SHA-256 of a key's DER SubjectPublicKeyInfo"]);
    revoking.revoke("--serial 0a --reason removeFromCRL").usage(&["is not a reason for a revocation"]);
    revoking.revoke("--serial xyz").usage(&["is not a serial number in hexadecimal"]);
    revoking.revoke("--expires 2035-01-01").usage(&["--serial"]);
    revoking.revoke("--namespace shop --block --no-block").usage(&["cannot be used with"]);
    revoking
        .0
        .write("config.toml", revoking.0.read("config.toml").replace("[revocation]", "#").replace("store =", "#"));
    revoking.revoke("--serial 0a").refused(&["[revocation] is missing; add it with a store"]);
}
