//! A client's leaf: parsed, verified with its issuer's key, and compared with what this CA issues.
//!
//! Pure. Checks that depend on time or configuration (validity, age, denylist) are not made here.

use std::time::SystemTime;

use const_oid::{ObjectIdentifier, db};
use der::{Decode, Reader, SliceReader};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName, name::GeneralName},
};

use super::CertificateError;
use crate::auth::credential_cache::{Hash, sha256};
use pki::{PublicKey, SignatureAlgorithm, crl::SerialNumber, identity::SpiffeId};

/// Maximum size of a leaf in bytes: ours are below 2 KiB even with RSA-4096 keys and the longest SPIFFE ID.
const MOST: usize = 8192;

/// Content of a verified leaf.
#[derive(Debug)]
pub struct Leaf {
    /// The serial number; `None` if it is one that no CRL can have.
    pub serial: Option<SerialNumber>,
    /// DER Name of the issuer.
    pub issuer: Vec<u8>,
    /// The workload.
    pub identity: SpiffeId,
    /// SHA-256 of its key's DER SubjectPublicKeyInfo.
    pub key: Hash,
    /// notBefore.
    pub not_before: SystemTime,
    /// notAfter, inclusive (RFC 5280, section 4.1.2.5).
    pub not_after: SystemTime,
}

/// A certificate that has not been verified.
#[derive(Debug)]
pub struct Unproven<'a> {
    parsed: Certificate,
    raw: Raw<'a>,
}

/// The encoded parts of a certificate: the signature covers these bytes.
#[derive(Debug)]
struct Raw<'a> {
    tbs: &'a [u8],
    serial: &'a [u8],
    issuer: &'a [u8],
    public_key_info: &'a [u8],
}

/// The DER SubjectPublicKeyInfo of a certificate of any version, byte for byte.
#[must_use]
pub fn public_key_info(certificate: &[u8]) -> Option<&[u8]> {
    Raw::split(certificate).ok().map(|raw| raw.public_key_info)
}

/// The serial number of a certificate, and SHA-256 of its DER SubjectPublicKeyInfo.
pub(super) fn serial_and_key(certificate: &[u8]) -> Option<(SerialNumber, Hash)> {
    let raw = Raw::split(certificate).ok()?;
    Some((serial_number(raw.serial)?, sha256(raw.public_key_info)))
}

/// The number in a DER INTEGER.
fn serial_number(integer: &[u8]) -> Option<SerialNumber> {
    SerialNumber::new(der::AnyRef::from_der(integer).ok()?.value())
}

impl<'a> Unproven<'a> {
    /// Parses a certificate.
    ///
    /// # Errors
    /// If it is malformed, or larger than any leaf of ours.
    pub fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        if der.len() > MOST {
            return Err(CertificateError::Malformed);
        }
        let malformed = |_| CertificateError::Malformed;
        Ok(Self { parsed: Certificate::from_der(der).map_err(malformed)?, raw: Raw::split(der).map_err(malformed)? })
    }

    /// DER Name of the claimed issuer.
    #[must_use]
    pub fn issuer(&self) -> &'a [u8] {
        self.raw.issuer
    }

    /// Whether the key verifies its signature. Both algorithm fields must be equal (RFC 5280, section 4.1.1.2).
    #[must_use]
    pub fn signed_by(&self, key: &PublicKey) -> bool {
        let algorithm = self.parsed.signature_algorithm();
        algorithm == self.parsed.tbs_certificate().signature()
            && signature_algorithm(&algorithm.oid).is_some_and(|algorithm| {
                self.parsed
                    .signature()
                    .as_bytes()
                    .is_some_and(|signature| key.verify(algorithm, self.raw.tbs, signature).is_ok())
            })
    }

    /// Checks that its form is what this CA issues to workloads (`security/pkg/pki/util/generate_cert.go`).
    ///
    /// # Errors
    /// The first difference.
    pub fn lint(self) -> Result<Leaf, CertificateError> {
        let tbs = self.parsed.tbs_certificate();
        if tbs.version() != Version::V3 {
            return Err(CertificateError::Version);
        }
        known_extensions(tbs)?;
        let malformed = |_| CertificateError::Malformed;
        if tbs.get_extension::<BasicConstraints>().map_err(malformed)?.is_some_and(|(_, basic)| basic.ca) {
            return Err(CertificateError::Ca);
        }
        let usage = tbs.get_extension::<KeyUsage>().map_err(malformed)?;
        let purposes = tbs.get_extension::<ExtendedKeyUsage>().map_err(malformed)?;
        let signs = usage.is_some_and(|(_, usage)| usage.digital_signature());
        let client = purposes.is_some_and(|(_, purposes)| purposes.0.contains(&db::rfc5280::ID_KP_CLIENT_AUTH));
        if !signs || !client {
            return Err(CertificateError::KeyUsage);
        }
        Ok(Leaf {
            serial: serial_number(self.raw.serial),
            identity: identity(tbs)?,
            issuer: self.raw.issuer.to_vec(),
            key: sha256(self.raw.public_key_info),
            not_before: tbs.validity().not_before.to_system_time(),
            not_after: tbs.validity().not_after.to_system_time(),
        })
    }
}

/// Its only name: our serving certificates have DNS names, which a workload's never has.
fn identity(tbs: &TbsCertificate) -> Result<SpiffeId, CertificateError> {
    let names = tbs.get_extension::<SubjectAltName>().map_err(|_| CertificateError::Malformed)?;
    let Some((_, SubjectAltName(names))) = names else { return Err(CertificateError::Names) };
    match names.as_slice() {
        [GeneralName::UniformResourceIdentifier(uri)] => uri.as_str().parse().map_err(|_| CertificateError::Names),
        _ => Err(CertificateError::Names),
    }
}

/// Rejects unknown critical extensions (RFC 5280, section 4.2).
fn known_extensions(tbs: &TbsCertificate) -> Result<(), CertificateError> {
    const KNOWN: [ObjectIdentifier; 5] = [
        db::rfc5280::ID_CE_AUTHORITY_KEY_IDENTIFIER,
        db::rfc5280::ID_CE_BASIC_CONSTRAINTS,
        db::rfc5280::ID_CE_EXT_KEY_USAGE,
        db::rfc5280::ID_CE_KEY_USAGE,
        db::rfc5280::ID_CE_SUBJECT_ALT_NAME,
    ];
    let mut extensions = tbs.extensions().into_iter().flatten();
    if extensions.any(|extension| extension.critical && !KNOWN.contains(&extension.extn_id)) {
        return Err(CertificateError::Malformed);
    }
    Ok(())
}

fn signature_algorithm(oid: &ObjectIdentifier) -> Option<SignatureAlgorithm> {
    const TABLE: [(ObjectIdentifier, SignatureAlgorithm); 7] = [
        (db::rfc5912::ECDSA_WITH_SHA_256, SignatureAlgorithm::EcdsaSha256),
        (db::rfc5912::ECDSA_WITH_SHA_384, SignatureAlgorithm::EcdsaSha384),
        (db::rfc5912::ECDSA_WITH_SHA_512, SignatureAlgorithm::EcdsaSha512),
        (db::rfc8410::ID_ED_25519, SignatureAlgorithm::Ed25519),
        (db::rfc5912::SHA_256_WITH_RSA_ENCRYPTION, SignatureAlgorithm::RsaSha256),
        (db::rfc5912::SHA_384_WITH_RSA_ENCRYPTION, SignatureAlgorithm::RsaSha384),
        (db::rfc5912::SHA_512_WITH_RSA_ENCRYPTION, SignatureAlgorithm::RsaSha512),
    ];
    TABLE.iter().find(|(known, _)| known == oid).map(|(_, algorithm)| *algorithm)
}

impl<'a> Raw<'a> {
    fn split(certificate: &'a [u8]) -> der::Result<Self> {
        let (tbs, fields) = fields(certificate)?;
        match fields.as_slice() {
            [serial, _, issuer, _, _, public_key_info] => Ok(Self { tbs, serial, issuer, public_key_info }),
            _ => Err(der::Tag::Sequence.length_error().into()),
        }
    }
}

/// The DER of the tbsCertificate and of its first six fields from serialNumber on (RFC 5280, section 4.1):
/// serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo.
fn fields(certificate: &[u8]) -> der::Result<(&[u8], Vec<&[u8]>)> {
    const FIELDS: usize = 6;
    let mut reader = SliceReader::new(certificate)?;
    let tbs = reader.sequence(|inner| {
        let tbs = inner.tlv_bytes()?;
        inner.tlv_bytes()?;
        inner.tlv_bytes()?;
        Ok::<_, der::Error>(tbs)
    })?;
    reader.finish()?;
    let fields = SliceReader::new(tbs)?.sequence(|inner| {
        if der::Tag::peek(inner)?.is_context_specific() {
            inner.tlv_bytes()?;
        }
        let fields = (0..FIELDS).map(|_| inner.tlv_bytes()).collect::<der::Result<Vec<_>>>()?;
        while !inner.is_finished() {
            inner.tlv_bytes()?;
        }
        Ok::<_, der::Error>(fields)
    })?;
    Ok((tbs, fields))
}
