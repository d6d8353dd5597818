//! The extensions of our profiles and no others, each at most once, in our order, with the required criticality.

use std::net::IpAddr;

use const_oid::{ObjectIdentifier, db::rfc5280};
use der::Tag;

use super::Finding;
use crate::{
    identity::Name,
    lint::reader::{DerReader, Malformed, context},
    profile::NAMES_MAX,
};

/// The extensions in the order of our certificates, and whether they are critical.
const ORDER: [(ObjectIdentifier, bool); 6] = [
    (rfc5280::ID_CE_KEY_USAGE, true),
    (rfc5280::ID_CE_EXT_KEY_USAGE, false),
    (rfc5280::ID_CE_BASIC_CONSTRAINTS, true),
    (rfc5280::ID_CE_SUBJECT_KEY_IDENTIFIER, false),
    (rfc5280::ID_CE_AUTHORITY_KEY_IDENTIFIER, false),
    (rfc5280::ID_CE_SUBJECT_ALT_NAME, true),
];

/// The extensions of a certificate, borrowed from its bytes.
#[derive(Clone, Debug)]
pub(super) struct Extensions<'a> {
    /// DER KeyUsage.
    pub(super) key_usage: &'a [u8],
    /// DER ExtKeyUsageSyntax.
    pub(super) extended_key_usage: Option<&'a [u8]>,
    /// DER BasicConstraints.
    pub(super) basic_constraints: &'a [u8],
    /// The key identifier.
    pub(super) subject_key_id: Option<&'a [u8]>,
    /// The key identifier.
    pub(super) authority_key_id: Option<&'a [u8]>,
    /// The names; empty if there is no such extension.
    pub(super) names: Vec<Name>,
}

impl<'a> Extensions<'a> {
    /// Parses the content of the field `extensions`.
    pub(super) fn parse(list: &'a [u8]) -> Result<Self, Finding> {
        let mut reader =
            DerReader::inside(list, Tag::Sequence).map_err(|Malformed| Finding("the extensions are malformed"))?;
        let mut values: [Option<&[u8]>; ORDER.len()] = [None; ORDER.len()];
        let mut slots = ORDER.iter().zip(&mut values);
        while !reader.at_end() {
            let (oid, critical, value) =
                extension(&mut reader).map_err(|Malformed| Finding("an extension is malformed"))?;
            // Searching only forward detects unknown, misplaced and duplicate extensions.
            let Some(((_, must_be_critical), slot)) = slots.find(|((known, _), _)| known.as_bytes() == oid) else {
                return Err(Finding("an extension is none of ours, out of order or there twice"));
            };
            if critical != *must_be_critical {
                return Err(Finding("an extension is critical and should not be, or the reverse"));
            }
            *slot = Some(value);
        }
        let [key_usage, extended_key_usage, basic_constraints, subject_key_id, authority_key_id, names] = values;
        Ok(Self {
            key_usage: key_usage.ok_or(Finding("the key usage is missing"))?,
            extended_key_usage,
            basic_constraints: basic_constraints.ok_or(Finding("the basic constraints are missing"))?,
            subject_key_id: subject_key_id
                .map(own_id)
                .transpose()
                .map_err(|Malformed| Finding("the subject key identifier is malformed"))?,
            authority_key_id: authority_key_id
                .map(authority_id)
                .transpose()
                .map_err(|Malformed| Finding("the authority key identifier is not a key identifier alone"))?,
            names: names.map(names_of).transpose()?.unwrap_or_default(),
        })
    }
}

/// Parses one Extension: object identifier, criticality, value. An explicit FALSE is not DER.
pub(super) fn extension<'a>(reader: &mut DerReader<'a>) -> Result<(&'a [u8], bool, &'a [u8]), Malformed> {
    let mut extension = reader.enter(Tag::Sequence)?;
    let oid = extension.content(Tag::ObjectIdentifier)?;
    let critical = match extension.optional(Tag::Boolean)? {
        None => false,
        Some([0xff]) => true,
        Some(_) => return Err(Malformed),
    };
    let value = extension.content(Tag::OctetString)?;
    extension.finish()?;
    Ok((oid, critical, value))
}

/// SubjectKeyIdentifier: one OCTET STRING.
pub(super) fn own_id(value: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = DerReader::over(value)?;
    let id = reader.content(Tag::OctetString)?;
    reader.finish()?;
    Ok(id)
}

/// AuthorityKeyIdentifier with only a keyIdentifier.
pub(super) fn authority_id(value: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = DerReader::inside(value, Tag::Sequence)?;
    let id = reader.content(context(0, false))?;
    reader.finish()?;
    Ok(id)
}

fn names_of(value: &[u8]) -> Result<Vec<Name>, Finding> {
    let malformed = |Malformed| Finding("the subject alternative name is malformed");
    let mut reader = DerReader::inside(value, Tag::Sequence).map_err(malformed)?;
    let mut names = Vec::new();
    while !reader.at_end() {
        if names.len() == NAMES_MAX {
            return Err(Finding("it has too many names"));
        }
        let (tag, content) = reader.any().map_err(malformed)?;
        names.push(name(tag, content)?);
    }
    if names.is_empty() {
        return Err(Finding("the subject alternative name is empty"));
    }
    Ok(names)
}

fn name(tag: Tag, content: &[u8]) -> Result<Name, Finding> {
    let foreign = Finding("a name is of a kind that this CA does not issue");
    let Tag::ContextSpecific { number, constructed: false } = tag else { return Err(foreign) };
    let text = || std::str::from_utf8(content).unwrap_or_default();
    match number.value() {
        2 => text().parse().map(Name::Dns).map_err(|_| Finding("a DNS name is malformed")),
        6 => text().parse().map(Name::Spiffe).map_err(|_| Finding("a URI is not a workload's SPIFFE ID")),
        7 => match content.len() {
            4 => <[u8; 4]>::try_from(content).map(|bytes| Name::Ip(IpAddr::from(bytes))),
            _ => <[u8; 16]>::try_from(content).map(|bytes| Name::Ip(IpAddr::from(bytes))),
        }
        .map_err(|_| Finding("an IP address is malformed")),
        _ => Err(foreign),
    }
}
