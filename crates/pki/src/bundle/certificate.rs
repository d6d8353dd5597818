//! One certificate of a bundle: the fields that matter, with the bytes that were signed and compared left as they are.

use std::time::SystemTime;

use const_oid::{AssociatedOid, ObjectIdentifier, db::rfc5280};
use der::{AnyRef, Decode, Encode, Sequence, asn1::BitStringRef};
use x509_cert::{
    ext::{
        Extension,
        pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectKeyIdentifier},
    },
    name::Name,
};

use crate::structure::{Signed, TbsCertificate};

/// SubjectPublicKeyInfo, of any type.
#[derive(Sequence)]
struct Spki<'a> {
    algorithm: AnyRef<'a>,
    key: BitStringRef<'a>,
}

/// An algorithm or key: the content of its AlgorithmIdentifier, and the bits that belong to it.
#[derive(Clone, Debug)]
pub(super) struct Identified {
    pub(super) algorithm: Vec<u8>,
    pub(super) bits: Vec<u8>,
}

/// A certificate that could be parsed. Whether it is fit for anything is for the rules to say.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) der: Vec<u8>,
    pub(super) tbs: Vec<u8>,
    pub(super) is_v1: bool,
    pub(super) issuer: Vec<u8>,
    pub(super) subject: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) spki: Vec<u8>,
    pub(super) key: Identified,
    pub(super) signature: Identified,
    pub(super) basic_constraints: Option<BasicConstraints>,
    /// keyCertSign, when there is a keyUsage.
    pub(super) may_sign: Option<bool>,
    pub(super) extended_key_usage: Option<Vec<ObjectIdentifier>>,
    pub(super) name_constraints: Option<(bool, NameConstraints)>,
    pub(super) subject_key_id: Option<Vec<u8>>,
    /// Critical extensions that Istio's clients do not know, and so refuse.
    pub(super) unknown_critical: Vec<ObjectIdentifier>,
}

/// What both Go's crypto/x509 and rustls-webpki take when it is critical.
const KNOWN_CRITICAL: [ObjectIdentifier; 6] = [
    rfc5280::ID_CE_BASIC_CONSTRAINTS,
    rfc5280::ID_CE_CRL_DISTRIBUTION_POINTS,
    rfc5280::ID_CE_EXT_KEY_USAGE,
    rfc5280::ID_CE_KEY_USAGE,
    rfc5280::ID_CE_NAME_CONSTRAINTS,
    rfc5280::ID_CE_SUBJECT_ALT_NAME,
];

impl Certificate {
    /// Parses a certificate; `file` and `line` are for messages only.
    pub(super) fn parse(file: &str, line: usize, der: &[u8]) -> Result<Self, &'static str> {
        let outer = Signed::from_der(der).map_err(|_error| "it is not a DER certificate")?;
        let tbs = outer.content.to_der().map_err(|_error| "it is not a DER certificate")?;
        let inner = TbsCertificate::from_der(&tbs).map_err(|_error| "its content is not a DER TBSCertificate")?;
        if inner.algorithm != outer.algorithm {
            return Err("it names two different signature algorithms");
        }
        let is_v1 = match inner.version {
            None => true,
            Some(2) => false,
            Some(_) => return Err("its version is neither 1 nor 3"),
        };
        let extensions = inner.extensions.unwrap_or_default();
        if is_v1 && !extensions.is_empty() {
            return Err("it has extensions although its version is 1");
        }
        let repeated = |(at, extension): (usize, &Extension)| {
            extensions.iter().take(at).any(|earlier| earlier.extn_id == extension.extn_id)
        };
        if extensions.iter().enumerate().any(repeated) {
            return Err("it has an extension twice");
        }
        let spki = inner.spki.to_der().map_err(|_error| "its public key is malformed")?;
        let key = Spki::from_der(&spki).map_err(|_error| "its public key is malformed")?;
        let unknown = |extension: &&Extension| extension.critical && !KNOWN_CRITICAL.contains(&extension.extn_id);
        Ok(Self {
            file: file.to_owned(),
            line,
            der: der.to_vec(),
            is_v1,
            issuer: name(inner.issuer).ok_or("its issuer is malformed")?,
            subject: name(inner.subject).ok_or("its subject is malformed")?,
            not_before: inner.validity.not_before.to_system_time(),
            not_after: inner.validity.not_after.to_system_time(),
            key: Identified { algorithm: key.algorithm.value().to_vec(), bits: key.key.raw_bytes().to_vec() },
            signature: Identified {
                algorithm: outer.algorithm.value().to_vec(),
                bits: outer.signature.raw_bytes().to_vec(),
            },
            basic_constraints: value(&extensions).ok_or("its basicConstraints are malformed")?.map(|(_, it)| it),
            may_sign: value::<KeyUsage>(&extensions)
                .ok_or("its keyUsage is malformed")?
                .map(|(_, usage)| usage.key_cert_sign()),
            extended_key_usage: value::<ExtendedKeyUsage>(&extensions)
                .ok_or("its extendedKeyUsage is malformed")?
                .map(|(_, usage)| usage.0),
            name_constraints: value(&extensions).ok_or("its nameConstraints are malformed")?,
            subject_key_id: value::<SubjectKeyIdentifier>(&extensions)
                .ok_or("its subjectKeyIdentifier is malformed")?
                .map(|(_, id)| id.0.as_bytes().to_vec()),
            unknown_critical: extensions.iter().filter(unknown).map(|extension| extension.extn_id).collect(),
            spki,
            tbs,
        })
    }

    /// How messages call it: where it stands and whose it is.
    pub(super) fn label(&self) -> String {
        format!("the certificate on line {} ({})", self.line, shown(&self.subject))
    }

    pub(super) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }
}

/// A name for people (RFC 4514), without control characters and not without end.
pub(super) fn shown(name_der: &[u8]) -> String {
    let text = Name::from_der(name_der).map(|name| name.to_string()).unwrap_or_default();
    if text.is_empty() {
        return "empty name".to_owned();
    }
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(120).collect()
}

fn name(value: AnyRef<'_>) -> Option<Vec<u8>> {
    let der = value.to_der().ok()?;
    Name::from_der(&der).ok()?;
    Some(der)
}

/// An extension's value and whether it is critical: `None` when malformed, `Some(None)` when absent.
fn value<T: for<'a> Decode<'a> + AssociatedOid>(extensions: &[Extension]) -> Option<Option<(bool, T)>> {
    match extensions.iter().find(|extension| extension.extn_id == T::OID) {
        None => Some(None),
        Some(extension) => {
            T::from_der(extension.extn_value.as_bytes()).ok().map(|value| Some((extension.critical, value)))
        }
    }
}
