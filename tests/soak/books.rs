//! Invariants of the issuance log, whatever has happened.

use std::{collections::HashSet, fs, path::Path};

use audit_log::{
    record::Line,
    show::{Filter, Follow},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::clients::{Held, hash};
use testkit::daemon::{Daemon, Site};

/// The intents of a log, by the hash of the TBSCertificate; their indices have no gaps.
pub fn intents(directory: &Path) -> HashSet<Vec<u8>> {
    let mut lines = Follow::new(directory, Filter::default()).unwrap();
    let mut intents = HashSet::new();
    let mut next = 0;
    while let Some((line, _)) = lines.next_line().unwrap() {
        if let Line::Intent(intent) = line {
            assert_eq!(intent.index, next, "the indices have a gap");
            next += 1;
            let new = intents.insert(hash(&BASE64_STANDARD.decode(&intent.tbs).unwrap()));
            assert!(new, "intent {} is duplicated", intent.index);
        }
    }
    intents
}

/// Every certificate of a client is in the log, the log verifies, and its indices have no gaps. Returns the number of
/// intents.
pub fn are_right(site: &Site, held: &Held) -> u64 {
    let intents = intents(&site.log());
    let hashes = held.hashes();
    let missing = hashes.iter().filter(|hash| !intents.contains(*hash)).count();
    assert_eq!(missing, 0, "not in the log, of {} certificates of clients", hashes.len());
    let report = verify(site);
    assert_eq!(report["sound"], true, "{report}");
    assert_eq!(report["signatures_checked"], true, "{report}");
    assert!(report["checkpoints"].as_u64().unwrap() > 0, "{report}");
    let counted = report["intents"].as_u64().unwrap();
    assert_eq!(counted, u64::try_from(intents.len()).unwrap(), "{report}");
    let per_key: u64 =
        report["intents_per_ca_key"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(per_key, counted, "{report}");
    // The operator's own command, for some certificates.
    for certificate in held.sample().iter().rev().take(5) {
        let file = site.softhsm.path().join("held.pem");
        fs::write(&file, certificate).unwrap();
        let (log, file) = (site.log().display().to_string(), file.display().to_string());
        let output = site.run(&["log", "check-certificate", "--directory", &log, &file]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    counted
}

/// `log verify` with the keys of the receipts.
fn verify(site: &Site) -> Value {
    let directory = site.log().display().to_string();
    let mut arguments = ["--output", "json", "log", "verify", "--directory", &directory].map(str::to_owned).to_vec();
    for entry in fs::read_dir(site.bundle()).unwrap().flatten() {
        let receipt = fs::read_to_string(entry.path()).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        if let Some(key) = receipt.as_ref().and_then(|receipt| receipt["log_verifier_key"].as_str()) {
            arguments.extend(["--verifier-key".to_owned(), key.to_owned()]);
        }
    }
    let output = site.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

/// A metric with these labels, or without labels.
pub fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.get("/metrics").1;
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no metric {name}:\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
