//! `import`: good plug-in CAs go in, bad ones are refused with every reason and the token is left as it was.

use std::{fs, os::unix::fs::PermissionsExt};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};

use super::{
    common::faulty::{Control, MODULE, through, times},
    harness::{Done, Machine, exists},
};

const IMPORT: &str = "import --from $/ca --bundle $/bundle";

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// The files of a plug-in CA: an offline root and an intermediate.
struct Files {
    root: CertificateParams,
    ca: CertificateParams,
    key: KeyPair,
}

impl Files {
    fn new() -> Self {
        Self { root: authority("root"), ca: authority("intermediate"), key: p256() }
    }

    fn write(self, machine: &Machine) {
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

/// A good plug-in CA in `ca`.
pub fn good(machine: &Machine) {
    Files::new().write(machine);
}

fn imports(machine: &Machine, words: &str) -> Done {
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
    assert_eq!(machine.json("inspect")["keys"].as_array().unwrap().len(), 0, "a dry run makes nothing");
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
    assert_eq!(receipt["attributes"]["local"], false, "an imported key was outside");
    assert_eq!(receipt["key_sha256"], again["key_sha256"]);
    assert!(exists(&machine.path("ca/ca-key.pem")), "the key file stays unless it is named");
}

#[test]
fn a_renewed_certificate_takes_the_old_ones_place() {
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
    if !super::common::softhsm::is_softhsm() {
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

/// What is done to good files, and the words with which they are refused.
type Bad = (&'static str, fn(&Machine), &'static [&'static str]);

/// Every bad plug-in CA.
const BAD: [Bad; 19] = [
    ("no key file", |m| fs::remove_file(m.path("ca/ca-key.pem")).unwrap(), &["ca-key.pem: is missing"]),
    ("no certificate", |m| fs::remove_file(m.path("ca/ca-cert.pem")).unwrap(), &["ca-cert.pem: is missing"]),
    ("no root", |m| fs::remove_file(m.path("ca/root-cert.pem")).unwrap(), &["root-cert.pem: is missing"]),
    ("no chain", |m| fs::remove_file(m.path("ca/cert-chain.pem")).unwrap(), &["cert-chain.pem: is missing"]),
    (
        "a directory for a file",
        |m| {
            fs::remove_file(m.path("ca/cert-chain.pem")).unwrap();
            fs::create_dir(m.path("ca/cert-chain.pem")).unwrap();
        },
        &["cert-chain.pem: cannot be read"],
    ),
    ("a damaged certificate", |m| damage(m, "ca-cert.pem"), &["ca-cert.pem: line "]),
    ("a damaged root", |m| damage(m, "root-cert.pem"), &["root-cert.pem: line "]),
    ("a damaged key", |m| damage(m, "ca-key.pem"), &["ca-key.pem: ", "line "]),
    (
        "a key among the certificates",
        |m| {
            m.write("ca/cert-chain.pem", m.read("ca/ca-key.pem"));
        },
        &["cert-chain.pem: line 1: holds a `PRIVATE KEY`; this file is public"],
    ),
    (
        "another's key",
        |m| {
            m.write("ca/ca-key.pem", p256().serialize_pem());
        },
        &["ca-key.pem: is not the key of", "ca-cert.pem", "give the two that belong together"],
    ),
    (
        "no CA's certificate",
        |m| change(m, |f| f.ca.is_ca = IsCa::ExplicitNoCa),
        &["ca-cert.pem", "basicConstraints say CA:FALSE"],
    ),
    (
        "may not sign",
        |m| change(m, |f| f.ca.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        &["ca-cert.pem", "keyUsage lacks keyCertSign"],
    ),
    (
        "path length",
        |m| change(m, |f| f.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
        &["root-cert.pem", "pathLenConstraint"],
    ),
    ("expired", |m| change(m, |f| f.ca.not_after = date_time_ymd(2021, 1, 1)), &["ca-cert.pem", "expired at 2021"]),
    (
        "expired root",
        |m| change(m, |f| f.root.not_after = date_time_ymd(2021, 1, 1)),
        &["root-cert.pem", "expired at 2021"],
    ),
    (
        "not yet valid",
        |m| change(m, |f| f.ca.not_before = date_time_ymd(2098, 1, 1)),
        &["ca-cert.pem", "is not yet valid"],
    ),
    (
        "another root",
        |m| {
            let other = authority("another root").self_signed(&p256()).unwrap().pem();
            m.write("ca/root-cert.pem", &other);
            m.write("ca/cert-chain.pem", "");
        },
        &["ca-cert.pem", "leads to no root in"],
    ),
    ("RSA of 1024 bits", |m| openssl_key(m, "genrsa -out ca/ca-key.pem 1024"), &["1024 bits"]),
    ("an unusual exponent", |m| openssl_key(m, "genrsa -3 -out ca/ca-key.pem 2048"), &["exponent is not 65537"]),
];

fn change(machine: &Machine, change: fn(&mut Files)) {
    let mut files = Files::new();
    change(&mut files);
    files.write(machine);
}

fn damage(machine: &Machine, file: &str) {
    let text = machine.read(&format!("ca/{file}"));
    let (first, rest) = text.split_once('\n').unwrap();
    machine.write(&format!("ca/{file}"), format!("{first}\n!{rest}"));
}

/// A self-signed CA with a key that openssl makes.
fn openssl_key(machine: &Machine, make: &str) {
    machine.openssl(make);
    machine.openssl("req -x509 -key ca/ca-key.pem -days 3650 -subj /CN=self -out ca/ca-cert.pem");
    machine.write("ca/root-cert.pem", machine.read("ca/ca-cert.pem"));
    machine.write("ca/cert-chain.pem", "");
}

#[test]
fn bad_plug_in_cas_are_refused_and_the_token_is_unchanged() {
    let machine = Machine::new();
    let token = machine.token_files();
    for (name, spoil, reasons) in BAD {
        let _gone = fs::remove_dir_all(machine.path("ca"));
        good(&machine);
        spoil(&machine);
        let done = machine.run(IMPORT, &machine.token());
        assert_eq!(done.status, 1, "{name}: {done:?}");
        assert!(done.err.starts_with("error: nothing was imported"), "{name}: {done:?}");
        for reason in reasons {
            assert!(done.err.contains(reason), "{name}: {reason:?} is missing: {}", done.err);
        }
        assert_eq!(machine.token_files(), token, "{name}: the token was touched");
        assert!(!exists(&machine.path("bundle")), "{name}");
    }
    let _gone = fs::remove_dir_all(machine.path("ca"));
    good(&machine);
    imports(&machine, IMPORT);
}

#[test]
fn every_reason_is_told_at_once() {
    let machine = Machine::new();
    change(&machine, |files| {
        files.ca.not_after = date_time_ymd(2021, 1, 1);
        files.ca.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    machine.write("ca/ca-key.pem", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem());
    let wrong = machine.pin_file("wrong", "999999\n");
    let token = ["--token".into(), machine.uri("ca"), "--pin-file".into(), wrong.display().to_string()];
    let done = machine.run(&format!("{IMPORT} --output json"), &token);
    done.refused(&["expired at 2021", "keyCertSign", "refuses the PIN"]);
    let error: serde_json::Value = serde_json::from_str(&done.err).unwrap();
    assert!(error["reasons"].as_array().unwrap().len() >= 3, "{error}");
    assert!(!done.err.contains("999999"), "{done:?}");
}

#[test]
fn tokens() {
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
    // Into two tokens at once.
    machine.directory.init_token("second");
    let both: Vec<String> = ["--token", &machine.uri("ca"), "--token", &machine.uri("second"), "--pin-file", &pin]
        .map(str::to_owned)
        .to_vec();
    let done = machine.run(&format!("{IMPORT} --output json"), &both);
    assert_eq!(done.status, 0, "{done:?}");
    let value: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(value["tokens"].as_array().unwrap().len(), 2);
    // The second holds it, so that the file may go.
    let done = machine.run(&format!("{IMPORT} --remove-key-file"), &both);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(!exists(&machine.path("ca/ca-key.pem")), "{done:?}");
}

/// Any function that an import needs may fail: nothing half-made stays, and the next import is as if it never was.
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

#[test]
fn several_tokens_are_told_each_for_itself() {
    let machine = Machine::new();
    good(&machine);
    machine.directory.init_token("second");
    let control = Control::new(machine.directory.path());
    let pin = machine.directory.pin_file().display().to_string();
    let uris = ["ca", "second"].map(|name| through(&MODULE, &machine.uri(name)));
    let both = ["--token", &uris[0], "--token", &uris[1], "--pin-file", &pin].map(str::to_owned);
    // The first one's log key, canary key and the CA's.
    control.breaks(&format!("C_CopyObject return=0x30 {}", times(3)));
    let done = machine.run(&format!("{IMPORT} --output json --remove-key-file"), &both);
    assert_eq!(done.status, 1, "{done:?}");
    let value: serde_json::Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let told = |at: usize| &value["tokens"][at];
    assert!(told(0)["error"].as_str().unwrap().contains("CKR_DEVICE_ERROR"), "{value}");
    assert!(told(1)["error"].is_null() && told(1)["receipt"].is_string(), "{value}");
    assert!(done.err.contains("not every token took the key") && exists(&machine.path("ca/ca-key.pem")), "{done:?}");
    // What is done stays done, and the rest is made up for.
    let done = machine.run(&format!("{IMPORT} --output json --remove-key-file"), &both);
    assert_eq!(done.status, 0, "{done:?}");
    let value: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let how = [0, 1].map(|at| value["tokens"][at]["private_key"]["how"].as_str().unwrap().to_owned());
    assert_eq!(how, ["wrapped", "already_there"], "{value}");
    assert!(!exists(&machine.path("ca/ca-key.pem")), "{done:?}");
}

#[test]
fn the_key_file_goes_only_when_the_key_is_safe() {
    let machine = Machine::new();
    good(&machine);
    machine.refused(&format!("{IMPORT} --remove-key-file"), &["give a second --token, or --i-have-a-backup"]);
    assert!(exists(&machine.path("ca/ca-key.pem")));
    machine.done(&format!("{IMPORT} --remove-key-file --i-have-a-backup"));
    assert!(!exists(&machine.path("ca/ca-key.pem")));
    machine.run("import --from $/ca", &machine.token()).usage(&["--bundle"]);
    machine.run("import --bundle $/b", &machine.token()).usage(&["--from"]);
    machine.run(IMPORT, &[]).usage(&["--token"]);
}
