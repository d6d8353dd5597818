//! Searches the log: intents with their outcomes, by time, identity and serial number.

use std::{collections::HashMap, path::Path, time::SystemTime};

use der::{Reader as _, SliceReader, Tag, Tagged, asn1::AnyRef};
use serde::Serialize;

use super::{
    reader::Reader,
    record::{CeremonyLine, CeremonyPhase, CrlLine, IntentLine, Line, OutcomeLine, RevocationLine},
    timestamp,
    verify::ReadError,
};

/// Selects intents; a field that is not set matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Start of the period, inclusive.
    pub since: Option<SystemTime>,
    /// End of the period, exclusive.
    pub until: Option<SystemTime>,
    /// The caller, or a granted name with or without its type.
    pub identity: Option<String>,
    /// Serial number in hexadecimal; case, colons and leading zeros are ignored.
    pub serial: Option<String>,
}

/// An intent and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The intent's line.
    pub intent: IntentLine,
    /// The outcome's line; `None` while the request is in progress, or after a crash.
    pub outcome: Option<OutcomeLine>,
}

/// What `log show` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A ceremony has begun or ended.
    Ceremony {
        /// The line.
        ceremony: Box<CeremonyLine>,
    },
    /// A certificate.
    Certificate(Box<Entry>),
    /// A CRL.
    Crl {
        /// The CRL's line.
        crl: Box<CrlLine>,
        /// The outcome's line, as of a certificate.
        outcome: Option<OutcomeLine>,
    },
    /// Certificates were revoked or released.
    Revocation {
        /// The line.
        revocation: Box<RevocationLine>,
    },
}

/// Whether a certificate is recorded in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Books {
    /// No readable line records it.
    Absent {
        /// Retention has removed lines, which may have recorded it.
        incomplete: bool,
    },
    /// An intent records exactly this certificate.
    Recorded(Box<Entry>),
    /// Its serial number was recorded for another certificate.
    SerialOfAnother(Box<Entry>),
}

/// The bytes are not a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a DER certificate (RFC 5280, section 4.1)")]
pub struct NotACertificate;

impl Filter {
    /// Whether the filter matches an intent.
    #[must_use]
    pub fn matches(&self, intent: &IntentLine) -> bool {
        let time = intent.time();
        let named = |identity: &String| {
            intent.caller.identity == *identity
                || intent.names.iter().any(|n| n == identity || n.split_once(':').is_some_and(|(_, n)| n == identity))
        };
        self.covers(time)
            && self.identity.as_ref().is_none_or(named)
            && self.serial.as_ref().is_none_or(|serial| same_serial(serial, &intent.serial))
    }

    /// Whether the filter matches a CRL: by its time, and none if the filter is for a certificate.
    #[must_use]
    pub fn matches_crl(&self, crl: &CrlLine) -> bool {
        self.covers(timestamp::parse(&crl.time)) && self.identity.is_none() && self.serial.is_none()
    }

    /// Whether the filter matches a line of a ceremony: by its time, and none if the filter is for a certificate.
    #[must_use]
    pub fn matches_ceremony(&self, ceremony: &CeremonyLine) -> bool {
        self.covers(timestamp::parse(&ceremony.time)) && self.identity.is_none() && self.serial.is_none()
    }

    /// Whether the filter matches a revocation: by its time, its selector or a serial number.
    #[must_use]
    pub fn matches_revocation(&self, revocation: &RevocationLine) -> bool {
        let selected = |identity: &String| revocation.selector.split_whitespace().any(|word| word == identity);
        self.covers(timestamp::parse(&revocation.time))
            && self.identity.as_ref().is_none_or(selected)
            && self.serial.as_ref().is_none_or(|serial| revocation.serials.iter().any(|one| same_serial(serial, one)))
    }

    /// Whether the filter's period covers a time.
    fn covers(&self, time: Option<SystemTime>) -> bool {
        self.since.is_none_or(|since| time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| time.is_some_and(|time| time < until))
    }
}

/// Whether two texts denote the same serial number.
#[must_use]
pub fn same_serial(left: &str, right: &str) -> bool {
    let digits = |text: &str| -> String {
        let text: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        text.strip_prefix("0x").unwrap_or(&text).trim_start_matches('0').to_owned()
    };
    digits(left) == digits(right)
}

/// The certificates, CRLs, revocations and ceremonies that match a filter, oldest first.
///
/// # Errors
/// If the log cannot be read.
pub fn records(directory: &Path, filter: &Filter) -> Result<Vec<Shown>, ReadError> {
    collect(directory, |line| match line {
        Line::Ceremony(ceremony) => filter.matches_ceremony(ceremony),
        Line::Crl(crl) => filter.matches_crl(crl),
        Line::Intent(intent) => filter.matches(intent),
        Line::Revocation(revocation) => filter.matches_revocation(revocation),
        Line::Outcome(_) | Line::Retired(_) | Line::Sealed(_) => false,
    })
}

/// The intents of certificates for which `wanted` is true, oldest first, with their outcomes. Others take no memory.
///
/// # Errors
/// If the log cannot be read.
pub fn certificates(directory: &Path, wanted: impl Fn(&IntentLine) -> bool) -> Result<Vec<Entry>, ReadError> {
    let shown = collect(directory, |line| matches!(line, Line::Intent(intent) if wanted(intent)))?;
    let certificates = shown.into_iter().filter_map(|shown| match shown {
        Shown::Certificate(entry) => Some(*entry),
        Shown::Ceremony { .. } | Shown::Crl { .. } | Shown::Revocation { .. } => None,
    });
    Ok(certificates.collect())
}

/// The intents that match a filter, oldest first, with their outcomes.
///
/// # Errors
/// If the log cannot be read.
pub fn entries(directory: &Path, filter: &Filter) -> Result<Vec<Entry>, ReadError> {
    certificates(directory, |intent| filter.matches(intent))
}

fn collect(directory: &Path, wanted: impl Fn(&Line) -> bool) -> Result<Vec<Shown>, ReadError> {
    let mut reader = Reader::new(directory)?;
    let mut shown: Vec<Shown> = Vec::new();
    let mut open: HashMap<u64, usize> = HashMap::new();
    while let Some(read) = reader.next()? {
        let wanted = wanted(&read.line);
        match read.line {
            Line::Ceremony(ceremony) if wanted => shown.push(Shown::Ceremony { ceremony }),
            Line::Crl(crl) if wanted => {
                open.insert(crl.index, shown.len());
                shown.push(Shown::Crl { crl, outcome: None });
            }
            Line::Intent(intent) if wanted => {
                open.insert(intent.index, shown.len());
                shown.push(Shown::Certificate(Box::new(Entry { intent: *intent, outcome: None })));
            }
            Line::Outcome(line) => match open.remove(&line.index).and_then(|at| shown.get_mut(at)) {
                Some(Shown::Certificate(entry)) => entry.outcome = Some(line),
                Some(Shown::Crl { outcome, .. }) => *outcome = Some(line),
                Some(Shown::Ceremony { .. } | Shown::Revocation { .. }) | None => {}
            },
            Line::Revocation(revocation) if wanted => {
                shown.push(Shown::Revocation { revocation });
            }
            Line::Ceremony(_)
            | Line::Crl(_)
            | Line::Intent(_)
            | Line::Retired(_)
            | Line::Revocation(_)
            | Line::Sealed(_) => {}
        }
    }
    Ok(shown)
}

/// The last line of each ceremony file in the log: whether it was performed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceremonies {
    last: HashMap<String, CeremonyLine>,
}

impl Ceremonies {
    /// The line that forbids performing a file (by its SHA-256) again: it was performed, or has begun and has no end.
    #[must_use]
    pub fn unrepeatable(&self, file_sha256: &str) -> Option<&CeremonyLine> {
        self.last.get(file_sha256).filter(|line| line.phase != CeremonyPhase::Failed)
    }
}

/// The ceremonies in a log.
///
/// # Errors
/// If the log cannot be read.
pub fn ceremonies(directory: &Path) -> Result<Ceremonies, ReadError> {
    let mut reader = Reader::new(directory)?;
    let mut found = Ceremonies::default();
    while let Some(read) = reader.next()? {
        if let Line::Ceremony(line) = read.line {
            found.last.insert(line.file_sha256.clone(), *line);
        }
    }
    Ok(found)
}

/// Follows a log: returns new lines that match a filter, with the outcomes of intents.
#[derive(Debug)]
pub struct Follow {
    reader: Reader,
    filter: Filter,
    open: std::collections::HashSet<u64>,
}

impl Follow {
    /// Starts at the oldest line.
    ///
    /// # Errors
    /// If there is no log.
    pub fn new(directory: &Path, filter: Filter) -> Result<Self, ReadError> {
        Ok(Self { reader: Reader::new(directory)?, filter, open: std::collections::HashSet::new() })
    }

    /// The next line and its text, if there is one yet.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn next_line(&mut self) -> Result<Option<(Line, Vec<u8>)>, ReadError> {
        while let Some(read) = self.reader.next()? {
            let shown = match &read.line {
                Line::Ceremony(ceremony) => self.filter.matches_ceremony(ceremony),
                Line::Crl(crl) => self.filter.matches_crl(crl) && self.open.insert(crl.index),
                Line::Intent(intent) => self.filter.matches(intent) && self.open.insert(intent.index),
                Line::Outcome(outcome) => self.open.remove(&outcome.index),
                Line::Revocation(revocation) => self.filter.matches_revocation(revocation),
                Line::Retired(_) | Line::Sealed(_) => false,
            };
            if shown {
                return Ok(Some((read.line, read.text)));
            }
        }
        Ok(None)
    }
}

/// Looks up a DER certificate by its TBSCertificate.
///
/// # Errors
/// If it is not a certificate, or the log cannot be read.
pub fn check_certificate(directory: &Path, der: &[u8]) -> Result<Result<Books, NotACertificate>, ReadError> {
    let Some((tbs, serial)) = signed_part(der) else { return Ok(Err(NotACertificate)) };
    let incomplete = Reader::new(directory)?.incomplete()?;
    let filter = Filter { serial: Some(super::record::hex(serial)), ..Filter::default() };
    let mut of_another = None;
    for entry in entries(directory, &filter)? {
        if entry.intent.tbs_der().as_deref() == Some(tbs) {
            return Ok(Ok(Books::Recorded(Box::new(entry))));
        }
        of_another = Some(Box::new(entry));
    }
    Ok(Ok(of_another.map_or(Books::Absent { incomplete }, Books::SerialOfAnother)))
}

/// The encoded TBSCertificate of a certificate and the content of its serial number.
fn signed_part(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let sequence = |bytes| AnyRef::try_from(bytes).ok().filter(|any: &AnyRef<'_>| any.tag() == Tag::Sequence);
    let certificate = sequence(der)?.value();
    let tbs = SliceReader::new(certificate).ok()?.tlv_bytes().ok()?;
    let mut fields = SliceReader::new(sequence(tbs)?.value()).ok()?;
    let mut element: AnyRef<'_> = fields.decode().ok()?;
    // `[0] version`, absent only in version 1 certificates.
    if element.tag() != Tag::Integer {
        element = fields.decode().ok()?;
    }
    (element.tag() == Tag::Integer).then_some((tbs, element.value()))
}

/// Parses a time of the command line: RFC 3339 in UTC, optionally without milliseconds and seconds, or only a date.
#[must_use]
pub fn parse_time(text: &str) -> Option<SystemTime> {
    let whole = match text.len() {
        10 => format!("{text}T00:00:00.000Z"),
        17 => format!("{}:00.000Z", text.strip_suffix('Z')?),
        20 => format!("{}.000Z", text.strip_suffix('Z')?),
        _ => text.to_owned(),
    };
    timestamp::parse(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::intent;

    #[test]
    fn filters() {
        let line = intent("");
        let at = |text| parse_time(text);
        let cases = [
            (Filter::default(), true),
            (Filter { since: at("2026-01-31"), ..Filter::default() }, true),
            (Filter { since: at("2026-02-01"), ..Filter::default() }, false),
            (Filter { until: at("2026-01-31T23:59Z"), ..Filter::default() }, false),
            (Filter { until: at("2026-02-01T00:00:00Z"), ..Filter::default() }, true),
            (Filter { identity: Some("spiffe://td/ns/n/sa/a".to_owned()), ..Filter::default() }, true),
            (Filter { identity: Some("URI:spiffe://td/ns/n/sa/a".to_owned()), ..Filter::default() }, true),
            (Filter { identity: Some("spiffe://td/ns/n/sa".to_owned()), ..Filter::default() }, false),
            (Filter { serial: Some("0x00:0A".to_owned()), ..Filter::default() }, true),
            (Filter { serial: Some("0b".to_owned()), ..Filter::default() }, false),
        ];
        for (filter, shown) in cases {
            assert_eq!(filter.matches(&line), shown, "{filter:?}");
        }
        assert!(parse_time("yesterday").is_none());
    }

    #[test]
    fn data_that_is_not_a_certificate_has_no_tbs() {
        for bytes in
            [&b""[..], b"\x30\x00", b"\x30\x02\x30\x00", b"\x30\x04\x30\x02\x04\x00", b"\x31\x05\x30\x03\x02\x01\x01"]
        {
            assert!(signed_part(bytes).is_none(), "{bytes:02x?}");
        }
        assert_eq!(signed_part(b"\x30\x05\x30\x03\x02\x01\x07"), Some((&b"\x30\x03\x02\x01\x07"[..], &b"\x07"[..])));
    }
}
