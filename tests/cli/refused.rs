//! `import`: every invalid plug-in CA, token, PIN and bundle is rejected with all reasons, and the token is not
//! modified.

use std::fs;

use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, date_time_ymd};

use super::{
    harness::{Machine, exists, pkcs11_spy},
    import::{Files, IMPORT, authority, good, imports, p256},
};
use testkit::{
    faulty::{Control, MODULE, through},
    softhsm::module_path,
};

/// Name, modification of valid files, and the expected reasons.
type Bad = (&'static str, fn(&Machine), &'static [&'static str]);

fn make_fifo(machine: &Machine, name: &str) {
    fs::remove_file(machine.path(name)).unwrap();
    nix::unistd::mkfifo(&machine.path(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Every bad plug-in CA.
const BAD: [Bad; 29] = [
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
        &["cert-chain.pem: cannot be read: it is a directory"],
    ),
    (
        "a directory for the key",
        |m| {
            fs::remove_file(m.path("ca/ca-key.pem")).unwrap();
            fs::create_dir(m.path("ca/ca-key.pem")).unwrap();
        },
        &["ca-key.pem: cannot be read: it is a directory"],
    ),
    ("a FIFO for the key", |m| make_fifo(m, "ca/ca-key.pem"), &["ca-key.pem: cannot be read: it is a FIFO"]),
    ("a FIFO for the chain", |m| make_fifo(m, "ca/cert-chain.pem"), &["cert-chain.pem: cannot be read: it is a FIFO"]),
    (
        "key and certificate in each other's place",
        |m| {
            let (key, certificate) = (m.read("ca/ca-key.pem"), m.read("ca/ca-cert.pem"));
            m.write("ca/ca-key.pem", certificate);
            m.write("ca/ca-cert.pem", key);
        },
        &[
            "ca-cert.pem: line 1: holds a `PRIVATE KEY`; keep the private key out of this public file",
            "ca-key.pem: there is no private key in it, but a certificate; give the file with the private key",
        ],
    ),
    ("a damaged certificate", |m| damage(m, "ca-cert.pem"), &["ca-cert.pem: line "]),
    ("a damaged root", |m| damage(m, "root-cert.pem"), &["root-cert.pem: line "]),
    ("a damaged key", |m| damage(m, "ca-key.pem"), &["ca-key.pem: ", "line "]),
    (
        "a key among the certificates",
        |m| {
            m.write("ca/cert-chain.pem", m.read("ca/ca-key.pem"));
        },
        &["cert-chain.pem: line 1: holds a `PRIVATE KEY`; keep the private key out of this public file"],
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
    (
        "RSA of 4104 bits",
        |m| openssl_key(m, "genrsa -out ca/ca-key.pem 4104"),
        &["4104 bits; 2048 to 4096 are accepted"],
    ),
    (
        "P-521",
        |m| openssl_key(m, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out ca/ca-key.pem"),
        &["ca-cert.pem", "ca-key.pem: the key is P-521, which is not supported"],
    ),
    (
        "Ed448",
        |m| openssl_key(m, "genpkey -algorithm ED448 -out ca/ca-key.pem"),
        &["ca-cert.pem", "ca-key.pem: the key is Ed448, which is not supported"],
    ),
    (
        "the root first in ca-cert.pem",
        |m| {
            m.write("ca/ca-cert.pem", format!("{}{}", m.read("ca/root-cert.pem"), m.read("ca/ca-cert.pem")));
        },
        &["ca-key.pem: is the key of the certificate on line ", "put that certificate first in"],
    ),
    (
        "the CA and the root swapped",
        |m| {
            let (ca, root) = (m.read("ca/ca-cert.pem"), m.read("ca/root-cert.pem"));
            m.write("ca/ca-cert.pem", root);
            m.write("ca/root-cert.pem", ca);
        },
        &["ca-key.pem: is the key of the certificate on line 1", "the two files are swapped"],
    ),
    (
        "base64 of a key",
        |m| {
            m.write("ca/ca-key.pem", "LS0tLS1CRUdJTg==");
        },
        &["ca-key.pem: is base64 of PEM", "base64 -di "],
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

/// A self-signed CA with a key made by openssl.
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
fn all_reasons_are_reported_at_once() {
    let machine = Machine::new();
    change(&machine, |files| {
        files.ca.not_after = date_time_ymd(2021, 1, 1);
        files.ca.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    machine.write("ca/ca-key.pem", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem());
    let wrong = machine.pin_file("wrong", "999999\n");
    let token = ["--token".into(), machine.uri("ca"), "--pin-file".into(), wrong.display().to_string()];
    let done = machine.run(&format!("{IMPORT} --output json"), &token);
    done.refused(&["expired at 2021", "keyCertSign", "ca-key.pem: is not the key of", "refuses the PIN"]);
    let error: serde_json::Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!(error["reasons"].as_array().unwrap().len(), 4, "{error}");
    assert!(!done.err.contains("999999"), "{done:?}");

    // A missing file does not hide problems of other files or of the token; neither does a missing key.
    fs::remove_file(machine.path("ca/cert-chain.pem")).unwrap();
    let all = ["cert-chain.pem: is missing", "expired at 2021", "keyCertSign", "is not the key of", "refuses the PIN"];
    let done = machine.run(IMPORT, &token);
    done.refused(&all);
    assert_eq!(done.err.matches("\n  - ").count(), all.len(), "{done:?}");
    for file in ["ca-cert.pem", "ca-key.pem"] {
        fs::remove_file(machine.path(&format!("ca/{file}"))).unwrap();
        let missing = format!("{file}: is missing");
        machine.run(IMPORT, &token).refused(&["cert-chain.pem: is missing", &missing, "refuses the PIN"]);
    }
    machine.run("import --from $/nowhere --bundle $/bundle", &token).refused(&[
        "--from",
        "is not a directory",
        "refuses the PIN",
    ]);
    good(&machine);
    fs::remove_file(machine.path("ca/root-cert.pem")).unwrap();
    machine.write("file", "");
    machine.run("import --from $/ca --bundle $/file/below", &token).refused(&[
        "root-cert.pem: is missing",
        "--bundle",
        "file: cannot be written",
        "refuses the PIN",
    ]);
}

/// The token hides its objects, so that objects created in it are not found again.
#[test]
fn an_import_that_fails_half_way_leaves_the_token_and_the_key_file_as_they_were() {
    let machine = Machine::new();
    good(&machine);
    machine.done("generate --algorithm p256 --label older --csr $/older.csr --subject CN=older");
    let before = machine.contents();
    let control = Control::new(machine.directory.path());
    control.breaks("C_FindObjects hide");
    let token: Vec<String> = machine.token().iter().map(|word| through(&MODULE, word)).collect();
    let words = format!("{IMPORT} --remove-key-file --i-have-a-backup");
    let done = machine.run_in(&words, &token, &control.environment());
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.out.contains("FAILED: ") && done.out.contains("the token holds no private key"), "{done:?}");
    assert!(!done.out.contains("bundle:"), "none is claimed: {done:?}");
    assert!(done.err.contains("not every token took the key"), "{done:?}");
    assert!(control.books_since(0).faults_of("C_FindObjects") > 3, "the fault did not occur");
    assert_eq!(machine.contents(), before, "not exactly the created objects were removed");
    assert!(exists(&machine.path("ca/ca-key.pem")), "the key file was removed");
    assert!(!exists(&machine.path("bundle")), "a bundle was written");
    control.breaks("");
    let done = machine.run_in(&words, &token, &control.environment());
    assert_eq!(done.status, 0, "{done:?}");
    assert!(!exists(&machine.path("ca/ca-key.pem")));
}

/// Verified with pkcs11-spy, which logs every call.
#[test]
fn a_wrong_pin_is_tried_once_whatever_else_is_wrong() {
    let machine = Machine::new();
    good(&machine);
    let wrong = machine.pin_file("wrong", "999999\n").display().to_string();
    for files in ["good", "expired", "missing"] {
        match files {
            "expired" => change(&machine, |files| files.ca.not_after = date_time_ymd(2021, 1, 1)),
            "missing" => fs::remove_file(machine.path("ca/ca-key.pem")).unwrap(),
            _ => {}
        }
        let calls = machine.path("calls");
        let token = format!("pkcs11:token=ca?module-path={}", pkcs11_spy().display());
        let spied = [("PKCS11SPY", module_path()), ("PKCS11SPY_OUTPUT", calls.clone())];
        let spied = spied.map(|(name, value)| (name.to_owned(), value.display().to_string()));
        let done = machine.run_in(IMPORT, &["--token".into(), token, "--pin-file".into(), wrong.clone()], &spied);
        done.refused(&["refuses the PIN"]);
        let reported = fs::read_to_string(&calls).unwrap();
        assert_eq!(reported.lines().filter(|line| line.ends_with(": C_Login")).count(), 1, "{files}: {reported}");
        fs::remove_file(calls).unwrap();
    }
}

#[test]
fn a_token_that_lacks_the_mechanism_is_refused() {
    if !testkit::softhsm::is_softhsm() {
        return;
    }
    let machine = Machine::new();
    good(&machine);
    let before = machine.token_files();
    let conf = machine.directory.conf();
    let usual = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{usual}slots.mechanisms = CKM_RSA_PKCS_KEY_PAIR_GEN,CKM_RSA_PKCS\n")).unwrap();
    machine.refused(
        IMPORT,
        &["nothing was imported", "the token `ca` cannot sign with a P-256 key", "use a token that can"],
    );
    // The token can sign but not unwrap.
    fs::write(&conf, format!("{usual}slots.mechanisms = CKM_ECDSA,CKM_RSA_PKCS_KEY_PAIR_GEN\n")).unwrap();
    machine.refused(IMPORT, &["cannot unwrap a P-256 key", "--allow-plaintext-import imports it in the clear"]);
    assert_eq!(machine.token_files(), before);
    fs::write(&conf, usual).unwrap();
    imports(&machine, IMPORT);
}

#[test]
fn unwritable_bundle_directory_is_reported_before_the_token_is_used() {
    let machine = Machine::new();
    good(&machine);
    let before = machine.token_files();
    machine.write("file", "");
    for (bundle, reason) in [
        ("$/file", "file: is not a directory"),
        ("$/file/below", "file: cannot be written"),
        ("/proc/nothing/bundle", "/proc: cannot be written"),
        ("$/ca", "the private key's file lies there, and the bundle is public; name another directory"),
    ] {
        machine
            .refused(&format!("import --from $/ca --bundle {bundle}"), &["nothing was imported", "--bundle", reason]);
        machine.refused(&format!("import --from $/ca --bundle {bundle} --dry-run"), &[reason]);
    }
    machine
        .run(IMPORT, &[machine.token(), vec!["--label".into(), String::new()]].concat())
        .refused(&["--label must have"]);
    assert_eq!(machine.token_files(), before);
    assert!(exists(&machine.path("ca/ca-key.pem")));
}
