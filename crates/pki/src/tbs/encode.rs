//! The DER of a TBSCertificate, put together from the inside out.
//!
//! Most of a certificate is the same each time or is copied as it is (issuer, public key); so it is joined from
//! whole elements, whose headers the `der` crate writes. The constants are held against `x509-cert`'s types in the
//! tests, and every result is parsed afresh by the lint.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::{
    Encode, Header, Length, Tag,
    asn1::{PrintableString, Utf8StringRef},
};
use x509_cert::time::Time;

use super::{Serial, TbsError};
use crate::{
    Issuer, Profile, Template, algorithm,
    identity::Name,
    profile::{NAMES_MAX, ORGANIZATION_MAX},
    walk::context,
};

/// `[0] EXPLICIT INTEGER 2`: version 3.
const VERSION_3: &[u8] = b"\xa0\x03\x02\x01\x02";
/// A Name without any attribute.
const EMPTY_NAME: &[u8] = b"\x30\x00";
/// 2.5.4.10, organizationName.
const ORGANIZATION: &[u8] = b"\x06\x03\x55\x04\x0a";
/// TRUE, as `critical`.
const CRITICAL: &[u8] = b"\x01\x01\xff";

/// keyUsage, critical: digitalSignature and keyEncipherment, also for EC keys, as Istio does.
const KEY_USAGE_LEAF: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x05\xa0";
/// keyUsage, critical: digitalSignature, keyCertSign and cRLSign.
const KEY_USAGE_INTERMEDIATE: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x01\x86";
/// keyUsage, critical: keyCertSign, as Istio's self-signed root has it.
const KEY_USAGE_ROOT: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x02\x04";
/// extKeyUsage, not critical: serverAuth and clientAuth.
const EXTENDED_KEY_USAGE: &[u8] = b"\x30\x1d\x06\x03\x55\x1d\x25\x04\x16\x30\x14\
    \x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";
/// basicConstraints, critical: the empty SEQUENCE, CA:FALSE.
const NOT_A_CA: &[u8] = b"\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00";
/// basicConstraints, critical: CA:TRUE, pathLenConstraint 0.
const CA_PATH_LEN_0: &[u8] = b"\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00";
/// basicConstraints, critical: CA:TRUE.
const CA: &[u8] = b"\x30\x0f\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x05\x30\x03\x01\x01\xff";
/// 2.5.29.14, subjectKeyIdentifier.
const SUBJECT_KEY_ID: &[u8] = b"\x06\x03\x55\x1d\x0e";
/// 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = b"\x06\x03\x55\x1d\x11";
/// 2.5.29.35, authorityKeyIdentifier.
const AUTHORITY_KEY_ID: &[u8] = b"\x06\x03\x55\x1d\x23";

/// The DER TBSCertificate of a template under an issuer.
pub(super) fn tbs(template: &Template, issuer: &Issuer, serial: Serial) -> Result<Vec<u8>, TbsError> {
    let subject = match &template.profile {
        Profile::Leaf => EMPTY_NAME.to_vec(),
        Profile::Intermediate { organization } | Profile::SelfSignedRoot { organization } => name(organization)?,
    };
    join(
        Tag::Sequence,
        &[
            VERSION_3,
            &join(Tag::Integer, &[b"\0", serial.as_bytes()])?,
            algorithm::identifier(issuer.public_key().signature_algorithm()),
            issuer.subject(),
            &join(Tag::Sequence, &[&time(template.not_before)?, &time(template.not_after)?])?,
            &subject,
            template.public_key.spki_der(),
            &join(context(3, true), &[&extensions(template, issuer)?])?,
        ],
    )
}

/// A Name of one organization: the RDN that Istio's self-signed root has (PrintableString where the text is
/// printable, else UTF8String, as Go does).
pub(crate) fn name(organization: &str) -> Result<Vec<u8>, TbsError> {
    let what = TbsError::Encoding("the subject's organization (1 to 64 characters)");
    if organization.is_empty() || organization.chars().count() > ORGANIZATION_MAX {
        return Err(what);
    }
    let value = match PrintableString::new(organization) {
        Ok(text) => text.to_der(),
        Err(_) => Utf8StringRef::new(organization).and_then(|text| text.to_der()),
    };
    let attribute = join(Tag::Sequence, &[ORGANIZATION, &value.map_err(|_| what)?])?;
    join(Tag::Sequence, &[&join(Tag::Set, &[&attribute])?])
}

/// The extensions in Go's order: key usage, extended key usage, basic constraints, key identifiers, names.
fn extensions(template: &Template, issuer: &Issuer) -> Result<Vec<u8>, TbsError> {
    let authority = match issuer.subject_key_id() {
        Some(id) => authority_key_id(id)?,
        None => Vec::new(),
    };
    match &template.profile {
        Profile::Leaf => {
            let names = alternative_names(&template.names)?;
            join(Tag::Sequence, &[KEY_USAGE_LEAF, EXTENDED_KEY_USAGE, NOT_A_CA, &authority, &names])
        }
        Profile::Intermediate { .. } => {
            let own = subject_key_id(template)?;
            join(Tag::Sequence, &[KEY_USAGE_INTERMEDIATE, CA_PATH_LEN_0, &own, &authority])
        }
        Profile::SelfSignedRoot { .. } => {
            let own = subject_key_id(template)?;
            join(Tag::Sequence, &[KEY_USAGE_ROOT, CA, &own])
        }
    }
}

/// subjectKeyIdentifier of a CA's certificate, which has no names of its own.
fn subject_key_id(template: &Template) -> Result<Vec<u8>, TbsError> {
    if !template.names.is_empty() {
        return Err(TbsError::Encoding("a name in a CA's certificate"));
    }
    let id = join(Tag::OctetString, &[&template.public_key.key_id()])?;
    join(Tag::Sequence, &[SUBJECT_KEY_ID, &join(Tag::OctetString, &[&id])?])
}

/// authorityKeyIdentifier with keyIdentifier only.
fn authority_key_id(id: &[u8]) -> Result<Vec<u8>, TbsError> {
    let value = join(Tag::Sequence, &[&join(context(0, false), &[id])?])?;
    join(Tag::Sequence, &[AUTHORITY_KEY_ID, &join(Tag::OctetString, &[&value])?])
}

/// subjectAltName, always critical (ISTIO: security/pkg/pki/util/san.go).
fn alternative_names(names: &[Name]) -> Result<Vec<u8>, TbsError> {
    if names.len() > NAMES_MAX {
        return Err(TbsError::Encoding("a certificate with more than 64 names"));
    }
    let mut list = Vec::new();
    for name in names {
        list.extend(match name {
            Name::Dns(name) => join(context(2, false), &[name.as_str().as_bytes()])?,
            Name::Ip(std::net::IpAddr::V4(address)) => join(context(7, false), &[&address.octets()])?,
            Name::Ip(std::net::IpAddr::V6(address)) => join(context(7, false), &[&address.octets()])?,
            Name::Spiffe(id) => join(context(6, false), &[id.to_string().as_bytes()])?,
        });
    }
    let value = join(Tag::Sequence, &[&list])?;
    join(Tag::Sequence, &[SUBJECT_ALT_NAME, CRITICAL, &join(Tag::OctetString, &[&value])?])
}

/// UTCTime up to 2049, GeneralizedTime from 2050 on (RFC 5280, section 4.1.2.5).
pub(super) fn time(time: SystemTime) -> Result<Vec<u8>, TbsError> {
    let what = TbsError::Encoding("a time before 1970 or after 9999");
    let whole = match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since == Duration::from_secs(since.as_secs()) => time,
        Ok(_) => return Err(TbsError::Encoding("a time with a fraction of a second")),
        Err(_) => return Err(what),
    };
    Time::try_from(whole).and_then(|time| time.to_der()).map_err(|_| what)
}

/// One element of whole elements.
pub(crate) fn join(tag: Tag, parts: &[&[u8]]) -> Result<Vec<u8>, TbsError> {
    let what = |_| TbsError::Encoding("an element of that length");
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let header = Header::new(tag, Length::try_from(length).map_err(what)?);
    let mut out = Vec::with_capacity(length + 6);
    header.encode_to_vec(&mut out).map_err(what)?;
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Ok(out)
}
