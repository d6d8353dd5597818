//! CA certificates byte by byte: what openssl and rcgen do not make, and real CAs do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::{DateTime, Encode, Tag, asn1::GeneralizedTime};
use rcgen::{KeyPair, PublicKeyData, SigningKey};

use super::{context, element, extension, public};
use crate::{SignatureAlgorithm, algorithm, pem};

/// The content of the object identifier of commonName.
const COMMON_NAME: &[u8] = b"\x55\x04\x03";

/// A CA's certificate before it is signed.
#[derive(Clone)]
pub struct Draft {
    /// The value of the version field; none for version 1.
    pub version: Option<u8>,
    /// The content of the INTEGER.
    pub serial: Vec<u8>,
    /// DER Name.
    pub issuer: Vec<u8>,
    /// DER Name.
    pub subject: Vec<u8>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// A subjectUniqueID.
    pub has_unique_id: bool,
    /// DER of each Extension.
    pub extensions: Vec<Vec<u8>>,
}

impl Draft {
    /// A conforming CA's certificate for ten years around a time, without key identifiers: its own issuer.
    pub fn new(name: &[u8], key: &KeyPair, now: SystemTime) -> Self {
        let years = Duration::from_secs(5 * 365 * 86_400);
        Self {
            version: Some(2),
            serial: vec![1],
            issuer: name.to_vec(),
            subject: name.to_vec(),
            not_before: now - years,
            not_after: now + years,
            spki: key.subject_public_key_info(),
            has_unique_id: false,
            extensions: vec![basic_constraints(true, None), key_usage(true)],
        }
    }

    /// The same for a CA that another one certifies.
    pub fn under(name: &[u8], key: &KeyPair, issuer: &[u8], now: SystemTime) -> Self {
        Self { issuer: issuer.to_vec(), ..Self::new(name, key, now) }
    }

    /// With one more extension.
    pub fn with(mut self, extension: Vec<u8>) -> Self {
        self.extensions.push(extension);
        self
    }

    /// DER TBSCertificate.
    pub fn tbs(&self, signature: &[u8]) -> Vec<u8> {
        let version = self.version.map(|version| element(context(0, true), &[&element(Tag::Integer, &[&[version]])]));
        let validity = element(Tag::Sequence, &[&time(self.not_before), &time(self.not_after)]);
        let unique = if self.has_unique_id { element(context(2, false), &[&[0, 1]]) } else { Vec::new() };
        let list = element(Tag::Sequence, &[&self.extensions.concat()]);
        let extensions = if self.extensions.is_empty() { Vec::new() } else { element(context(3, true), &[&list]) };
        element(
            Tag::Sequence,
            &[
                &version.unwrap_or_default(),
                &element(Tag::Integer, &[&self.serial]),
                signature,
                &self.issuer,
                &validity,
                &self.subject,
                &self.spki,
                &unique,
                &extensions,
            ],
        )
    }

    /// DER of the certificate, signed by a key as this program signs with it.
    pub fn sign(&self, key: &KeyPair) -> Vec<u8> {
        let algorithm = match key.algorithm() {
            it if *it == rcgen::PKCS_ECDSA_P521_SHA512 => algorithm::identifier(SignatureAlgorithm::EcdsaSha512),
            _ => algorithm::identifier(public(key).signature_algorithm()),
        };
        self.signed(algorithm, |tbs| key.sign(tbs).unwrap())
    }

    /// The same, signed in any way with a DER AlgorithmIdentifier.
    pub fn signed(&self, algorithm: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let tbs = self.tbs(algorithm);
        let signature = sign(&tbs);
        element(Tag::Sequence, &[&tbs, algorithm, &element(Tag::BitString, &[&[0], &signature])])
    }

    /// The PEM of the certificate, signed by a key.
    pub fn pem(&self, key: &KeyPair) -> String {
        pem::encode("CERTIFICATE", &self.sign(key))
    }
}

/// A Name of one commonName.
pub fn common_name(tag: Tag, text: &[u8]) -> Vec<u8> {
    let attribute = element(Tag::Sequence, &[&element(Tag::ObjectIdentifier, &[COMMON_NAME]), &element(tag, &[text])]);
    element(Tag::Sequence, &[&element(Tag::Set, &[&attribute])])
}

/// basicConstraints.
pub fn basic_constraints(ca: bool, path_length: Option<u16>) -> Vec<u8> {
    let ca = if ca { element(Tag::Boolean, &[&[0xff]]) } else { Vec::new() };
    let length = path_length.map(|length| length.to_der().unwrap()).unwrap_or_default();
    extension(b"\x55\x1d\x13", Some(0xff), &element(Tag::Sequence, &[&ca, &length]))
}

/// keyUsage: keyCertSign and cRLSign, or cRLSign alone.
pub fn key_usage(cert_sign: bool) -> Vec<u8> {
    let bits: &[u8] = if cert_sign { &[1, 0x06] } else { &[1, 0x02] };
    extension(b"\x55\x1d\x0f", Some(0xff), &element(Tag::BitString, &[bits]))
}

/// subjectKeyIdentifier.
pub fn subject_key_id(id: &[u8]) -> Vec<u8> {
    extension(b"\x55\x1d\x0e", None, &element(Tag::OctetString, &[id]))
}

/// authorityKeyIdentifier: the key id, and the issuer (DER Name) and serial number of the issuer's certificate.
pub fn authority_key_id(key_id: Option<&[u8]>, certificate: Option<(&[u8], &[u8])>) -> Vec<u8> {
    let key_id = key_id.map(|id| element(context(0, false), &[id])).unwrap_or_default();
    let certificate = certificate.map(|(issuer, serial)| {
        let names = element(context(1, true), &[&element(context(4, true), &[issuer])]);
        [names, element(context(2, false), &[serial])].concat()
    });
    extension(b"\x55\x1d\x23", None, &element(Tag::Sequence, &[&key_id, &certificate.unwrap_or_default()]))
}

/// extendedKeyUsage of id-kp-1 (serverAuth), id-kp-2 (clientAuth) and so on; 0 for anyExtendedKeyUsage.
pub fn extended_key_usage(purposes: &[u8]) -> Vec<u8> {
    let oid = |purpose: &u8| match purpose {
        0 => element(Tag::ObjectIdentifier, &[b"\x55\x1d\x25\x00"]),
        other => element(Tag::ObjectIdentifier, &[b"\x2b\x06\x01\x05\x05\x07\x03", &[*other]]),
    };
    let oids: Vec<_> = purposes.iter().map(oid).collect();
    extension(b"\x55\x1d\x25", None, &element(Tag::Sequence, &[&oids.concat()]))
}

/// nameConstraints of (context tag, content) permitted and excluded; directory names (4) are constructed.
pub fn name_constraints(permitted: &[(u32, &[u8])], excluded: &[(u32, &[u8])]) -> Vec<u8> {
    let subtrees = |tag: u32, bases: &[(u32, &[u8])]| {
        let subtree = |(number, base): &(u32, &[u8])| {
            element(Tag::Sequence, &[&element(context(*number, *number == 4), &[base])])
        };
        let list: Vec<_> = bases.iter().map(subtree).collect();
        if bases.is_empty() { Vec::new() } else { element(context(tag, true), &[&list.concat()]) }
    };
    let value = element(Tag::Sequence, &[&subtrees(0, permitted), &subtrees(1, excluded)]);
    extension(b"\x55\x1d\x1e", Some(0xff), &value)
}

/// policyConstraints with requireExplicitPolicy.
pub fn require_explicit_policy(after: u8) -> Vec<u8> {
    let value = element(Tag::Sequence, &[&element(context(0, false), &[&[after]])]);
    extension(b"\x55\x1d\x24", None, &value)
}

/// GeneralizedTime for all years, which every reader takes.
fn time(time: SystemTime) -> Vec<u8> {
    let seconds = Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap().as_secs());
    GeneralizedTime::from_date_time(DateTime::from_unix_duration(seconds).unwrap()).to_der().unwrap()
}
