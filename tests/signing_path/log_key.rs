//! A CA's token without a log key: checkpoints are off, or another token signs them, and certificates do not depend on it.

use std::{process::Command, time::Duration};

use audit_log::checkpoint;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use testkit::{
    daemon::{Daemon, Site},
    plug_in::PlugIn,
    softhsm::{PIN, module_path},
    wait::eventually,
};
use token::key::LOG_KEY_LABEL;

const ORIGIN: &str = "test.invalid/two-tokens";

/// A site whose token has lost its log key.
fn without_log_key() -> Site {
    let site = Site::new(&PlugIn::intermediate());
    for half in ["privkey", "pubkey"] {
        let output = Command::new("pkcs11-tool")
            .args(["--module", module_path().to_str().unwrap(), "--token-label", "istio-ca", "--login", "--pin", PIN])
            .args(["--delete-object", "--type", half, "--label", LOG_KEY_LABEL])
            .env("SOFTHSM2_CONF", site.softhsm.conf())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    site
}

/// The line about checkpoints on `/readyz`, which must say that the daemon is ready.
fn checkpoints(daemon: &Daemon) -> String {
    let (code, body) = daemon.get("/readyz");
    assert_eq!(code, 200, "{body}");
    body.lines().find(|line| line.contains("checkpoints of the issuance log")).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_log_key_is_reported_once_and_shown_while_certificates_are_issued() {
    let site = without_log_key();
    let daemon = site.serve("");
    daemon.send(daemon.ask()).await.unwrap();
    let off = "no token has a log key";
    eventually("checkpoints are off", async || checkpoints(&daemon).contains(off)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(checkpoints(&daemon).contains(off), "it is shown for as long as it lasts");
    daemon.send(daemon.ask()).await.unwrap();
    let said: Vec<Value> = daemon.lines().into_iter().filter(|line| line.to_string().contains(off)).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(!said[0].to_string().contains("CA key"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn token_named_by_the_log_section_signs_the_checkpoints() {
    let site = without_log_key();
    site.softhsm.init_token("log");
    let uris = [site.uri(), site.softhsm.uri("log")];
    let made = site.run(&["--output", "json", "generate", "--log-key", "--token", &uris[1]]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let raw = BASE64_STANDARD.decode(made["raw"].as_str().unwrap()).unwrap();
    let key = checkpoint::verifier_key(ORIGIN, &raw.try_into().unwrap()).unwrap();

    let tokens = format!(
        "[[token]]\nname = \"ca\"\nuri = \"{}\"\n[[token]]\nname = \"log\"\nuri = \"{}\"\n[log]\ntoken = \"log\"\n\
         origin = \"{ORIGIN}\"\n",
        uris[0], uris[1]
    );
    let daemon = site.serve(&tokens);
    for _ in 0..5 {
        daemon.send(daemon.ask()).await.unwrap();
    }
    assert!(!checkpoints(&daemon).contains("off"), "{}", checkpoints(&daemon));
    let (status, lines) = daemon.stop();
    assert!(status.success(), "{lines}");
    let directory = site.log().display().to_string();
    let verified = site.run(&["--output", "json", "log", "verify", "--directory", &directory, "--verifier-key", &key]);
    let report: Value =
        serde_json::from_slice(&verified.stdout).unwrap_or_else(|error| panic!("{error}: {verified:?}"));
    assert_eq!((&report["sound"], &report["signatures_checked"]), (&true.into(), &true.into()), "{report}");
}
