//! hsm-config: the commands of each file, as they are written, from nothing to a daemon that is ready.

use std::{path::Path, process::Command};

use crate::harness::PROGRAM;

/// Follows a file with a plug-in CA of a type of key.
fn follow(name: &str, key: &str) {
    let programs = Path::new(PROGRAM).parent().unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=10", "300", "tests/hsm-config.sh", name, key])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{name}: {text}");
}

#[test]
#[ignore = "needs root and namespaces: make test-tokens"]
fn softhsm_is_set_up_as_described() {
    follow("softhsm", "rsa-2048");
}

#[test]
#[ignore = "needs root and namespaces: make test-tokens"]
fn kryoptic_is_set_up_as_described() {
    follow("kryoptic", "p256");
}

#[test]
#[ignore = "needs root and namespaces: make test-tokens"]
fn nss_is_set_up_as_described() {
    follow("nss", "rsa-2048");
}

#[test]
#[ignore = "needs root and namespaces: make test-tokens"]
fn p11_kit_is_set_up_as_described() {
    follow("p11-kit", "p256");
}

#[test]
#[ignore = "needs root and namespaces: make test-tokens"]
fn opencryptoki_is_set_up_as_described() {
    follow("opencryptoki", "rsa-2048");
}

#[test]
#[ignore = "needs root and namespaces: make test-tokens"]
fn tpm2_pkcs11_is_set_up_as_described() {
    follow("tpm2-pkcs11", "p256");
}
