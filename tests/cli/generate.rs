//! `generate`: a root, a CSR, and errors reported before a key is generated.

use super::harness::{Machine, exists};

const ROOT: &str = "--self-signed --organization cluster.local --bundle $/bundle --log $/log --log-origin ca.test/log";

#[test]
fn a_root_as_istios_own() {
    for algorithm in ["p256", "p384", "rsa-2048"] {
        let machine = Machine::new();
        let receipt = machine.json(&format!("generate --algorithm {algorithm} --label root {ROOT} --days 30"));
        assert_eq!(receipt["label"], "root");
        assert_eq!(receipt["log"]["index"], 0);
        assert_eq!(receipt["certificate"]["organization"], "cluster.local");
        assert_eq!(receipt["attributes"]["extractable"], false);
        assert_eq!(receipt["attributes"]["local"], true, "not generated in the token");
        assert_eq!(receipt["installed"]["certificate"], "written");
        let key = receipt["log_verifier_key"].as_str().unwrap();
        assert!(key.starts_with("ca.test/log+"), "{key}");

        let pem = machine.read("bundle/ca-cert.pem");
        for file in ["root-cert.pem", "cert-chain.pem"] {
            assert_eq!(machine.read(&format!("bundle/{file}")), pem, "{file}");
        }
        let files = std::fs::read_dir(machine.path("bundle")).unwrap();
        let names: Vec<_> = files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let saved = names.iter().find(|name| name.starts_with("generate-receipt-")).unwrap();
        let saved: serde_json::Value = serde_json::from_str(&machine.read(&format!("bundle/{saved}"))).unwrap();
        assert_eq!(saved, receipt);

        // Verified by openssl.
        machine.openssl("verify -x509_strict -check_ss_sig -CAfile bundle/root-cert.pem bundle/ca-cert.pem");
        let text = machine.openssl("x509 -in bundle/ca-cert.pem -noout -text");
        for expected in ["CA:TRUE", "Certificate Sign", "O = cluster.local", "X509v3 Subject Key Identifier"] {
            assert!(text.contains(expected) || text.contains(&expected.replace(" = ", "=")), "{expected}: {text}");
        }
        machine.openssl("x509 -in bundle/ca-cert.pem -noout -checkend 2500000");
        assert!(!machine.try_openssl("x509 -in bundle/ca-cert.pem -noout -checkend 2592100").0, "30 days");

        // The certificate is in the log and signed with the key in the token.
        let books = machine.run("log check-certificate --directory $/log $/bundle/ca-cert.pem", &[]);
        assert!(books.status == 0 && books.out.contains("is in the books as intent 0"), "{books:?}");
        let view = machine.json("inspect --bundle $/bundle");
        assert_eq!(view["bundle"]["key_in_token"], true);
    }
}

#[test]
fn a_request_for_the_roots_owner() {
    for algorithm in ["p256", "rsa-3072"] {
        let machine = Machine::new();
        let mut more = machine.token();
        more.extend(["--subject".into(), "O=My Company,CN=My Mesh CA".into(), "--output=json".into()]);
        let done = machine.run(&format!("generate --algorithm {algorithm} --csr $/ca.csr"), &more);
        assert_eq!(done.status, 0, "{done:?}");
        let value: serde_json::Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!(value["label"], "istio-ca");
        let text = machine.openssl("req -in ca.csr -noout -verify -text");
        assert!(text.to_lowercase().contains("verify ok"), "{text}");
        let subject = machine.openssl("req -in ca.csr -noout -subject");
        let plain = subject.replace(" = ", "=");
        assert!(plain.contains("O=My Company, CN=My Mesh CA"), "in the order given: {subject}");
        for expected in ["CA:TRUE", "Certificate Sign, CRL Sign"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}

#[test]
fn refused_generate_makes_no_key() {
    let machine = Machine::new();
    machine.write("taken/ca-cert.pem", "");
    machine.write("taken.csr", "");
    let before = machine.token_files();
    let subject = "--subject O=a,CN=b";
    machine.refused(&format!("generate --algorithm p256 --csr $/taken.csr {subject}"), &["taken.csr: exists already"]);
    machine.refused(
        "generate --algorithm p256 --self-signed --organization o --bundle $/taken --log $/log",
        &["holds a ca-cert.pem already"],
    );
    let long = "o".repeat(65);
    machine.refused(
        &format!("generate --algorithm p256 --self-signed --organization {long} --bundle $/b --log $/log"),
        &["1 to 64 characters"],
    );
    machine.refused(
        "generate --algorithm p256 --self-signed --organization o --bundle $/b --log /proc/nothing/log",
        &["/proc/nothing", "the log's directory must be"],
    );
    machine.refused(
        "generate --algorithm p256 --self-signed --organization o --bundle $/b --log $/log --log-origin not/a+origin",
        &["origin"],
    );
    assert_eq!(machine.token_files(), before, "an object was created");
    assert!(!exists(&machine.path("b")), "a bundle was written");
}

#[test]
fn label_in_use_is_refused() {
    let machine = Machine::new();
    machine.done("generate --algorithm p256 --csr $/one.csr --subject CN=one");
    let before = machine.contents();
    machine.refused(
        "generate --algorithm p384 --csr $/two.csr --subject CN=two",
        &["holds a key with the label `istio-ca` already", "give another label"],
    );
    assert_eq!(machine.contents(), before);
    assert!(!exists(&machine.path("two.csr")));
    machine.done("generate --algorithm p384 --label other --csr $/two.csr --subject CN=two");
}

/// A name that no file system takes, which only writing shows.
const FAILS_LATE: &str = concat!(
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
);

#[test]
fn no_key_is_made_for_files_that_cannot_be_written() {
    let machine = Machine::new();
    let before = machine.token_files();
    machine.write("file", "something");
    for (words, expected) in [
        ("--csr /proc/nothing/ca.csr --subject CN=one", "/proc: cannot be written"),
        ("--csr $/file/below --subject CN=one", "file: cannot be written"),
        ("--self-signed --organization o --bundle /proc/nothing/b --log $/log", "/proc: cannot be written"),
        ("--self-signed --organization o --bundle $/file --log $/log", "file: is not a directory"),
    ] {
        machine.refused(&format!("generate --algorithm p256 {words}"), &["no key was made", expected]);
    }
    assert_eq!(machine.token_files(), before);
}

#[test]
fn failure_after_generation_names_the_existing_key() {
    let machine = Machine::new();
    machine.refused(
        &format!("generate --algorithm p256 --csr $/{FAILS_LATE} --subject CN=one"),
        &["the key `istio-ca`", "stays there without a certificate", "another --label", FAILS_LATE],
    );
    machine.refused(
        &format!(
            "generate --algorithm p256 --label root --self-signed --organization o --bundle $/{FAILS_LATE} --log $/log"
        ),
        &[
            "the key `root` and its self-signed certificate",
            "istio-hsm-ca install --ca-cert root.pem",
            "BEGIN CERTIFICATE",
        ],
    );
}

#[test]
fn commands_after_a_root_without_a_bundle_complete_it() {
    let machine = Machine::new();
    let words = format!("generate --algorithm p256 --self-signed --organization o --bundle $/{FAILS_LATE} --log $/log");
    let said = machine.run(&words, &machine.token()).err;
    let begin = said.find("-----BEGIN").unwrap();
    let end = said.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
    machine.write("root.pem", &said[begin..end]);
    machine.done("install --ca-cert $/root.pem --root-cert $/root.pem --cert-chain $/root.pem --bundle $/bundle");
    assert_eq!(machine.json("inspect --bundle $/bundle")["bundle"]["key_in_token"], true);
}

#[test]
fn generate_rejects_contradictory_options() {
    let machine = Machine::new();
    let cases: [(&str, &[&str]); 8] = [
        ("generate --algorithm p256", &["--self-signed", "--csr"]),
        ("generate --algorithm p256 --self-signed --csr $/a --subject CN=a", &["cannot be used with"]),
        ("generate --algorithm p256 --self-signed", &["--organization", "--bundle", "--log"]),
        ("generate --algorithm p256 --csr $/a", &["--subject"]),
        ("generate --algorithm p256 --csr $/a --subject nothing", &["is no name"]),
        ("generate --algorithm rsa-1024 --csr $/a --subject CN=a", &["rsa-2048", "p256"]),
        ("generate --algorithm p256 --csr $/a --subject CN=a --days 5", &["--self-signed"]),
        ("generate --algorithm p256 --self-signed --organization o --bundle $/b --log $/l --days 0", &["--days"]),
    ];
    for (words, expected) in cases {
        machine.run(words, &machine.token()).usage(expected);
    }
    machine.run("generate --algorithm p256 --csr $/a --subject CN=a", &[]).usage(&["--token"]);
    machine.run("generate --algorithm p256 --csr $/a --subject CN=a --token slot:0", &[]).usage(&["--token"]);
    let pin_in_uri = vec!["--token".to_owned(), "pkcs11:token=ca?pin-value=0000".to_owned()];
    let done = machine.run("generate --algorithm p256 --csr $/a --subject CN=a", &pin_in_uri);
    done.usage(&["pin-value"]);
}

#[test]
fn generate_refuses_ambiguous_tokens_and_bad_pin_files() {
    let machine = Machine::new();
    machine.directory.init_token("twin");
    machine.directory.init_token("twin");
    let words = "generate --algorithm p256 --csr $/a.csr --subject CN=a";
    let with = |token: String, pin: &std::path::Path| {
        machine.run(words, &["--token".into(), token, "--pin-file".into(), pin.display().to_string()])
    };
    let (right, wrong) = (machine.directory.pin_file(), machine.pin_file("wrong-pin", "999999\n"));
    with(machine.uri("nowhere"), &right).refused(&["no token in", "nowhere", "`ca`"]);
    with(machine.uri("twin"), &right).refused(&["several tokens in", "add serial= to the URI"]);
    with("pkcs11:token=ca".into(), &right).refused(&["names no module", "module-path="]);
    with("pkcs11:token=ca?module-path=/nowhere/module.so".into(), &right)
        .refused(&["/nowhere/module.so", "check module-path"]);
    with(machine.uri("ca"), &machine.path("no-pin")).refused(&["no-pin", "cannot be read"]);
    let done = with(machine.uri("ca"), &wrong);
    done.refused(&["the token `ca` refuses the PIN"]);
    assert!(!done.err.contains("999999"), "{done:?}");
    machine.run(words, &["--token".into(), machine.uri("ca")]).refused(&["no PIN for token ca", "give --pin-file"]);
    assert!(!exists(&machine.path("a.csr")));
    // The PIN file may be given in the URI.
    let done = machine.run(words, &["--token".into(), machine.directory.uri("ca")]);
    assert_eq!(done.status, 0, "{done:?}");
}

#[test]
fn errors_are_json_too() {
    let machine = Machine::new();
    machine.write("taken.csr", "");
    let done =
        machine.run("generate --algorithm p256 --csr $/taken.csr --subject CN=a --output json", &machine.token());
    let error: serde_json::Value = serde_json::from_str(&done.err).unwrap();
    assert!(error["error"].as_str().unwrap().contains("exists already"), "{error}");
    assert_eq!((done.status, done.out.as_str()), (1, ""));
}
