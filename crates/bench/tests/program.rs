//! Tests the program as users run it. Because this package has an integration test, cargo also builds the program for
//! the tests of the whole workspace, which run it against a daemon.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn help_names_both_measurements() {
    let output = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca-bench")).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("endpoint") && text.contains("token"), "{text}");
}
