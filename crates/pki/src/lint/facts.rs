//! A strictly parsed TBSCertificate: whatever no profile has is a finding.

use std::time::SystemTime;

use const_oid::db::rfc4519;
use der::{
    AnyRef, Decode, Tag,
    asn1::{GeneralizedTime, PrintableStringRef, UtcTime},
};

use super::{Finding, extensions::Extensions};
use crate::{
    CaProfile, KeyAlgorithm, Profile, PublicKey, SignatureAlgorithm, algorithm,
    identity::Name,
    key::KeyError,
    lint::reader::{DerReader, Malformed, context},
    profile::ORGANIZATION_MAX,
};

/// Content of a TBSCertificate of one of our profiles, borrowed from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The serial number: the content of the INTEGER, positive, including the sign byte.
    pub serial: &'a [u8],
    /// The signature algorithm.
    pub signature_algorithm: SignatureAlgorithm,
    /// DER Name of the issuer.
    pub issuer: &'a [u8],
    /// notBefore.
    pub not_before: SystemTime,
    /// notAfter, inclusive.
    pub not_after: SystemTime,
    /// DER Name of the subject.
    pub subject: &'a [u8],
    /// DER SubjectPublicKeyInfo; [`Facts::public_key`] parses it.
    pub spki: &'a [u8],
    /// The profile with its key usage, extended key usage and basic constraints.
    pub profile: Profile,
    /// Whether basicConstraints is CA:TRUE.
    pub is_ca: bool,
    /// pathLenConstraint, if there is one.
    pub path_len: Option<u8>,
    /// subjectKeyIdentifier, if there is one.
    pub subject_key_id: Option<&'a [u8]>,
    /// keyIdentifier of authorityKeyIdentifier, if there is one.
    pub authority_key_id: Option<&'a [u8]>,
    /// The subject alternative names.
    pub names: Vec<Name>,
}

/// Names a malformed element.
pub(super) fn at(finding: &'static str) -> impl Fn(Malformed) -> Finding {
    move |Malformed| Finding(finding)
}

impl<'a> Facts<'a> {
    /// Parses a DER TBSCertificate.
    ///
    /// # Errors
    /// If it is malformed, or has a form, an extension or a name that none of our profiles has.
    pub fn parse(tbs: &'a [u8]) -> Result<Self, Finding> {
        let mut fields = DerReader::inside(tbs, Tag::Sequence).map_err(at("it is not a TBSCertificate"))?;
        let version = fields.content(context(0, true)).map_err(at("the version is missing"))?;
        if version != [2, 1, 2] {
            return Err(Finding("the version is not 3"));
        }
        let serial = fields.positive_integer().map_err(at("the serial number is not a positive integer"))?;
        let identifier = fields.whole(Tag::Sequence).map_err(at("the signature algorithm is malformed"))?;
        let signature_algorithm =
            algorithm::from_identifier(identifier).ok_or(Finding("the signature algorithm is none of ours"))?;
        let issuer = fields.whole(Tag::Sequence).map_err(at("the issuer is malformed"))?;
        let mut validity = fields.enter(Tag::Sequence).map_err(at("the validity is malformed"))?;
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        validity.finish().map_err(at("the validity is malformed"))?;
        let subject = fields.whole(Tag::Sequence).map_err(at("the subject is malformed"))?;
        let spki = fields.whole(Tag::Sequence).map_err(at("the public key is malformed"))?;
        // Unique identifiers ([1], [2]) are not permitted: only [3] may follow.
        let list = fields.content(context(3, true)).map_err(at("the extensions are missing"))?;
        fields.finish().map_err(at("something follows the extensions"))?;
        let extensions = Extensions::parse(list)?;
        let (profile, is_ca, path_len) = profile(&extensions, subject)?;
        Ok(Self {
            serial,
            signature_algorithm,
            issuer,
            not_before,
            not_after,
            subject,
            spki,
            profile,
            is_ca,
            path_len,
            subject_key_id: extensions.subject_key_id,
            authority_key_id: extensions.authority_key_id,
            names: extensions.names,
        })
    }

    /// The subject's public key, parsed with all checks (a point must be on its curve). It costs several times as much
    /// as the other facts, so it is not used for bytes of a key that was parsed before.
    ///
    /// # Errors
    /// If this CA does not accept such a key.
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        PublicKey::from_spki_der(self.spki)
    }

    /// The content of the subjectPublicKey BIT STRING.
    ///
    /// # Errors
    /// If the SubjectPublicKeyInfo is malformed.
    pub fn subject_public_key(&self) -> Result<&'a [u8], Finding> {
        super::key::bits(self.spki)
    }

    /// The type of the subject's public key, by its encoding only.
    ///
    /// # Errors
    /// If this CA does not accept such a key.
    pub fn key_algorithm(&self) -> Result<KeyAlgorithm, Finding> {
        super::key::algorithm(self.spki)
    }
}

/// The profile with exactly these usages and constraints; mixtures match none.
fn profile(found: &Extensions<'_>, subject: &[u8]) -> Result<(Profile, bool, Option<u8>), Finding> {
    const KEY_USAGE_LEAF: &[u8] = b"\x03\x02\x05\xa0";
    const KEY_USAGE_INTERMEDIATE: &[u8] = b"\x03\x02\x01\x86";
    const KEY_USAGE_CA: &[u8] = b"\x03\x02\x01\x06";
    const KEY_USAGE_ROOT: &[u8] = b"\x03\x02\x02\x04";
    const SERVER_AND_CLIENT: &[u8] =
        b"\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";
    const NOT_A_CA: &[u8] = b"\x30\x00";
    const CA: &[u8] = b"\x30\x03\x01\x01\xff";
    const CA_PATH_LEN_0: &[u8] = b"\x30\x06\x01\x01\xff\x02\x01\x00";

    let (key_usage, constraints) = (found.key_usage, found.basic_constraints);
    if key_usage == KEY_USAGE_LEAF && constraints == NOT_A_CA && found.extended_key_usage == Some(SERVER_AND_CLIENT) {
        if subject != b"\x30\x00" {
            return Err(Finding("the subject of a leaf is not empty"));
        }
        if found.subject_key_id.is_some() {
            return Err(Finding("a leaf has a subject key identifier"));
        }
        return Ok((Profile::Leaf, false, None));
    }
    if found.extended_key_usage.is_none() && key_usage == KEY_USAGE_INTERMEDIATE && constraints == CA_PATH_LEN_0 {
        return Ok((Profile::Intermediate { organization: certified_organization(subject)? }, true, Some(0)));
    }
    if found.extended_key_usage.is_some() || !found.names.is_empty() {
        return Err(Finding("key usages, basic constraints and names are not those of one profile"));
    }
    if key_usage == KEY_USAGE_CA {
        let path_len = match constraints {
            CA => None,
            [0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, length @ 0..=0x7f] => Some(*length),
            _ => return Err(Finding("the basic constraints are not those of a CA")),
        };
        let subject_key_id = found.subject_key_id.ok_or(Finding("the subject key identifier is missing"))?.to_vec();
        let profile = CaProfile { subject: subject.to_vec(), subject_key_id, path_len };
        return Ok((Profile::Ca(profile), true, path_len));
    }
    if key_usage == KEY_USAGE_ROOT && constraints == CA && found.authority_key_id.is_none() {
        return Ok((Profile::SelfSignedRoot { organization: certified_organization(subject)? }, true, None));
    }
    Err(Finding("key usages and basic constraints are not those of one profile"))
}

/// Whether a CA's DER Name is not empty and every client of Istio can read it.
pub(super) fn name_is_readable(subject: &[u8]) -> Result<(), Finding> {
    let unreadable = Finding("the subject has a string that not every client reads");
    let name = AnyRef::try_from(subject).map_err(|_error: der::Error| unreadable.clone())?;
    if name.value().is_empty() {
        return Err(Finding("the subject of the CA is empty"));
    }
    crate::name::parse(name).map(drop).map_err(|_reason| unreadable)
}

/// The value of a Name that consists of one organization.
pub(crate) fn organization(subject: &[u8]) -> Result<String, Finding> {
    string_of_organization(subject).map(|(_, text)| text.to_owned())
}

/// The same of a CA of ours: viewers and logs show the name, and verifiers differ in how they read a string with
/// characters outside its type.
fn certified_organization(subject: &[u8]) -> Result<String, Finding> {
    let (tag, text) = string_of_organization(subject)?;
    if text.chars().any(char::is_control) {
        return Err(Finding("the organization has a control character"));
    }
    if tag == Tag::PrintableString && PrintableStringRef::new(text).is_err() {
        return Err(Finding("the organization has a character that no PrintableString has"));
    }
    Ok(text.to_owned())
}

fn string_of_organization(subject: &[u8]) -> Result<(Tag, &str), Finding> {
    let read = || -> Result<(Tag, &str), Malformed> {
        let mut rdns = DerReader::inside(subject, Tag::Sequence)?;
        let mut rdn = rdns.enter(Tag::Set)?;
        rdns.finish()?;
        let mut attribute = rdn.enter(Tag::Sequence)?;
        rdn.finish()?;
        if attribute.content(Tag::ObjectIdentifier)? != rfc4519::ORGANIZATION_NAME.as_bytes() {
            return Err(Malformed);
        }
        let (tag, text) = match attribute.any()? {
            (tag @ (Tag::PrintableString | Tag::Utf8String), text) => (tag, std::str::from_utf8(text)),
            _ => return Err(Malformed),
        };
        attribute.finish()?;
        Ok((tag, text.map_err(|_| Malformed)?))
    };
    match read() {
        Ok((tag, text)) if !text.is_empty() && text.chars().count() <= ORGANIZATION_MAX => Ok((tag, text)),
        Ok(_) | Err(Malformed) => Err(Finding("the subject of a CA is not one organization")),
    }
}

/// UTCTime up to 2049, GeneralizedTime from 2050 on, each in the only form of RFC 5280, section 4.1.2.5.
pub(super) fn time(validity: &mut DerReader<'_>) -> Result<SystemTime, Finding> {
    let finding = Finding("a time of the validity is malformed");
    let (tag, whole) = validity.any_whole().map_err(at(finding.0))?;
    match tag {
        Tag::UtcTime => UtcTime::from_der(whole).map(|time| time.to_system_time()).map_err(|_| finding),
        Tag::GeneralizedTime => match GeneralizedTime::from_der(whole) {
            Ok(time) if time.to_date_time().year() > UtcTime::MAX_YEAR => Ok(time.to_system_time()),
            Ok(_) => Err(Finding("a time before 2050 is a GeneralizedTime")),
            Err(_) => Err(finding),
        },
        _ => Err(finding),
    }
}
