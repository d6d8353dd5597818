//! Input on a terminal, and a key from standard input.

use std::fs;

use super::{
    harness::{Machine, exists},
    import::good,
};
use testkit::softhsm::PIN;

const IMPORT: &str = "import --from $/ca --bundle $/bundle";

#[test]
fn a_measurement_shows_its_progress_at_a_terminal() {
    let machine = Machine::new();
    good(&machine);
    machine.done(IMPORT);
    let words = "token --seconds 0.3 --rounds 2 --sessions 1";
    let (status, shown) = machine.bench_at_terminal(words, &machine.token());
    assert_eq!(status, 0, "{shown}");
    assert!(shown.contains("measuring") && shown.contains("signatures/s"), "{shown}");
    let plain = machine.bench(words, &machine.token());
    assert!(plain.status.success() && plain.stderr.is_empty(), "{plain:?}");
}

fn without_pin(machine: &Machine) -> Vec<String> {
    vec!["--token".into(), machine.uri("ca")]
}

fn encrypt(machine: &Machine) {
    machine
        .openssl("pkcs8 -topk8 -in ca/ca-key.pem -out encrypted -v2 aes-256-cbc -iter 2048 -passout pass:open-sesame");
    fs::rename(machine.path("encrypted"), machine.path("ca/ca-key.pem")).unwrap();
}

#[test]
fn the_pin_is_asked_for_and_never_shown() {
    let machine = Machine::new();
    good(&machine);
    let (status, shown) = machine.at_terminal(IMPORT, &without_pin(&machine), &[("User PIN of token ca: ", PIN)]);
    assert_eq!(status, 0, "{shown}");
    assert!(!shown.contains(PIN), "{shown}");
    assert!(exists(&machine.path("bundle/ca-cert.pem")));
    let (status, shown) = machine.at_terminal("inspect", &without_pin(&machine), &[("User PIN of token ca: ", PIN)]);
    assert_eq!(status, 0, "{shown}");
    assert!(shown.contains("P-256"), "{shown}");
}

#[test]
fn a_wrong_pin_is_asked_for_once_and_tried_once() {
    let machine = Machine::new();
    good(&machine);
    let (status, shown) = machine.at_terminal(IMPORT, &without_pin(&machine), &[("User PIN", "000000")]);
    assert_eq!(status, 1, "{shown}");
    assert!(shown.contains("refuses the PIN") && !shown.contains("000000"), "{shown}");
    assert_eq!(shown.matches("User PIN of token").count(), 1, "{shown}");
    assert!(!exists(&machine.path("bundle")));
}

#[test]
fn the_passphrase_of_an_encrypted_key_is_asked_for_and_never_shown() {
    let machine = Machine::new();
    good(&machine);
    encrypt(&machine);
    let (status, shown) = machine.at_terminal(IMPORT, &machine.token(), &[("ca-key.pem: ", "close-sesame")]);
    assert_eq!(status, 1, "{shown}");
    assert!(shown.contains("the passphrase is wrong"), "{shown}");
    let both = [("Passphrase of ", "open-sesame"), ("User PIN of token ca: ", PIN)];
    let (status, shown) = machine.at_terminal(IMPORT, &without_pin(&machine), &both);
    assert_eq!(status, 0, "{shown}");
    assert!(!shown.contains("sesame") && !shown.contains(PIN), "{shown}");
}

#[test]
fn a_key_comes_by_standard_input() {
    let machine = Machine::new();
    good(&machine);
    let key = fs::read(machine.path("ca/ca-key.pem")).unwrap();
    fs::remove_file(machine.path("ca/ca-key.pem")).unwrap();
    let import = format!("{IMPORT} --ca-key -");
    machine.run(&import, &machine.token()).refused(&["standard input: "]);
    machine.run_with(&import, &machine.token(), b"no key\n").refused(&["standard input: "]);
    machine
        .run_with(&import, &machine.token(), "x".repeat(70_000).as_bytes())
        .refused(&["standard input: larger than 64 KiB"]);
    // There is no file to remove.
    let removing = format!("{import} --remove-key-file --i-have-a-backup");
    machine.run_with(&removing, &machine.token(), &key).refused(&["standard input", "leave --remove-key-file out"]);
    assert!(!exists(&machine.path("bundle")));
    let done = machine.run_with(&import, &machine.token(), &key);
    assert_eq!(done.status, 0, "{done:?}");
    let view = machine.json("inspect --bundle $/bundle");
    assert_eq!(view["bundle"]["key_in_token"], true, "{view}");
}
