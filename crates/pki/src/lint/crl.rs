//! A strictly parsed TBSCertList, and the rules of this CA's CRLs (RFC 5280, section 5). Shares nothing with the builder.

use std::time::{Duration, SystemTime};

use const_oid::db::rfc5280;
use der::Tag;

use super::{
    Ca, Finding,
    extensions::{authority_id, extension},
    facts::{at, time},
    rule,
};
use crate::{
    SignatureAlgorithm, algorithm,
    lint::reader::{DerReader, Malformed, context},
    profile::CLOCK_SKEW,
};

/// Maximum length of a serial number in bytes (RFC 5280, section 4.1.2.2).
const SERIAL_MAX: usize = 20;

/// The reason codes that this CA issues (RFC 5280, section 5.3.1): neither unspecified, which is stated by the absence of
/// a code, nor removeFromCRL or aACompromise.
const REASONS: [u8; 7] = [1, 2, 3, 4, 5, 6, 9];

/// Content of a TBSCertList, borrowed from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlFacts<'a> {
    /// The signature algorithm.
    pub signature_algorithm: SignatureAlgorithm,
    /// DER Name of the issuer.
    pub issuer: &'a [u8],
    /// thisUpdate.
    pub this_update: SystemTime,
    /// nextUpdate.
    pub next_update: SystemTime,
    /// keyIdentifier of authorityKeyIdentifier, if there is one.
    pub authority_key_id: Option<&'a [u8]>,
    /// The CRL number. RFC 5280 permits up to 20 bytes; this CA's have at most 8.
    pub number: u64,
    /// The revoked certificates.
    pub entries: Vec<CrlEntry<'a>>,
}

/// A revoked certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrlEntry<'a> {
    /// The content of the INTEGER, positive, including the sign byte.
    pub serial: &'a [u8],
    /// The revocation date.
    pub revoked_at: SystemTime,
    /// The reason code, if there is one.
    pub reason: Option<u8>,
}

impl<'a> CrlFacts<'a> {
    /// Parses a DER TBSCertList.
    ///
    /// # Errors
    /// If it is malformed, or has a field or an extension that this CA's lists do not have.
    pub fn parse(tbs: &'a [u8]) -> Result<Self, Finding> {
        let mut fields = DerReader::inside(tbs, Tag::Sequence).map_err(at("it is not a TBSCertList"))?;
        if fields.content(Tag::Integer).map_err(at("the version is missing"))? != [1] {
            return Err(Finding("the version is not 2"));
        }
        let identifier = fields.whole(Tag::Sequence).map_err(at("the signature algorithm is malformed"))?;
        let signature_algorithm =
            algorithm::from_identifier(identifier).ok_or(Finding("the signature algorithm is none of ours"))?;
        let issuer = fields.whole(Tag::Sequence).map_err(at("the issuer is malformed"))?;
        let this_update = time(&mut fields)?;
        let next_update = time(&mut fields)?;
        let entries = match fields.optional(Tag::Sequence).map_err(at("the revoked certificates are malformed"))? {
            Some(list) => entries(list)?,
            None => Vec::new(),
        };
        let list = fields.content(context(0, true)).map_err(at("the CRL's extensions are missing"))?;
        fields.finish().map_err(at("something follows the CRL's extensions"))?;
        let (authority_key_id, number) = extensions(list)?;
        Ok(Self { signature_algorithm, issuer, this_update, next_update, authority_key_id, number, entries })
    }
}

fn entries(list: &[u8]) -> Result<Vec<CrlEntry<'_>>, Finding> {
    let malformed = || at("a revoked certificate's entry is malformed");
    let mut reader = DerReader::over(list).map_err(malformed())?;
    let mut entries: Vec<CrlEntry<'_>> = Vec::new();
    while !reader.at_end() {
        let mut entry = reader.enter(Tag::Sequence).map_err(malformed())?;
        let serial = entry.positive_integer().map_err(at("a serial number is not a positive integer"))?;
        rule(serial.len() <= SERIAL_MAX, "a serial number has more than 20 bytes")?;
        let revoked_at = time(&mut entry)?;
        let reason = match entry.optional(Tag::Sequence).map_err(malformed())? {
            Some(extensions) => Some(reason(extensions)?),
            None => None,
        };
        entry.finish().map_err(malformed())?;
        // A sign byte does not change the order of lengths among positive numbers in their shortest form.
        let after = |last: &CrlEntry<'_>| (last.serial.len(), last.serial) < (serial.len(), serial);
        rule(entries.last().is_none_or(after), "the entries are not sorted by serial number, or one is there twice")?;
        entries.push(CrlEntry { serial, revoked_at, reason });
    }
    rule(!entries.is_empty(), "the list of revoked certificates is empty where it must be absent")?;
    Ok(entries)
}

/// The only extension of an entry: a reason code, not critical.
fn reason(list: &[u8]) -> Result<u8, Finding> {
    let read = || -> Result<u8, Malformed> {
        let mut reader = DerReader::over(list)?;
        let (oid, critical, value) = extension(&mut reader)?;
        reader.finish()?;
        let mut value = DerReader::over(value)?;
        let code = value.content(Tag::Enumerated)?;
        value.finish()?;
        match code {
            [code] if oid == rfc5280::ID_CE_CRL_REASONS.as_bytes() && !critical => Ok(*code),
            _ => Err(Malformed),
        }
    };
    let code = read().map_err(at("an entry's extensions are not a reason code alone"))?;
    rule(REASONS.contains(&code), "an entry has a reason code that this CA does not issue")?;
    Ok(code)
}

/// Authority key identifier, if there is one, and CRL number.
fn extensions(list: &[u8]) -> Result<(Option<&[u8]>, u64), Finding> {
    let malformed = || at("the CRL's extensions are malformed");
    let mut reader = DerReader::inside(list, Tag::Sequence).map_err(malformed())?;
    let (mut id, mut number) = (None, None);
    while !reader.at_end() {
        let (oid, critical, value) = extension(&mut reader).map_err(malformed())?;
        rule(!critical, "an extension of the CRL is critical")?;
        if oid == rfc5280::ID_CE_AUTHORITY_KEY_IDENTIFIER.as_bytes() && id.is_none() && number.is_none() {
            id = Some(authority_id(value).map_err(at("the authority key identifier is not a key identifier alone"))?);
        } else if oid == rfc5280::ID_CE_CRL_NUMBER.as_bytes() && number.is_none() {
            number =
                Some(crl_number(value).map_err(at("the CRL number is not a positive integer of 8 bytes at most"))?);
        } else {
            return Err(Finding("an extension of the CRL is none of ours, out of order or there twice"));
        }
    }
    Ok((id, number.ok_or(Finding("the CRL number is missing"))?))
}

fn crl_number(value: &[u8]) -> Result<u64, Malformed> {
    let mut reader = DerReader::over(value)?;
    let content = reader.positive_integer()?;
    reader.finish()?;
    let magnitude = content.strip_prefix(&[0]).unwrap_or(content);
    if magnitude.len() > size_of::<u64>() {
        return Err(Malformed);
    }
    Ok(magnitude.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Checks a CRL; `max_lifetime` ends at nextUpdate and starts at the request, so the two minutes before it
/// ([`CLOCK_SKEW`]) are added.
///
/// # Errors
/// The first violation.
pub fn crl(facts: &CrlFacts<'_>, ca: &Ca<'_>, max_lifetime: Duration) -> Result<(), Finding> {
    rule(facts.signature_algorithm == ca.signature_algorithm, "the signature algorithm is not that of the CA's key")?;
    rule(facts.issuer == ca.subject, "the issuer is not the subject of the CA's certificate")?;
    rule(
        facts.authority_key_id == ca.subject_key_id,
        "the authority key identifier is not the CA's subject key identifier",
    )?;
    rule(facts.this_update >= ca.not_before, "thisUpdate is before the CA's validity begins")?;
    let lifetime = facts.next_update.duration_since(facts.this_update).unwrap_or_default();
    rule(!lifetime.is_zero(), "nextUpdate is not after thisUpdate")?;
    rule(lifetime <= max_lifetime.saturating_add(CLOCK_SKEW), "nextUpdate is later than allowed")?;
    let dated = facts.entries.iter().all(|entry| entry.revoked_at <= facts.this_update);
    rule(dated, "a revocation is dated after thisUpdate")
}
