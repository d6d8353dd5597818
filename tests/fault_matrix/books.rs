//! Compares the records of the log, the module and the clients.

use aws_lc_rs::digest::{SHA256, digest};
use der::{Decode, Encode};
use token::key::hex;
use x509_cert::Certificate;

use super::clients::Seen;
use testkit::{
    daemon::Site,
    faulty::{Books, proof_hash},
};

/// Compares the records after a daemon has ended. Returns the differences.
pub fn compare(site: &Site, module: &Books, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let report = site.verified_log();
    let intents = site.intents();
    if report["intents"].as_u64() != Some(intents.len().try_into().unwrap()) {
        wrong.push(format!("the log holds {} different intents, and `log verify` tells {report}", intents.len()));
    }
    let id = site.key_id();
    // All inputs signed with the CA key are hashes of certificates that were in the log before, or prove the key.
    let proof = proof_hash();
    let signed: Vec<&String> = module.signed.iter().filter(|(key, _)| *key == id).map(|(_, input)| input).collect();
    for input in signed.iter().filter(|input| ***input != proof && !intents.contains_key(**input)) {
        wrong.push(format!("the CA's key was asked to sign {input}, which is not in the log"));
    }
    if signed.len() < seen.received.len() {
        wrong.push(format!("{} certificates of {} signatures", seen.received.len(), signed.len()));
    }
    for (client, _, leaf) in &seen.received {
        let tbs = Certificate::from_der(leaf).unwrap().tbs_certificate().to_der().unwrap();
        let hash = hex(digest(&SHA256, &tbs).as_ref());
        if !intents.contains_key(&hash) {
            wrong.push(format!("client {client} has a certificate that is not in the log"));
        }
    }
    wrong
}
