//! The lines about revocation: CRLs about to be signed, and changes of the set of revoked certificates.

use serde::{Deserialize, Serialize};

use super::CallerField;
#[cfg(feature = "writer")]
use super::{REVOCATION_VERSION, hex};
#[cfg(feature = "writer")]
use crate::timestamp;
#[cfg(feature = "writer")]
use base64::{Engine, prelude::BASE64_STANDARD};

/// A CRL about to be signed. It is an intent: it has an index, and an outcome follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrlLine {
    /// [`super::REVOCATION_VERSION`].
    pub v: u8,
    /// Number of the line in the log.
    pub line: u64,
    /// Index of the intent, counted together with the certificates.
    pub index: u64,
    /// Time of the decision.
    pub time: String,
    /// The request ID, as in the daemon's log.
    pub request: String,
    /// The part of the daemon that publishes the CRL.
    pub caller: CallerField,
    /// The CRL number.
    pub number: u64,
    /// thisUpdate.
    pub this_update: String,
    /// nextUpdate.
    pub next_update: String,
    /// Number of revoked certificates in the CRL.
    pub entries: u64,
    /// SHA-256 of the CA's DER SubjectPublicKeyInfo, in hexadecimal.
    pub ca_key: String,
    /// The DER TBSCertList in Base64.
    pub tbs: String,
}

/// A change of the set of revoked certificates and blocks, from which this replica applies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationLine {
    /// [`super::REVOCATION_VERSION`].
    pub v: u8,
    /// Number of the line in the log.
    pub line: u64,
    /// When this replica began to apply the change.
    pub time: String,
    /// Revision of the state document that the change led to.
    pub revision: u64,
    /// When the operator made the change.
    pub changed: String,
    /// The operator: user name or ID, and host.
    pub by: String,
    /// What was done.
    pub action: RevocationAction,
    /// What was selected, as on the command line.
    pub selector: String,
    /// The reason, by its name in RFC 5280.
    pub reason: String,
    /// Whether certificates are denied to what was selected, or were until now.
    pub block: bool,
    /// Serial numbers of the certificates, in hexadecimal.
    pub serials: Vec<String>,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationAction {
    /// Certificates on hold were released.
    Released,
    /// Certificates were revoked.
    Revoked,
    /// A block was lifted.
    Unblocked,
}

#[cfg(feature = "writer")]
impl CrlLine {
    /// The line of a CRL; the writer sets the numbers.
    pub(crate) fn new(intent: &crate::CrlIntent) -> Self {
        let tbs = &intent.tbs;
        Self {
            v: REVOCATION_VERSION,
            line: 0,
            index: 0,
            time: timestamp::format(intent.time),
            request: intent.request_id.clone(),
            caller: intent.caller.clone(),
            number: tbs.number(),
            this_update: timestamp::format(tbs.this_update()),
            next_update: timestamp::format(tbs.next_update()),
            entries: u64::try_from(tbs.entries()).unwrap_or(u64::MAX),
            ca_key: hex(&tbs.issuer().public_key().fingerprint()),
            tbs: BASE64_STANDARD.encode(tbs.der()),
        }
    }
}
