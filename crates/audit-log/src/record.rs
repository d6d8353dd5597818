//! The lines of the log: one JSON object each, in a stable format (docs/ISSUANCE-LOG.md).
//!
//! Pure. Fields are written in the order of the structs below. A new field or meaning requires a new [`VERSION`];
//! readers reject unknown versions and fields, since a line that is only partly understood proves nothing.

mod ceremony;
mod revocation;

use std::{net::IpAddr, time::SystemTime};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use super::timestamp;
pub use ceremony::{CEREMONY_VERSION, CeremonyLine, CeremonyPhase};
pub use revocation::{CrlLine, RevocationAction, RevocationLine};

/// The version of the format, in every line but those of [`REVOCATION_VERSION`].
pub const VERSION: u8 = 1;

/// The version of lines that only newer programs read: CRLs, revocations, and intents whose caller has a node.
pub const REVOCATION_VERSION: u8 = 2;

/// Maximum length in bytes of a line that readers accept; lines with our certificates are much shorter.
pub const LINE_MAX: usize = 1 << 20;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// A ceremony has begun or ended.
    Ceremony(Box<CeremonyLine>),
    /// A CRL about to be signed.
    Crl(Box<CrlLine>),
    /// A certificate about to be signed.
    Intent(Box<IntentLine>),
    /// The result of an intent.
    Outcome(OutcomeLine),
    /// Retention removed the segments before a line.
    Retired(RetiredLine),
    /// Certificates were revoked or released.
    Revocation(Box<RevocationLine>),
    /// A write to a segment failed; the segment ended there and the log continued in a new one.
    Sealed(SealedLine),
}

/// A certificate about to be signed. This line alone proves what was intended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentLine {
    /// [`VERSION`].
    pub v: u8,
    /// Number of the line in the log, counted from 0; the index of its leaf in the tree.
    pub line: u64,
    /// Index of the intent, counted from 0 without gaps.
    pub index: u64,
    /// Time of the policy decision.
    pub time: String,
    /// The request ID, as in the daemon's log and in the client's error.
    pub request: String,
    /// The authenticated caller.
    pub caller: CallerField,
    /// The granted names, each with its type: `URI:`, `DNS:` or `IP:`.
    pub names: Vec<String>,
    /// `leaf`, `intermediate`, `self-signed-root`, or `certificate-authority` for the CA of a ceremony.
    pub profile: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Start of the validity.
    pub not_before: String,
    /// End of the validity.
    pub not_after: String,
    /// SHA-256 of the subject's DER SubjectPublicKeyInfo, in hexadecimal.
    pub spki_sha256: String,
    /// SHA-256 of the CA's DER SubjectPublicKeyInfo, in hexadecimal.
    pub ca_key: String,
    /// The DER TBSCertificate in Base64.
    pub tbs: String,
}

/// The authenticated caller of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerField {
    /// Authentication method.
    pub method: String,
    /// The authenticated identity.
    pub identity: String,
    /// Source address of its connection; null without one.
    pub peer: Option<IpAddr>,
    /// The Kubernetes node of the caller's pod, if the authentication has established it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
}

/// The result of an intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomeLine {
    /// [`VERSION`].
    pub v: u8,
    /// Number of the line in the log.
    pub line: u64,
    /// Index of the intent.
    pub index: u64,
    /// Time at which the outcome was known.
    pub time: String,
    /// The result.
    pub outcome: OutcomeKind,
    /// Label of the token that signed; only with `issued`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<String>,
    /// Why no certificate was released; only with `failed`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// The results of an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// No certificate was released.
    Failed,
    /// Signed, verified and released.
    Issued,
}

/// Retention removed the segments before a line. The newest such line applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredLine {
    /// [`VERSION`].
    pub v: u8,
    /// Number of the line in the log.
    pub line: u64,
    /// Time of the removal.
    pub time: String,
    /// Number of the first line that is kept.
    pub before: u64,
}

/// A write to a segment failed; bytes after its last durable one are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedLine {
    /// [`VERSION`].
    pub v: u8,
    /// Number of the line in the log.
    pub line: u64,
    /// Time of the failure.
    pub time: String,
    /// Number of the first line of the segment that ended.
    pub segment: u64,
    /// Its last durable offset in bytes.
    pub bytes: u64,
    /// The I/O error.
    pub reason: String,
}

/// Not a valid line of the log.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The text is not JSON of the expected form.
    #[error("it is not a line of the issuance log: {0}")]
    Json(#[source] serde_json::Error),
    /// A field has an invalid value.
    #[error("its field {0:?} is malformed")]
    Field(&'static str),
    /// The line has the version of a newer program.
    #[error("its format is version {0}; this program reads version {VERSION} of such a line, or {REVOCATION_VERSION}")]
    Version(u8),
}

impl Line {
    /// Parses a line without its newline.
    ///
    /// # Errors
    /// If the version is unknown or the format invalid.
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let line: Self = serde_json::from_slice(text).map_err(LineError::Json)?;
        let (v, expected) = match &line {
            Self::Ceremony(l) => (l.v, CEREMONY_VERSION),
            Self::Crl(l) => (l.v, REVOCATION_VERSION),
            Self::Intent(l) => (l.v, l.version()),
            Self::Outcome(l) => (l.v, VERSION),
            Self::Retired(l) => (l.v, VERSION),
            Self::Revocation(l) => (l.v, REVOCATION_VERSION),
            Self::Sealed(l) => (l.v, VERSION),
        };
        if v != expected {
            return Err(LineError::Version(v));
        }
        if timestamp::parse(line.time()).is_none() {
            return Err(LineError::Field("time"));
        }
        Ok(line)
    }

    /// Number of the line.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self {
            Self::Ceremony(l) => l.line,
            Self::Crl(l) => l.line,
            Self::Intent(l) => l.line,
            Self::Outcome(l) => l.line,
            Self::Retired(l) => l.line,
            Self::Revocation(l) => l.line,
            Self::Sealed(l) => l.line,
        }
    }

    /// Index of the intent, for a certificate or a CRL about to be signed.
    #[must_use]
    pub fn intent_index(&self) -> Option<u64> {
        match self {
            Self::Crl(l) => Some(l.index),
            Self::Intent(l) => Some(l.index),
            Self::Ceremony(_) | Self::Outcome(_) | Self::Retired(_) | Self::Revocation(_) | Self::Sealed(_) => None,
        }
    }

    /// Time at which the line was made.
    #[must_use]
    pub fn time(&self) -> &str {
        match self {
            Self::Ceremony(l) => &l.time,
            Self::Crl(l) => &l.time,
            Self::Intent(l) => &l.time,
            Self::Outcome(l) => &l.time,
            Self::Retired(l) => &l.time,
            Self::Revocation(l) => &l.time,
            Self::Sealed(l) => &l.time,
        }
    }
}

#[cfg(feature = "writer")]
impl Line {
    /// Sets the number of the line.
    pub(super) fn set_number(&mut self, number: u64) {
        match self {
            Self::Ceremony(l) => l.line = number,
            Self::Crl(l) => l.line = number,
            Self::Intent(l) => l.line = number,
            Self::Outcome(l) => l.line = number,
            Self::Retired(l) => l.line = number,
            Self::Revocation(l) => l.line = number,
            Self::Sealed(l) => l.line = number,
        }
    }

    /// Sets the index of an intent; `false` if the line is not one.
    pub(super) fn set_intent_index(&mut self, index: u64) -> bool {
        match self {
            Self::Crl(l) => l.index = index,
            Self::Intent(l) => l.index = index,
            Self::Ceremony(_) | Self::Outcome(_) | Self::Retired(_) | Self::Revocation(_) | Self::Sealed(_) => {
                return false;
            }
        }
        true
    }

    /// Appends the line to a buffer, without a newline.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        #[expect(clippy::expect_used, reason = "a Vec takes everything, and no field of ours has a form without JSON")]
        serde_json::to_writer(to, self).expect("a line has a JSON form");
    }
}

impl IntentLine {
    /// The line of an intent; the writer sets the numbers.
    #[must_use]
    #[cfg(feature = "writer")]
    pub(crate) fn new(intent: &super::Intent) -> Self {
        let template = intent.tbs.template();
        Self {
            v: caller_version(&intent.caller),
            line: 0,
            index: 0,
            time: timestamp::format(intent.time),
            request: intent.request_id.clone(),
            caller: intent.caller.clone(),
            names: template.names.iter().map(ToString::to_string).collect(),
            profile: template.profile.as_str().to_owned(),
            serial: intent.tbs.serial().to_hex(),
            not_before: timestamp::format(template.not_before),
            not_after: timestamp::format(template.not_after),
            spki_sha256: hex(&template.public_key.fingerprint()),
            ca_key: hex(&intent.tbs.issuer().public_key().fingerprint()),
            tbs: BASE64_STANDARD.encode(intent.tbs.der()),
        }
    }

    /// The version that such a line has.
    fn version(&self) -> u8 {
        caller_version(&self.caller)
    }

    /// Time of the policy decision; `None` if the text is malformed.
    #[must_use]
    pub fn time(&self) -> Option<SystemTime> {
        timestamp::parse(&self.time)
    }

    /// The DER TBSCertificate; `None` if it is not valid Base64.
    #[must_use]
    pub fn tbs_der(&self) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(&self.tbs).ok()
    }
}

fn caller_version(caller: &CallerField) -> u8 {
    if caller.node.is_some() { REVOCATION_VERSION } else { VERSION }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const_hex::encode(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An intent line with artificial content.
    pub(crate) fn intent(tbs: &str) -> IntentLine {
        IntentLine {
            v: VERSION,
            line: 0,
            index: 0,
            time: "2026-01-31T23:59:59.007Z".to_owned(),
            request: "r\"1".to_owned(),
            caller: CallerField {
                method: "jwt".to_owned(),
                identity: "spiffe://td/ns/n/sa/a".to_owned(),
                peer: Some("10.1.2.3".parse().unwrap()),
                node: None,
            },
            names: vec!["URI:spiffe://td/ns/n/sa/a".to_owned()],
            profile: "leaf".to_owned(),
            serial: "0a".to_owned(),
            not_before: "2026-01-31T23:57:59.000Z".to_owned(),
            not_after: "2026-02-01T23:59:59.000Z".to_owned(),
            spki_sha256: "aa".repeat(32),
            ca_key: "bb".repeat(32),
            tbs: tbs.to_owned(),
        }
    }

    #[test]
    fn the_form_of_version_1_stays() {
        let mut line = Line::Intent(Box::new(intent("AAEC")));
        line.set_number(7);
        let mut text = Vec::new();
        line.write(&mut text);
        let expected = concat!(
            r#"{"type":"intent","v":1,"line":7,"index":0,"time":"2026-01-31T23:59:59.007Z","request":"r\"1","#,
            r#""caller":{"method":"jwt","identity":"spiffe://td/ns/n/sa/a","peer":"10.1.2.3"},"#,
            r#""names":["URI:spiffe://td/ns/n/sa/a"],"profile":"leaf","serial":"0a","#,
            r#""not_before":"2026-01-31T23:57:59.000Z","not_after":"2026-02-01T23:59:59.000Z","spki_sha256":""#,
        );
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with(r#","tbs":"AAEC"}"#), "{text}");
        assert_eq!(Line::parse(text.as_bytes()).unwrap(), line);

        let outcomes = [
            r#"{"type":"outcome","v":1,"line":8,"index":0,"time":"2026-01-31T23:59:59.008Z","outcome":"issued","token":"a"}"#,
            r#"{"type":"outcome","v":1,"line":8,"index":0,"time":"2026-01-31T23:59:59.008Z","outcome":"failed","reason":"no"}"#,
            r#"{"type":"retired","v":1,"line":8,"time":"2026-01-31T23:59:59.008Z","before":3}"#,
            r#"{"type":"sealed","v":1,"line":8,"time":"2026-01-31T23:59:59.008Z","segment":3,"bytes":77,"reason":"EIO"}"#,
        ];
        for text in outcomes {
            let mut again = Vec::new();
            let line = Line::parse(text.as_bytes()).unwrap();
            assert_eq!(line.number(), 8);
            line.write(&mut again);
            assert_eq!(String::from_utf8(again).unwrap(), text);
        }
    }

    #[test]
    fn the_form_of_version_2_stays() {
        let mut with_node = intent("AAEC");
        with_node.v = 2;
        with_node.line = 8;
        with_node.caller.node = Some("worker-1".to_owned());
        let mut text = Vec::new();
        Line::Intent(Box::new(with_node)).write(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(r#""peer":"10.1.2.3","node":"worker-1"},"#), "{text}");
        let lines = [
            text.as_str(),
            concat!(
                r#"{"type":"crl","v":2,"line":8,"index":3,"time":"2026-01-31T23:59:59.008Z","request":"r","#,
                r#""caller":{"method":"internal","identity":"internal:crl","peer":null},"number":7,"#,
                r#""this_update":"2026-01-31T23:57:59.000Z","next_update":"2026-03-02T23:59:59.000Z","entries":1,"#,
                r#""ca_key":"bb","tbs":"AAEC"}"#
            ),
            concat!(
                r#"{"type":"revocation","v":2,"line":8,"time":"2026-01-31T23:59:59.008Z","revision":4,"#,
                r#""changed":"2026-01-31T23:59:58.000Z","by":"alice (uid 1000) at host","action":"revoked","#,
                r#""selector":"--serial 0a","reason":"keyCompromise","block":false,"serials":["0a"]}"#
            ),
            concat!(
                r#"{"type":"ceremony","v":2,"line":8,"time":"2026-01-31T23:59:59.008Z","phase":"begun","#,
                r#""act":"create_root","file_sha256":"cc","participants":["Ann (operator)"]}"#
            ),
            concat!(
                r#"{"type":"ceremony","v":2,"line":8,"time":"2026-01-31T23:59:59.008Z","phase":"failed","#,
                r#""act":"create_root","file_sha256":"cc","participants":["Ann (operator)"],"#,
                r#""transcript_sha256":"dd","reason":"no"}"#
            ),
        ];
        for text in lines {
            let mut again = Vec::new();
            let line = Line::parse(text.as_bytes()).unwrap();
            assert_eq!(line.number(), 8);
            line.write(&mut again);
            assert_eq!(String::from_utf8(again).unwrap(), text);
            assert!(Line::parse(text.replace("\"v\":2", "\"v\":1").as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn foreign_lines_are_refused() {
        for text in [
            "",
            "{}",
            "null",
            r#"{"type":"retired","v":2,"line":8,"time":"2026-01-31T23:59:59.008Z","before":3}"#,
            r#"{"type":"retired","v":1,"line":8,"time":"2026-01-31","before":3}"#,
            r#"{"type":"retired","v":1,"line":8,"time":"2026-01-31T23:59:59.008Z","before":3,"more":1}"#,
            r#"{"type":"retired","v":1,"line":8,"time":"2026-01-31T23:59:59.008Z"}"#,
            r#"{"type":"other","v":1,"line":8,"time":"2026-01-31T23:59:59.008Z","before":3}"#,
            r#"{"type":"retired","v":1,"line":8,"time":"2026-01-31T23:59:59.008Z","before":3} x"#,
        ] {
            assert!(Line::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
