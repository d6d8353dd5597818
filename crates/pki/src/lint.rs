//! Rules for every certificate, checked on the encoded bytes before they are signed.
//!
//! The rules are independent of the builder: they parse the bytes again ([`Facts`]) and check them against what this CA
//! may sign at all. `tbs` applies them to each certificate; the token host applies them again to each message, with
//! only the CA certificate ([`OwnedCa`]).

mod ca;
mod crl;
mod extensions;
mod facts;
mod key;
pub(crate) mod reader;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use ca::{Ca, OwnedCa, subject_public_key};
pub use crl::{CrlEntry, CrlFacts, crl};
pub use facts::Facts;
pub(super) use facts::organization;

use super::{
    Profile,
    profile::{CLOCK_SKEW, NAMES_MAX},
};
use crate::identity::Name;

/// Permitted length of a serial number in bytes: at least 64 random bits (CA/Browser Forum BR 7.1), at most 20 bytes
/// (RFC 5280, section 4.1.2.2).
const SERIAL_BYTES: std::ops::RangeInclusive<usize> = 9..=20;

/// Permitted length of a subject key identifier in bytes: 20 for the methods of RFC 5280 and RFC 7093, up to the longest
/// hash for others.
const SUBJECT_KEY_ID_BYTES: std::ops::RangeInclusive<usize> = 1..=64;

/// A violated rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Finding(pub &'static str);

/// Checks a leaf; `max_lifetime` starts at the request, so the two minutes before it ([`CLOCK_SKEW`]) are added.
///
/// # Errors
/// The first violation.
pub fn leaf(facts: &Facts<'_>, ca: &Ca<'_>, max_lifetime: Duration) -> Result<(), Finding> {
    rule(facts.profile == Profile::Leaf, "it is not an end entity's certificate")?;
    common(facts, ca, max_lifetime)?;
    issued_by(facts, ca)?;
    rule(facts.spki != ca.spki, "the leaf has the CA's own key")?;
    names(&facts.names)
}

/// Checks an intermediate CA.
///
/// # Errors
/// The first violation.
pub fn intermediate(facts: &Facts<'_>, ca: &Ca<'_>, max_lifetime: Duration) -> Result<(), Finding> {
    rule(matches!(facts.profile, Profile::Intermediate { .. }), "it is not an intermediate CA's certificate")?;
    common(facts, ca, max_lifetime)?;
    issued_by(facts, ca)?;
    rule(ca.path_len != Some(0), "the CA's path length forbids an intermediate below it")?;
    rule(facts.subject != ca.subject, "the intermediate has the CA's own name")?;
    rule(facts.spki != ca.spki, "the intermediate has the CA's own key")?;
    rule(
        facts.names.iter().all(|name| matches!(name, Name::Dns(_))),
        "the intermediate has a name that is not a DNS name",
    )?;
    if !facts.names.is_empty() {
        names(&facts.names)?;
    }
    subject_key_id(facts)
}

/// Checks a CA certificate of a ceremony: self-signed if it has the key of `ca`, otherwise issued by `ca`.
///
/// # Errors
/// The first violation.
pub fn certificate_authority(facts: &Facts<'_>, ca: &Ca<'_>, max_lifetime: Duration) -> Result<(), Finding> {
    let Profile::Ca(profile) = &facts.profile else {
        return Err(Finding("it is not the certificate of a ceremony's CA"));
    };
    common(facts, ca, max_lifetime)?;
    facts::name_is_readable(facts.subject)?;
    rule(
        SUBJECT_KEY_ID_BYTES.contains(&profile.subject_key_id.len()),
        "the subject key identifier is empty or too long",
    )?;
    if facts.spki == ca.spki {
        rule(facts.issuer == facts.subject, "issuer and subject of the self-signed certificate differ")?;
        return rule(facts.authority_key_id.is_none(), "the self-signed certificate has an authority key identifier");
    }
    issued_by(facts, ca)?;
    rule(facts.subject != ca.subject, "the CA has the name of the one that certifies it")?;
    // A CA without a limit below one with a limit would promise what no verifier accepts.
    let fits = ca.path_len.is_none_or(|above| profile.path_len.is_some_and(|below| below < above));
    rule(fits, "the path length is not below that of the CA above")
}

/// Checks a self-signed root; `ca` is the future root itself.
///
/// # Errors
/// The first violation.
pub fn self_signed_root(facts: &Facts<'_>, ca: &Ca<'_>, max_lifetime: Duration) -> Result<(), Finding> {
    rule(matches!(facts.profile, Profile::SelfSignedRoot { .. }), "it is not a self-signed root's certificate")?;
    common(facts, ca, max_lifetime)?;
    rule(facts.issuer == facts.subject, "issuer and subject of the root differ")?;
    rule(facts.spki == ca.spki, "the root's key is not the one that signs it")?;
    subject_key_id(facts)
}

/// Rules of all profiles.
fn common(facts: &Facts<'_>, ca: &Ca<'_>, max_lifetime: Duration) -> Result<(), Finding> {
    rule(SERIAL_BYTES.contains(&facts.serial.len()), "the serial number is too small or too long")?;
    rule(facts.signature_algorithm == ca.signature_algorithm, "the signature algorithm is not that of the CA's key")?;
    rule(facts.issuer == ca.subject, "the issuer is not the subject of the CA's certificate")?;
    let lifetime = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    rule(!lifetime.is_zero(), "the validity ends before it begins")?;
    rule(lifetime <= max_lifetime.saturating_add(CLOCK_SKEW), "the validity is longer than allowed")?;
    key::strength(facts.spki)
}

fn issued_by(facts: &Facts<'_>, ca: &Ca<'_>) -> Result<(), Finding> {
    rule(facts.not_before >= ca.not_before, "the validity begins before the CA's")?;
    rule(facts.not_after <= ca.not_after, "the validity ends after the CA's")?;
    rule(
        facts.authority_key_id == ca.subject_key_id,
        "the authority key identifier is not the CA's subject key identifier",
    )
}

fn subject_key_id(facts: &Facts<'_>) -> Result<(), Finding> {
    let expected = key::id(facts.spki)?;
    rule(facts.subject_key_id == Some(&expected), "the subject key identifier is not the key's")
}

/// A workload has exactly one SPIFFE ID and no other URI (SPIFFE X.509-SVID, section 2); a server's certificate has
/// none.
fn names(names: &[Name]) -> Result<(), Finding> {
    rule(!names.is_empty(), "it names nobody")?;
    rule(names.len() <= NAMES_MAX, "it has too many names")?;
    let identities = names.iter().filter(|name| matches!(name, Name::Spiffe(_))).count();
    rule(identities <= 1, "it has more than one SPIFFE ID")?;
    rule(identities == 0 || names.len() == 1, "it has a SPIFFE ID and other names")?;
    let twice = names.iter().enumerate().any(|(at, name)| names.iter().take(at).any(|other| other == name));
    rule(!twice, "it has the same name twice")
}

fn rule(kept: bool, finding: &'static str) -> Result<(), Finding> {
    if kept { Ok(()) } else { Err(Finding(finding)) }
}
