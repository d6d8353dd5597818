//! What the log, the module and the clients have seen must fit together.

use std::{collections::HashSet, fs};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use der::{Decode, DecodePem, Encode};
use istio_hsm_ca::{pki::PublicKey, token::key::hex};
use x509_cert::Certificate;

use super::clients::Seen;
use crate::common::{daemon::Site, faulty::Books};

/// Compares the books of a daemon that has ended. Answers what is wrong with them.
pub fn compare(site: &Site, module: &Books, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let report = site.verified_log();
    let intents = intents(site);
    if report["intents"].as_u64() != Some(intents.len().try_into().unwrap()) {
        wrong.push(format!("the log holds {} different intents, and `log verify` tells {report}", intents.len()));
    }
    let ca = Certificate::from_pem(fs::read(site.bundle().join("ca-cert.pem")).unwrap()).unwrap();
    let key = PublicKey::from_spki_der(&ca.tbs_certificate().subject_public_key_info().to_der().unwrap()).unwrap();
    let id = hex(&key.key_id());
    // What the CA's key was asked to sign is the hash of a certificate that the log had before.
    let signed: Vec<&String> = module.signed.iter().filter(|(key, _)| *key == id).map(|(_, input)| input).collect();
    for input in signed.iter().filter(|input| !intents.contains(**input)) {
        wrong.push(format!("the CA's key was asked to sign {input}, which is not in the log"));
    }
    if signed.len() < seen.received.len() {
        wrong.push(format!("{} certificates of {} signatures", seen.received.len(), signed.len()));
    }
    for (client, _, leaf) in &seen.received {
        let tbs = Certificate::from_der(leaf).unwrap().tbs_certificate().to_der().unwrap();
        let hash = hex(digest(&SHA256, &tbs).as_ref());
        if !intents.contains(&hash) {
            wrong.push(format!("client {client} has a certificate that is not in the log"));
        }
    }
    wrong
}

/// The hash of each certificate that the log says was to be signed.
fn intents(site: &Site) -> HashSet<String> {
    let mut intents = HashSet::new();
    for file in fs::read_dir(site.log())
        .unwrap()
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "jsonl"))
    {
        // An open segment has room for more behind its last line; a closed log does not.
        for line in fs::read_to_string(file.path()).unwrap().trim_end_matches('\0').lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["type"] == "intent" {
                let tbs = BASE64_STANDARD.decode(line["tbs"].as_str().unwrap()).unwrap();
                intents.insert(hex(digest(&SHA256, &tbs).as_ref()));
            }
        }
    }
    intents
}
