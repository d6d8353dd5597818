//! `adopt`: keys that other programs have made in, or imported into, the token.

use std::{fs, process::Command};

use rcgen::{KeyPair, RsaKeySize};
use serde_json::Value;
use testkit::{
    plug_in::{self, PlugIn},
    softhsm::{PIN, module_path},
};

use super::harness::{Machine, exists};

fn tool(machine: &Machine, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("SOFTHSM2_CONF", machine.directory.conf())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// pkcs11-tool on the token `ca`, logged in.
fn pkcs11_tool(machine: &Machine, words: &str) -> String {
    let module = module_path().display().to_string();
    let login = ["--module", &module, "--token-label", "ca", "--login", "--pin", PIN];
    let words: Vec<&str> = words.split_whitespace().collect();
    tool(machine, "pkcs11-tool", &[&login[..], &words].concat())
}

/// A software key in key.pem, key.der and public.der, and its CA below a root in signed/.
fn software_ca(machine: &Machine, key: KeyPair) {
    let ca = PlugIn::below(plug_in::new_root("Root CA"), key, true);
    ca.write(&machine.path("software"));
    ca.write_public(&machine.path("signed"));
    let key = machine.path("software/ca-key.pem").display().to_string();
    machine.openssl(&format!("pkcs8 -topk8 -nocrypt -in {key} -out key.pem"));
    machine.openssl("pkey -in key.pem -outform DER -out key.der");
    machine.openssl("pkey -in key.pem -pubout -outform DER -out public.der");
}

/// A CA below a root, in signed/, for the public key of a key in the token.
fn ca_for_token_key(machine: &Machine, id: &str) {
    let public = machine.path("made.der");
    pkcs11_tool(machine, &format!("--read-object --type pubkey --id {id} --output-file {}", public.display()));
    plug_in::write_public_of(&fs::read(public).unwrap(), &machine.path("signed"));
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

const ADOPT: &str = "adopt --from $/signed --bundle $/bundle";

/// Adopts, and what `inspect` and `check` say then; returns the receipt.
fn adopted(machine: &Machine, found_by: &str, flags: &str) -> Value {
    let receipt = machine.json(&format!("{ADOPT} {flags}"));
    assert_eq!(receipt["origin"], "made or imported by other tools", "{receipt}");
    assert_eq!(receipt["found_by"], found_by, "{receipt}");
    for helper in ["log", "canary"] {
        assert_eq!(receipt["service_keys"][helper]["state"], "made", "{receipt}");
    }
    let view = machine.json("inspect --bundle $/bundle");
    assert_eq!(view["bundle"]["key_in_token"], true, "{view}");
    checked(machine, true);
    receipt
}

/// The findings of `check` about the token; it must succeed or fail.
fn checked(machine: &Machine, good: bool) -> Vec<(String, String)> {
    let config = machine.write("config.toml", machine.configuration());
    let done = machine.run(&format!("check --output json --config {}", config.display()), &[]);
    assert_eq!(done.status == 0, good, "{done:?}");
    let findings: Value = serde_json::from_str(&done.out).unwrap();
    let of_token = findings.as_array().unwrap().iter().filter(|finding| finding["part"] == "token hsm");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of_token.map(|finding| (text(&finding["level"]), text(&finding["text"]))).collect()
}

fn warned(machine: &Machine, words: &str) -> bool {
    checked(machine, true).iter().any(|(level, text)| level == "warning" && text.contains(words))
}

#[test]
fn keys_of_other_programs_are_found_by_what_they_sign() {
    // How the key got there, with `#` for its file without an ending; and the step of the search that finds it.
    let cases: [(&str, fn() -> KeyPair, &[&str], &str); 8] = [
        ("a foreign CKA_ID, RSA", rsa, &["--write-object #.der --type privkey --id 01 --label x"], "own_value"),
        ("no CKA_ID, RSA", rsa, &["--write-object #.der --type privkey --label x"], "own_value"),
        ("no public object, EC", plug_in::p256, &["--write-object #.der --type privkey --id 01"], "trial_signature"),
        ("neither CKA_ID nor label", plug_in::p256, &["--write-object #.der --type privkey"], "trial_signature"),
        (
            "a public object with the same foreign CKA_ID",
            plug_in::p256,
            &["--write-object #.der --type privkey --id 01", "--write-object @.der --type pubkey --id 01"],
            "public_object",
        ),
        (
            "a public object under another CKA_ID",
            plug_in::p256,
            &["--write-object #.der --type privkey --id 01", "--write-object @.der --type pubkey --id 02"],
            "trial_signature",
        ),
        (
            "two keys under one CKA_ID",
            plug_in::p256,
            &[
                "--keypairgen --key-type EC:prime256v1 --id 01 --label other",
                "--write-object #.der --type privkey --id 01 --label x",
            ],
            "trial_signature",
        ),
        (
            "a key of another type under the same CKA_ID",
            rsa,
            &[
                "--keypairgen --key-type EC:prime256v1 --id 01 --label other",
                "--write-object #.der --type privkey --id 01 --label x",
            ],
            "own_value",
        ),
    ];
    for (what, key, objects, found_by) in cases {
        println!("{what}");
        let machine = Machine::new();
        software_ca(&machine, key());
        let [private, public] = ["key", "public"].map(|name| machine.path(name).display().to_string());
        for object in objects {
            pkcs11_tool(&machine, &object.replace('#', &private).replace('@', &public));
        }
        let receipt = adopted(&machine, found_by, "--allow-decrypt --allow-unwrap --allow-derive");
        assert_eq!(receipt["copies"].as_array().unwrap().len(), 0, "{receipt}");
        // The second time everything is there.
        let again = machine.json(&format!("{ADOPT} --allow-decrypt --allow-unwrap --allow-derive"));
        assert_eq!(
            (&again["certificate"], &again["public_key"]),
            (&"unchanged".into(), &"unchanged".into()),
            "{again}"
        );
    }
}

#[test]
fn uri_hint_leads_to_the_key() {
    let machine = Machine::new();
    software_ca(&machine, plug_in::p256());
    let key = machine.path("key.der").display().to_string();
    pkcs11_tool(&machine, &format!("--write-object {key} --type privkey --id a3b2 --label x"));
    let pin = machine.directory.pin_file().display().to_string();
    for (hint, found_by) in [(";id=%A3%B2", "uri"), (";object=x", "uri"), (";object=y", "trial_signature")] {
        let uri = machine.uri("ca").replace('?', &format!("{hint}?"));
        let token = ["--token".to_owned(), uri, "--pin-file".to_owned(), pin.clone()];
        let flags = "--allow-decrypt --allow-unwrap --allow-derive --output json";
        let done = machine.run(&format!("{ADOPT} {flags}"), &token);
        let receipt: Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        // Once adopted there is a public object under the key's own CKA_ID.
        let expected = if found_by == "uri" { "uri" } else { "public_object" };
        assert_eq!(receipt["found_by"], expected, "{hint}: {receipt}");
    }
}

#[test]
fn copies_are_reported_and_one_is_used() {
    let machine = Machine::new();
    software_ca(&machine, plug_in::p256());
    let key = machine.path("key.der").display().to_string();
    for label in ["one", "two"] {
        pkcs11_tool(&machine, &format!("--write-object {key} --type privkey --id 07 --label {label}"));
    }
    let receipt = adopted(&machine, "trial_signature", "--allow-decrypt --allow-unwrap --allow-derive");
    assert_eq!(receipt["copies"].as_array().unwrap().len(), 1, "{receipt}");
    assert!(warned(&machine, "holds a copy of the CA's key"));
}

#[test]
fn key_made_by_pkcs11_tool_needs_its_weaknesses_accepted() {
    let machine = Machine::new();
    pkcs11_tool(&machine, "--keypairgen --key-type rsa:2048 --id 01 --label vendor");
    ca_for_token_key(&machine, "01");
    let before = machine.token_files();
    machine.refused(ADOPT, &["may decrypt (CKA_DECRYPT)", "--allow-decrypt"]);
    assert_eq!(machine.token_files(), before);
    assert!(!exists(&machine.path("bundle")));
    let receipt = adopted(&machine, "public_object", "--allow-decrypt --allow-unwrap");
    let accepted = receipt["accepted_weaknesses"].as_array().unwrap();
    assert!(accepted.contains(&"decrypt".into()), "{receipt}");
    assert!(warned(&machine, "accepted with --allow-decrypt"));
}

#[test]
fn imported_key_that_is_extractable_is_served_only_when_accepted() {
    let machine = Machine::new();
    software_ca(&machine, plug_in::p256());
    let pem = machine.path("key.pem").display().to_string();
    let key = machine.path("key.der").display().to_string();
    tool(
        &machine,
        "softhsm2-util",
        &["--import", &pem, "--token", "ca", "--label", "util", "--id", "A3B2", "--pin", PIN],
    );
    pkcs11_tool(&machine, "--delete-object --type privkey --id a3b2");
    pkcs11_tool(&machine, &format!("--write-object {key} --type privkey --id a3b2 --extractable --label x"));
    machine.refused(&format!("{ADOPT} --allow-decrypt"), &["may leave the token", "--allow-extractable"]);
    // A bundle that nobody has adopted the key into.
    fs::create_dir(machine.path("bundle")).unwrap();
    for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        machine.write(&format!("bundle/{file}"), machine.read(&format!("signed/{file}")));
    }
    let refused = checked(&machine, false);
    assert!(
        refused.iter().any(|(level, text)| level == "error" && text.contains("may leave the token")),
        "{refused:?}"
    );
    let flags = "--allow-extractable --allow-not-sensitive --allow-decrypt --allow-unwrap --allow-derive";
    adopted(&machine, "public_object", flags);
    assert!(warned(&machine, "accepted with --allow-extractable"));
}

#[test]
fn key_of_softhsm2_util_is_adopted() {
    let machine = Machine::new();
    software_ca(&machine, rsa());
    let pem = machine.path("key.pem").display().to_string();
    tool(
        &machine,
        "softhsm2-util",
        &["--import", &pem, "--token", "ca", "--label", "util", "--id", "A3B2", "--pin", PIN],
    );
    adopted(&machine, "public_object", "--allow-decrypt --allow-unwrap --allow-derive");
}

#[test]
#[ignore = "needs p11tool: make test-tokens"]
fn key_of_p11tool_is_adopted() {
    let machine = Machine::new();
    let module = module_path().display().to_string();
    let words = ["--provider", &module, "--login", "--set-pin", PIN, "--generate-privkey", "rsa", "--bits", "2048"];
    tool(&machine, "p11tool", &[&words[..], &["--label", "made", "--id", "0badcafe", "pkcs11:token=ca"]].concat());
    ca_for_token_key(&machine, "0badcafe");
    adopted(&machine, "public_object", "--allow-decrypt --allow-unwrap --allow-derive");
}

#[test]
fn search_without_a_result_reports_how_many_keys_were_tried() {
    let machine = Machine::new();
    software_ca(&machine, plug_in::p256());
    pkcs11_tool(&machine, "--keypairgen --key-type EC:prime256v1 --id 01 --label other");
    let expected = ["ca-cert.pem: its key is not in the token ca", "1 of type EC were tried"];
    machine.refused(ADOPT, &expected);
}
