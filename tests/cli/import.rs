//! `import`: valid plug-in CAs are imported; invalid ones are rejected with all reasons, and the token is not modified.

use std::{fs, os::unix::fs::PermissionsExt};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, date_time_ymd,
};

use super::harness::{Done, Machine, exists};
use testkit::faulty::{Control, MODULE, once, through};

pub const IMPORT: &str = "import --from $/ca --bundle $/bundle";

pub fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params
}

pub fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// The files of a plug-in CA: an offline root and an intermediate.
pub struct Files {
    pub root: CertificateParams,
    pub ca: CertificateParams,
    pub key: KeyPair,
}

impl Files {
    pub fn new() -> Self {
        Self { root: authority("root"), ca: authority("intermediate"), key: p256() }
    }

    pub fn write(self, machine: &Machine) {
        let root_key = p256();
        let root = self.root.self_signed(&root_key).unwrap().pem();
        let ca = self.ca.signed_by(&self.key, &Issuer::new(self.root, root_key)).unwrap().pem();
        machine.write("ca/root-cert.pem", &root);
        machine.write("ca/ca-cert.pem", &ca);
        machine.write("ca/cert-chain.pem", format!("{ca}{root}"));
        let key = machine.write("ca/ca-key.pem", self.key.serialize_pem());
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Writes a valid plug-in CA to `ca`.
pub fn good(machine: &Machine) {
    Files::new().write(machine);
}

pub fn imports(machine: &Machine, words: &str) -> Done {
    let done = machine.done(words);
    let view = machine.json("inspect --bundle $/bundle");
    assert_eq!(view["bundle"]["key_in_token"], true, "{view}");
    for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        assert_eq!(
            machine.read(&format!("bundle/{file}")),
            machine.read(&format!("ca/{file}")),
            "byte for byte: {file}"
        );
    }
    done
}

#[test]
fn a_plug_in_ca_goes_in_and_again_changes_nothing() {
    let machine = Machine::new();
    good(&machine);
    let dry = machine.json(&format!("{IMPORT} --dry-run"));
    assert_eq!(dry["dry_run"], true);
    assert_eq!(machine.json("inspect")["keys"].as_array().unwrap().len(), 0, "a dry run created keys");
    assert!(!exists(&machine.path("bundle")));

    let done = imports(&machine, IMPORT);
    assert!(done.out.contains("it crossed the boundary wrapped") && !done.err.contains("warning"), "{done:?}");
    let before = machine.contents();
    let again = machine.json(IMPORT);
    assert_eq!(machine.contents(), before);
    let token = &again["tokens"][0];
    assert_eq!(token["certificate"], "unchanged", "{again}");
    let receipt: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(token["receipt"].as_str().unwrap()).unwrap()).unwrap();
    assert_eq!(receipt["attributes"]["extractable"], false);
    assert_eq!(receipt["attributes"]["local"], false, "an imported key is not local");
    assert_eq!(receipt["key_sha256"], again["key_sha256"]);
    assert_eq!(
        (&receipt["token"]["label"], &receipt["read_attempt"]),
        (&"ca".into(), &"CKR_ATTRIBUTE_SENSITIVE".into())
    );
    for reported in
        ["/at", "/id", "/certificate_sha256", "/token/serial", "/token/model", "/service_keys", "/wrap_attempt"]
    {
        assert!(
            receipt.pointer(reported).is_some_and(|value| !value.is_null() && value != ""),
            "{reported}: {receipt}"
        );
    }
    for (name, wanted) in
        [("always_sensitive", false), ("never_extractable", false), ("sensitive", true), ("sign", true)]
    {
        assert_eq!(receipt["attributes"][name], wanted, "{name}: {receipt}");
    }
    for name in ["decrypt", "unwrap", "derive", "modifiable"] {
        assert_ne!(receipt["attributes"][name], true, "{name}: {receipt}");
    }
    assert!(exists(&machine.path("ca/ca-key.pem")), "the key file was removed");
}

#[test]
fn renewed_certificate_replaces_the_old_one() {
    let machine = Machine::new();
    good(&machine);
    imports(&machine, IMPORT);
    let key = KeyPair::from_pem(&machine.read("ca/ca-key.pem")).unwrap();
    let mut renewed = Files { key, ..Files::new() };
    renewed.ca.not_after = date_time_ymd(2098, 1, 1);
    renewed.write(&machine);
    let value = machine.json(IMPORT);
    assert_eq!(value["tokens"][0]["certificate"], "replaced", "{value}");
    let view = machine.json("inspect --bundle $/bundle");
    assert_eq!((view["certificates"].as_array().unwrap().len(), &view["bundle"]["key_in_token"]), (1, &true.into()));
    assert_eq!(machine.read("bundle/ca-cert.pem"), machine.read("ca/ca-cert.pem"));
}

#[test]
fn every_form_of_a_key_file() {
    let cases = [
        (
            "P-256, SEC 1",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out k",
            "ec -in k -out ca/ca-key.pem",
        ),
        ("P-256, with parameters", "ecparam -name prime256v1 -genkey -out k", "pkey -in k -out unused"),
        ("P-384", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out k", "pkey -in k -out ca/ca-key.pem"),
        ("RSA, PKCS #1", "genrsa -traditional -out k 2048", "rsa -in k -traditional -out ca/ca-key.pem"),
    ];
    for (name, make, convert) in cases {
        let machine = Machine::new();
        fs::create_dir(machine.path("ca")).unwrap();
        machine.openssl(make);
        fs::copy(machine.path("k"), machine.path("ca/ca-key.pem")).unwrap();
        machine.openssl(convert);
        machine.openssl("req -x509 -key k -days 3650 -subj /CN=self -out ca/ca-cert.pem");
        machine.write("ca/root-cert.pem", machine.read("ca/ca-cert.pem"));
        machine.write("ca/cert-chain.pem", "");
        fs::set_permissions(machine.path("ca/ca-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        let done = imports(&machine, IMPORT);
        assert_eq!(done.status, 0, "{name}");
    }
}

#[test]
fn an_encrypted_key_asks_for_its_passphrase() {
    let machine = Machine::new();
    good(&machine);
    machine
        .openssl("pkcs8 -topk8 -in ca/ca-key.pem -out encrypted -v2 aes-256-cbc -iter 2048 -passout pass:open-sesame");
    fs::rename(machine.path("encrypted"), machine.path("ca/ca-key.pem")).unwrap();
    machine.refused(IMPORT, &["ca-key.pem: the key is encrypted", "give --key-passphrase-file"]);
    machine.pin_file("wrong-phrase", "close-sesame\n");
    let done = machine.run(&format!("{IMPORT} --key-passphrase-file $/wrong-phrase"), &machine.token());
    done.refused(&["the passphrase is wrong"]);
    assert!(!done.err.contains("sesame"), "{done:?}");
    machine.pin_file("phrase", "open-sesame\n");
    imports(&machine, &format!("{IMPORT} --key-passphrase-file $/phrase"));
}

#[test]
fn ed25519_goes_in_the_clear_and_only_with_the_flag() {
    if !testkit::softhsm::is_softhsm() {
        return;
    }
    let machine = Machine::new();
    Files { key: KeyPair::generate_for(&PKCS_ED25519).unwrap(), ..Files::new() }.write(&machine);
    let before = machine.contents();
    machine.refused(IMPORT, &["--allow-plaintext-import"]);
    assert_eq!(machine.contents()[0].as_array().unwrap().len(), before[0].as_array().unwrap().len());
    let done = imports(&machine, &format!("{IMPORT} --allow-plaintext-import"));
    assert!(done.out.contains("handed over in the clear"), "{done:?}");
}

#[test]
fn warnings_are_no_refusals() {
    let machine = Machine::new();
    good(&machine);
    fs::set_permissions(machine.path("ca/ca-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let done = imports(&machine, IMPORT);
    assert!(done.err.contains("warning:") && done.err.contains("can be read by others (mode 644)"), "{done:?}");
}

#[test]
fn other_names_and_the_layout_of_a_tls_secret() {
    let machine = Machine::new();
    good(&machine);
    for (from, to) in [("ca-cert.pem", "tls.crt"), ("ca-key.pem", "tls.key"), ("root-cert.pem", "ca.crt")] {
        fs::create_dir_all(machine.path("tls")).unwrap();
        fs::copy(machine.path("ca").join(from), machine.path("tls").join(to)).unwrap();
    }
    machine.done("import --from $/tls --bundle $/bundle");
    let view = machine.json("inspect --bundle $/bundle");
    assert_eq!(view["bundle"]["key_in_token"], true, "{view}");
    assert_eq!(machine.read("bundle/ca-cert.pem"), machine.read("tls/tls.crt"));
    assert_eq!(
        (machine.read("bundle/cert-chain.pem"), machine.read("bundle/root-cert.pem")),
        (String::new(), machine.read("tls/ca.crt"))
    );
    // Any file names; the chain may be omitted.
    let names = "--ca-cert $/tls/tls.crt --ca-key $/tls/tls.key --root-cert $/tls/ca.crt";
    machine.done(&format!("import {names} --bundle $/bundle2"));
    machine.done(&format!("import {names} --cert-chain $/ca/cert-chain.pem --bundle $/bundle3"));
    assert_eq!(machine.read("bundle3/cert-chain.pem"), machine.read("ca/cert-chain.pem"));
    // One of the directory's files in another location.
    machine.write("elsewhere.pem", p256().serialize_pem());
    machine.refused(&format!("{IMPORT} --ca-key $/elsewhere.pem"), &["elsewhere.pem: is not the key of"]);
}

/// The form of Istio's own sample: RSA in PKCS#1, no key identifiers, basicConstraints not critical, a DNS name.
#[test]
fn a_ca_of_the_shape_of_istios_sample() {
    let machine = Machine::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/sample-ca.sh");
    let made = std::process::Command::new(script).arg(machine.path("ca")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(machine.read("ca/ca-key.pem").starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let text = machine.openssl("x509 -in ca/ca-cert.pem -noout -text");
    assert!(!text.contains("Key Identifier") && !text.contains("Basic Constraints: critical"), "{text}");
    assert!(text.contains("DNS:ca.istio.io"), "{text}");
    let done = imports(&machine, IMPORT);
    assert!(!done.err.contains("warning"), "{done:?}");
}

/// A command that holds a key writes no core file; checked while it reads its standard input.
#[test]
fn no_command_leaves_its_memory_behind() {
    let machine = Machine::new();
    good(&machine);
    for words in [format!("{IMPORT} --ca-key -"), "issue --config $/none.toml --csr -".to_owned()] {
        if words.starts_with("issue") {
            // It reads its configuration first.
            machine.write("none.toml", machine.configuration());
        }
        let more = if words.starts_with("issue") {
            vec!["--spiffe-id".into(), "spiffe://cluster.local/ns/a/sa/b".into()]
        } else {
            machine.token()
        };
        let limits = machine.limits_while_it_reads(&words, &more);
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{words}: {line}");
    }
}

#[test]
fn import_refuses_ambiguous_and_unknown_tokens() {
    let machine = Machine::new();
    good(&machine);
    machine.directory.init_token("twin");
    machine.directory.init_token("twin");
    let pin = machine.directory.pin_file().display().to_string();
    let with =
        |token: &str| machine.run(IMPORT, &["--token".into(), machine.uri(token), "--pin-file".into(), pin.clone()]);
    with("nowhere").refused(&["no token in", "`ca`"]);
    with("twin").refused(&["several tokens in", "add serial="]);
    assert!(!exists(&machine.path("bundle")));
    // Import into two tokens at once.
    machine.directory.init_token("second");
    let both: Vec<String> = ["--token", &machine.uri("ca"), "--token", &machine.uri("second"), "--pin-file", &pin]
        .map(str::to_owned)
        .to_vec();
    let done = machine.run(&format!("{IMPORT} --output json"), &both);
    assert_eq!(done.status, 0, "{done:?}");
    let value: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(value["tokens"].as_array().unwrap().len(), 2);
    // The second token holds it, so the file may be removed.
    let done = machine.run(&format!("{IMPORT} --remove-key-file"), &both);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(!exists(&machine.path("ca/ca-key.pem")), "{done:?}");
}

/// Each function that an import needs may fail: nothing incomplete is left, and the next import succeeds.
#[test]
fn each_function_may_fail() {
    let machine = Machine::new();
    good(&machine);
    let control = Control::new(machine.directory.path());
    let pin = machine.directory.pin_file().display().to_string();
    let token = ["--token", &through(&MODULE, &machine.uri("ca")), "--pin-file", &pin].map(str::to_owned);
    let keys = || {
        let pin = ["--pin-file".to_owned(), pin.clone()];
        let view = machine.run(&format!("inspect --output json --token {}", machine.uri("ca")), &pin);
        let view: serde_json::Value =
            serde_json::from_str(&view.out).unwrap_or_else(|error| panic!("{error}: {view:?}"));
        view["keys"].as_array().unwrap().len()
    };
    for function in
        ["C_OpenSession", "C_GenerateKeyPair", "C_UnwrapKey", "C_CreateObject", "C_CopyObject", "C_SignInit"]
    {
        let mark = control.mark();
        control.breaks(&format!("{function} return=0x30"));
        let done = machine.run(IMPORT, &token);
        assert_eq!(done.status, 1, "{function}: {done:?}");
        assert!(format!("{}{}", done.out, done.err).contains("CKR_DEVICE_ERROR"), "{function}: {done:?}");
        assert!(control.books_since(mark).faults_of(function) > 0, "{function}");
        assert_eq!(keys(), 0, "{function}: something stayed");
    }
    control.works();
    let done = machine.run(IMPORT, &token);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(keys() > 0);
}

/// This command only counts and does not delay.
#[test]
fn the_wrapping_pair_is_generated_once() {
    let machine = Machine::new();
    good(&machine);
    let control = Control::new(machine.directory.path());
    control.breaks("C_GenerateKeyPair delay=0");
    let token: Vec<String> = machine.token().iter().map(|word| through(&MODULE, word)).collect();
    let done = machine.run_in(IMPORT, &token, &control.environment());
    assert_eq!(done.status, 0, "{done:?}");
    let pairs = control.books_since(0).faults_of("C_GenerateKeyPair");
    assert_eq!(pairs, 3, "the wrapping pair, the log key and the canary key");
}

#[test]
fn several_tokens_are_reported_separately() {
    let machine = Machine::new();
    good(&machine);
    machine.directory.init_token("second");
    let control = Control::new(machine.directory.path());
    let pin = machine.directory.pin_file().display().to_string();
    let uris = ["ca", "second"].map(|name| through(&MODULE, &machine.uri(name)));
    let both = ["--token", &uris[0], "--token", &uris[1], "--pin-file", &pin].map(str::to_owned);
    // The first token's CA key; the helper keys come after it.
    control.breaks(&format!("C_CopyObject return=0x30 {}", once()));
    let done = machine.run(&format!("{IMPORT} --output json --remove-key-file"), &both);
    assert_eq!(done.status, 1, "{done:?}");
    let value: serde_json::Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let reported = |at: usize| &value["tokens"][at];
    assert!(reported(0)["error"].as_str().unwrap().contains("CKR_DEVICE_ERROR"), "{value}");
    assert!(reported(1)["error"].is_null() && reported(1)["receipt"].is_string(), "{value}");
    assert!(done.err.contains("not every token took the key") && exists(&machine.path("ca/ca-key.pem")), "{done:?}");
    // What is done stays done, and the rest is completed.
    let done = machine.run(&format!("{IMPORT} --output json --remove-key-file"), &both);
    assert_eq!(done.status, 0, "{done:?}");
    let value: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let how = [0, 1].map(|at| value["tokens"][at]["private_key"]["how"].as_str().unwrap().to_owned());
    assert_eq!(how, ["wrapped", "already_there"], "{value}");
    assert!(!exists(&machine.path("ca/ca-key.pem")), "{done:?}");
}

#[test]
fn key_file_is_removed_only_after_a_complete_import() {
    let machine = Machine::new();
    good(&machine);
    machine.refused(&format!("{IMPORT} --remove-key-file"), &["give a second --token, or --i-have-a-backup"]);
    assert!(exists(&machine.path("ca/ca-key.pem")));
    // Through a link the key would survive under its own name.
    let (key, elsewhere) = (machine.path("ca/ca-key.pem"), machine.path("elsewhere.pem"));
    fs::rename(&key, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &key).unwrap();
    let removing = format!("{IMPORT} --remove-key-file --i-have-a-backup");
    machine.refused(&removing, &["a symbolic link", "the file itself"]);
    fs::rename(&elsewhere, &key).unwrap();
    machine.done(&removing);
    assert!(!exists(&machine.path("ca/ca-key.pem")));
    machine.run("import --from $/ca", &machine.token()).usage(&["--bundle"]);
    machine.run("import --bundle $/b", &machine.token()).usage(&["--from"]);
    machine.run(IMPORT, &[]).usage(&["--token"]);
}
