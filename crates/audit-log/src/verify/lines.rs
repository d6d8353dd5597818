//! Checks the content of lines: consecutive numbers, outcomes with a preceding intent, fields that match the
//! TBSCertificate.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{
    record::{CrlLine, IntentLine, Line, OutcomeKind, OutcomeLine, hex},
    timestamp,
};
use pki::lint::{CrlFacts, Facts};

/// State over the lines read so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Index of the next intent.
    pub(super) intents: u64,
    /// Intents whose outcome has not been seen, without those of retired segments.
    pub(super) open: BTreeSet<u64>,
    /// The first intent that is not in a retired segment.
    pub(super) readable_from: u64,
}

impl Seen {
    /// Checks a line at its position; the error describes what is wrong.
    pub(super) fn check(&mut self, line: &Line, number: u64) -> Result<(), String> {
        let mut wrong = None;
        if line.number() != number {
            wrong = Some(format!("it bears the number {}", line.number()));
        }
        match line {
            Line::Crl(crl) => {
                wrong = wrong.or(self.intent(crl.index));
                wrong = wrong.or_else(|| crl_content(crl).err());
            }
            Line::Intent(intent) => {
                wrong = wrong.or(self.intent(intent.index));
                wrong = wrong.or_else(|| content(intent).err());
            }
            Line::Outcome(outcome) => wrong = wrong.or_else(|| self.outcome(outcome).err()),
            Line::Retired(retired) if retired.before > number => {
                wrong = wrong.or(Some("it retires lines that come after it".to_owned()));
            }
            Line::Sealed(sealed) if sealed.segment > number => {
                wrong = wrong.or(Some("it ends a segment that comes after it".to_owned()));
            }
            Line::Ceremony(ceremony) if !ceremony.is_whole() => {
                wrong =
                    wrong.or(Some("its transcript or reason is missing, or does not belong to its phase".to_owned()));
            }
            Line::Ceremony(_) | Line::Retired(_) | Line::Revocation(_) | Line::Sealed(_) => {}
        }
        wrong.map_or(Ok(()), Err)
    }

    /// Counts an intent; returns what is wrong with its index.
    fn intent(&mut self, index: u64) -> Option<String> {
        let wrong = (index != self.intents).then(|| format!("its intent is {index} where {} follows", self.intents));
        // Continue with this line's index, so that one bad line does not make all following lines bad.
        self.intents = index.saturating_add(1);
        self.open.insert(index);
        wrong
    }

    fn outcome(&mut self, outcome: &OutcomeLine) -> Result<(), String> {
        let whole = match outcome.outcome {
            OutcomeKind::Failed => outcome.reason.is_some() && outcome.token.is_none(),
            OutcomeKind::Issued => outcome.token.is_some() && outcome.reason.is_none(),
        };
        if !whole {
            return Err("its outcome needs either a token or a reason".to_owned());
        }
        if !self.open.remove(&outcome.index) && outcome.index >= self.readable_from {
            return Err(format!("intent {} is not there or has an outcome already", outcome.index));
        }
        Ok(())
    }
}

/// Compares the fields of an intent with its certificate.
fn content(intent: &IntentLine) -> Result<(), String> {
    let tbs = intent.tbs_der().ok_or("its TBS is not Base64")?;
    let facts = Facts::parse(&tbs).map_err(|finding| format!("its TBS is none of ours: {finding}"))?;
    let serial = match facts.serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        whole => whole,
    };
    let names: Vec<String> = facts.names.iter().map(ToString::to_string).collect();
    let fields = [
        ("serial", hex(serial) == intent.serial),
        ("not_before", timestamp::format(facts.not_before) == intent.not_before),
        ("not_after", timestamp::format(facts.not_after) == intent.not_after),
        ("names", names == intent.names),
        ("profile", facts.profile.as_str() == intent.profile),
        ("spki_sha256", hex(digest(&SHA256, facts.spki).as_ref()) == intent.spki_sha256),
    ];
    agree(&fields)
}

/// Compares the fields of a CRL's line with its TBSCertList.
fn crl_content(crl: &CrlLine) -> Result<(), String> {
    let tbs = BASE64_STANDARD.decode(&crl.tbs).map_err(|_| "its TBS is not Base64")?;
    let facts = CrlFacts::parse(&tbs).map_err(|finding| format!("its TBS is none of ours: {finding}"))?;
    agree(&[
        ("number", facts.number == crl.number),
        ("this_update", timestamp::format(facts.this_update) == crl.this_update),
        ("next_update", timestamp::format(facts.next_update) == crl.next_update),
        ("entries", u64::try_from(facts.entries.len()).is_ok_and(|entries| entries == crl.entries)),
    ])
}

fn agree(fields: &[(&str, bool)]) -> Result<(), String> {
    match fields.iter().find(|(_, agrees)| !agrees) {
        Some((field, _)) => Err(format!("its field {field:?} is not what its TBS says")),
        None => Ok(()),
    }
}
