//! One certificate of a bundle: the fields that matter, with the bytes that were signed and compared left as they are.
//!
//! What Go's crypto/x509 or rustls-webpki cannot even read is refused here, wherever the certificate stands: Istio's
//! own code parses whole files. What they read and then refuse on a path is for the rules. docs/BUNDLES.md lists both.

use std::time::SystemTime;

use const_oid::{AssociatedOid, ObjectIdentifier, db::rfc5280};
use der::{AnyRef, Decode, Encode, Tag, Tagged};
use x509_cert::ext::{
    Extension,
    pkix::{
        BasicConstraints, CertificatePolicies, CrlDistributionPoints, ExtendedKeyUsage, InhibitAnyPolicy, KeyUsage,
        PolicyConstraints, PolicyMappings, SubjectKeyIdentifier,
    },
};

use super::{
    constraints::{AltNames, Constraints},
    key::Key,
};
use crate::{
    name,
    structure::{Signed, TbsCertificate},
};

/// RFC 5280, section 4.1.2.2. Nothing that Istio's clients verify with cares.
const SERIAL_MAX: usize = 20;

/// What a signature was made with: the content of its AlgorithmIdentifier, and its bits.
#[derive(Clone, Debug)]
pub(crate) struct Signature {
    pub(crate) algorithm: Vec<u8>,
    pub(crate) bits: Vec<u8>,
}

/// authorityKeyIdentifier (RFC 5280, section 4.2.1.1): which certificate the issuer's is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Authority {
    /// The issuer's subjectKeyIdentifier.
    pub(crate) key_id: Option<Vec<u8>>,
    /// DER Name: the issuer of the issuer's certificate.
    pub(super) issuer: Option<Vec<u8>>,
    /// The serial number of the issuer's certificate: the content of the INTEGER.
    pub(super) serial: Option<Vec<u8>>,
}

/// A certificate that could be parsed. Whether it is fit for anything is for the rules to say.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(super) file: String,
    pub(super) line: usize,
    pub(crate) der: Vec<u8>,
    pub(super) tbs: Vec<u8>,
    /// 1 to 3.
    pub(super) version: u8,
    pub(super) has_unique_id: bool,
    /// The content of the INTEGER, which is not negative.
    pub(super) serial: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// DER SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
    pub(super) key: Key,
    pub(super) signature: Signature,
    /// Whether it is a CA's, and its pathLenConstraint; `None` without the extension.
    pub(super) basic_constraints: Option<(bool, Option<u64>)>,
    /// keyCertSign, when there is a keyUsage.
    pub(super) may_sign: Option<bool>,
    /// cRLSign, when there is a keyUsage.
    pub(crate) may_sign_crls: Option<bool>,
    pub(super) extended_key_usage: Option<Vec<ObjectIdentifier>>,
    pub(super) alternative_names: AltNames,
    pub(super) constraints: Option<Constraints>,
    pub(crate) subject_key_id: Option<Vec<u8>>,
    pub(super) authority: Authority,
    pub(super) require_explicit_policy: Option<u32>,
    /// The critical extensions, and whether Go knows everything in them.
    pub(super) critical: Vec<(ObjectIdentifier, bool)>,
}

/// Why a certificate is refused wherever it stands: a predicate of it, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

impl Unreadable {
    /// The bytes are not what the issuer made of them.
    fn damaged(reason: impl Into<String>) -> Self {
        Self { reason: format!("is malformed: {}", reason.into()), remedy: "copy it again".to_owned() }
    }

    /// Go cannot read its key.
    fn key(reason: String) -> Self {
        let remedy = if reason.contains("explicit parameters") {
            "write the key with its curve's name (openssl ec -in KEY -param_enc named_curve -out KEY.new), and have the \
             certificate issued again for it; if the CA's path does not need it, remove it"
        } else {
            "have a certificate issued for another key; if the CA's path does not need it, remove it"
        };
        Self { reason: format!("has a key that {reason}"), remedy: remedy.to_owned() }
    }

    /// The issuer made it so.
    fn issued(reason: impl Into<String>) -> Self {
        let remedy = "have it issued again without that; if the CA's path does not need it, remove it".to_owned();
        Self { reason: reason.into(), remedy }
    }
}

impl Certificate {
    /// Parses a certificate; `file` and `line` are for messages only.
    pub(crate) fn parse(file: &str, line: usize, der: &[u8]) -> Result<Self, Unreadable> {
        let damaged = |_error: der::Error| Unreadable::damaged("it is not a DER certificate");
        let outer = Signed::from_der(der).map_err(damaged)?;
        let tbs = outer.content.to_der().map_err(damaged)?;
        let inner = TbsCertificate::from_der(&tbs)
            .map_err(|_error| Unreadable::damaged("its content is not a DER TBSCertificate"))?;
        if inner.algorithm != outer.algorithm {
            return Err(Unreadable::damaged("it names two different signature algorithms"));
        }
        let version = match inner.version {
            None => 1,
            Some(version @ (1 | 2)) => version + 1,
            Some(_) => return Err(Unreadable::damaged("its version is none of 1, 2 and 3")),
        };
        let extensions = inner.extensions.unwrap_or_default();
        if version < 3 && !extensions.is_empty() {
            return Err(Unreadable {
                reason: format!("has extensions although its version is {version}"),
                remedy: "have it issued again as version 3".to_owned(),
            });
        }
        let repeated = |(at, extension): &(usize, &Extension)| {
            extensions.iter().take(*at).any(|earlier| earlier.extn_id == extension.extn_id)
        };
        if let Some((_, extension)) = extensions.iter().enumerate().find(repeated) {
            return Err(Unreadable::issued(format!("has the extension {} twice", extension.extn_id)));
        }
        let bits = |bits: Option<&[u8]>, what: &str| match bits {
            Some(bits) => Ok(bits.to_vec()),
            None => Err(Unreadable::damaged(format!("its {what} is not a whole number of bytes"))),
        };
        let spki = inner.spki.to_der().map_err(damaged)?;
        let subject = name::parse(inner.subject).map_err(|reason| Unreadable::issued(format!("{SUBJECT} {reason}")))?;
        let issuer = name::parse(inner.issuer).map_err(|reason| Unreadable::issued(format!("{ISSUER} {reason}")))?;
        let mut read = Self {
            file: file.to_owned(),
            line,
            der: der.to_vec(),
            version,
            has_unique_id: inner.issuer_unique_id.is_some() || inner.subject_unique_id.is_some(),
            serial: serial(inner.serial)?,
            issuer,
            subject,
            not_before: inner.validity.not_before.to_system_time(),
            not_after: inner.validity.not_after.to_system_time(),
            key: Key::parse(&spki).map_err(Unreadable::key)?,
            signature: Signature {
                algorithm: outer.algorithm.value().to_vec(),
                bits: bits(outer.signature.as_bytes(), "signature")?,
            },
            basic_constraints: None,
            may_sign: None,
            may_sign_crls: None,
            extended_key_usage: None,
            alternative_names: AltNames::default(),
            constraints: None,
            subject_key_id: None,
            authority: Authority::default(),
            require_explicit_policy: None,
            critical: Vec::new(),
            spki,
            tbs,
        };
        for extension in &extensions {
            read.extension(extension).map_err(|reason| Unreadable::issued(reason.to_owned()))?;
        }
        Ok(read)
    }

    /// Takes one extension in, as strictly as the strictest of Go, BoringSSL and OpenSSL.
    fn extension(&mut self, extension: &Extension) -> Result<(), &'static str> {
        let (critical, value) = (extension.critical, extension.extn_value.as_bytes());
        let mut is_understood = true;
        match extension.extn_id {
            BasicConstraints::OID => {
                self.basic_constraints =
                    Some(basic_constraints(value).ok_or("has malformed basicConstraints, which Go cannot read")?);
            }
            KeyUsage::OID => {
                let usage =
                    KeyUsage::from_der(value).map_err(|_error| "has a malformed keyUsage, which Go cannot read")?;
                self.may_sign = Some(usage.key_cert_sign());
                self.may_sign_crls = Some(usage.crl_sign());
            }
            ExtendedKeyUsage::OID => {
                let usage = ExtendedKeyUsage::from_der(value)
                    .map_err(|_error| "has a malformed extendedKeyUsage, which Go cannot read")?;
                self.extended_key_usage = Some(usage.0);
            }
            rfc5280::ID_CE_SUBJECT_ALT_NAME => {
                self.alternative_names = AltNames::parse(value)?;
                is_understood = !self.alternative_names.is_unknown_to_go();
            }
            rfc5280::ID_CE_NAME_CONSTRAINTS => {
                let constraints = Constraints::parse(value)?;
                is_understood = !constraints.is_unknown_to_go();
                self.constraints = Some(constraints);
            }
            SubjectKeyIdentifier::OID => {
                let id = SubjectKeyIdentifier::from_der(value)
                    .map_err(|_error| "has a malformed subjectKeyIdentifier, which Go cannot read")?;
                self.subject_key_id = Some(id.0.as_bytes().to_vec());
                if critical {
                    return Err("has a critical subjectKeyIdentifier, which Go cannot read");
                }
            }
            rfc5280::ID_CE_AUTHORITY_KEY_IDENTIFIER => {
                self.authority =
                    Authority::parse(value).ok_or("has a malformed authorityKeyIdentifier, which Go cannot read")?;
                if critical {
                    return Err("has a critical authorityKeyIdentifier, which Go cannot read");
                }
            }
            rfc5280::ID_PE_AUTHORITY_INFO_ACCESS if critical => {
                return Err("has a critical authorityInfoAccess, which Go cannot read");
            }
            CrlDistributionPoints::OID => {
                CrlDistributionPoints::from_der(value)
                    .map_err(|_error| "has malformed cRLDistributionPoints, which Go cannot read")?;
            }
            CertificatePolicies::OID => policies(value)?,
            PolicyConstraints::OID => {
                let constraints = PolicyConstraints::from_der(value);
                let constraints =
                    constraints.map_err(|_error| "has malformed policyConstraints, which Go cannot read")?;
                if constraints.require_explicit_policy.is_none() && constraints.inhibit_policy_mapping.is_none() {
                    return Err("has empty policyConstraints, which Go cannot read");
                }
                self.require_explicit_policy = constraints.require_explicit_policy;
            }
            PolicyMappings::OID => {
                let PolicyMappings(mappings) = PolicyMappings::from_der(value)
                    .map_err(|_error| "has malformed policyMappings, which Go cannot read")?;
                let any = |oid: ObjectIdentifier| oid == rfc5280::ANY_POLICY;
                if mappings.is_empty()
                    || mappings.iter().any(|it| any(it.issuer_domain_policy) || any(it.subject_domain_policy))
                {
                    return Err("has policyMappings that are empty or map anyPolicy");
                }
            }
            InhibitAnyPolicy::OID => {
                InhibitAnyPolicy::from_der(value)
                    .map_err(|_error| "has a malformed inhibitAnyPolicy, which Go cannot read")?;
            }
            _ => {}
        }
        if critical {
            self.critical.push((extension.extn_id, is_understood));
        }
        Ok(())
    }

    /// Its name for messages: location and subject.
    pub(super) fn label(&self) -> String {
        format!("the certificate on line {} ({})", self.line, name::shown(&self.subject))
    }

    pub(super) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether a serial number is longer than RFC 5280 allows.
    pub(super) fn has_long_serial(&self) -> bool {
        self.serial.iter().skip_while(|byte| **byte == 0).count() > SERIAL_MAX
    }

    /// Whether two certificates are of one CA: the same name and key. Go and rustls-webpki put only one of them on a path.
    pub(crate) fn is_same_ca(&self, other: &Self) -> bool {
        self.subject == other.subject && self.spki == other.spki
    }
}

const SUBJECT: &str = "has a subject that";
const ISSUER: &str = "has an issuer's name that";

impl Authority {
    /// As OpenSSL reads it: of the issuer's names only the first directoryName counts.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let fields: Vec<AnyRef<'_>> = Vec::from_der(value).ok()?;
        let mut authority = Self::default();
        for field in fields {
            let Tag::ContextSpecific { number, .. } = field.tag() else { return None };
            match number.value() {
                0 => authority.key_id = Some(field.value().to_vec()),
                1 => {
                    let names = AnyRef::new(Tag::Sequence, field.value()).and_then(|names| names.to_der()).ok()?;
                    let names: Vec<AnyRef<'_>> = Vec::from_der(&names).ok()?;
                    let directory = |name: &&AnyRef<'_>| matches!(name.tag(), Tag::ContextSpecific { number, .. } if number.value() == 4);
                    authority.issuer = names.iter().find(directory).map(|name| name.value().to_vec());
                }
                2 => authority.serial = Some(field.value().to_vec()),
                _ => return None,
            }
        }
        Some(authority)
    }
}

/// The content of a serial number that Go's parser takes.
fn serial(value: AnyRef<'_>) -> Result<Vec<u8>, Unreadable> {
    let bytes = value.value();
    let is_minimal = match bytes {
        [0, next, ..] => next & 0x80 != 0,
        [0xff, next, ..] => next & 0x80 == 0,
        _ => !bytes.is_empty(),
    };
    if value.tag() != Tag::Integer || !is_minimal {
        return Err(Unreadable::damaged("its serial number is not a DER INTEGER"));
    }
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        return Err(Unreadable {
            reason: format!("has a negative serial number ({}), which Go cannot read", hex(bytes)),
            remedy: "have it issued again with a positive one; if the CA's path does not need it, remove it".to_owned(),
        });
    }
    Ok(bytes.to_vec())
}

/// basicConstraints with a path length of any size.
fn basic_constraints(value: &[u8]) -> Option<(bool, Option<u64>)> {
    #[derive(der::Sequence)]
    struct AnyLength {
        #[asn1(default = "Default::default")]
        ca: bool,
        path_len: Option<u64>,
    }
    AnyLength::from_der(value).ok().map(|AnyLength { ca, path_len }| (ca, path_len))
}

/// At least one policy, each once: Go and BoringSSL.
fn policies(value: &[u8]) -> Result<(), &'static str> {
    let CertificatePolicies(policies) = CertificatePolicies::from_der(value)
        .map_err(|_error| "has malformed certificatePolicies, which Go cannot read")?;
    let twice = policies.iter().enumerate().any(|(at, policy)| {
        policies.iter().take(at).any(|earlier| earlier.policy_identifier == policy.policy_identifier)
    });
    if twice || policies.is_empty() {
        return Err("has certificatePolicies that are empty or name a policy twice, which Go or BoringSSL cannot read");
    }
    Ok(())
}

/// Bytes as OpenSSL shows them: `0A:FF`.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
