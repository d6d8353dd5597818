//! A CA's own CSR (RFC 2986), to be signed by the root's owner.
//!
//! Builds the bytes to be signed from a subject and a public key, and adds a signature that verifies. Never signs.

use der::{Decode, Encode, EncodePem, asn1::BitString, pem::LineEnding};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{
    attr::{Attribute, Attributes},
    ext::pkix::{BasicConstraints, KeyUsage, KeyUsages},
    name::{Name, RdnSequence, RelativeDistinguishedName},
    request::{CertReq, CertReqInfo, ExtensionReq, Version},
};

use super::{PublicKey, algorithm, name, tbs::extension};

/// Maximum length of a subject in bytes: a handful of attributes of 64 characters (RFC 5280, appendix A.1).
const SUBJECT_MAX: usize = 1024;

/// There is no CSR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The CSR cannot be encoded.
    #[error("BUG: the certificate request cannot be encoded")]
    Encoding,
    /// The bytes are not a CSR.
    #[error("the certificate request is malformed")]
    Malformed,
    /// The signature does not verify with the key.
    #[error("the token's signature does not verify with the new key: the token is broken, or its key is another")]
    Signature,
    /// The subject is not a valid name.
    #[error("the subject {0:?} is no name; write it as O=My Company,CN=My Mesh CA (a comma in a value as \\,)")]
    Subject(String),
}

/// The subject of a CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(Name);

impl std::str::FromStr for Subject {
    type Err = RequestError;

    /// Attributes in the order of the certificate, as printed by openssl; values are escaped as in RFC 4514, whose own
    /// order is the reverse.
    fn from_str(text: &str) -> Result<Self, RequestError> {
        let refused = || RequestError::Subject(text.chars().take(120).collect());
        if text.is_empty() || text.len() > SUBJECT_MAX || text.chars().any(char::is_control) {
            return Err(refused());
        }
        let reversed: RdnSequence = text.parse().map_err(|_error| refused())?;
        let mut parts: Vec<RelativeDistinguishedName> = reversed.iter().cloned().collect();
        parts.reverse();
        let empty = parts.iter().flat_map(RelativeDistinguishedName::iter).any(|part| part.value.value().is_empty());
        if parts.is_empty() || empty {
            return Err(refused());
        }
        let der = RdnSequence::from(parts).to_der().map_err(|_error| refused())?;
        Name::from_der(&der).map(Self).map_err(|_error| refused())
    }
}

impl Subject {
    /// DER Name.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn to_der(&self) -> Result<Vec<u8>, RequestError> {
        self.0.to_der().map_err(|_error| RequestError::Encoding)
    }

    /// Whether a DER Name has the same text, in whatever string types.
    #[must_use]
    pub fn is_name(&self, der: &[u8]) -> bool {
        self.to_der().is_ok_and(|own| name::is_same_text(&own, der))
    }
}

/// The subject of a DER CertificationRequest: a DER Name.
///
/// # Errors
/// If it is not a CertificationRequest.
pub fn requested_subject(der: &[u8]) -> Result<Vec<u8>, RequestError> {
    let request = CertReq::from_ber(der).map_err(|_error| RequestError::Malformed)?;
    request.info.subject.to_der().map_err(|_error| RequestError::Malformed)
}

/// A DER Name for people (RFC 4514).
#[must_use]
pub fn subject_text(der: &[u8]) -> String {
    name::shown(der)
}

/// A CSR to be signed; it requests CA:TRUE, keyCertSign and cRLSign.
#[derive(Clone, Debug)]
pub struct CaRequest {
    info: CertReqInfo,
    der: Vec<u8>,
    key: PublicKey,
}

impl CaRequest {
    /// Builds the bytes to be signed.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn new(subject: &Subject, key: PublicKey) -> Result<Self, RequestError> {
        let info = ca_info(subject, &key).map_err(|_error| RequestError::Encoding)?;
        let der = info.to_der().map_err(|_error| RequestError::Encoding)?;
        Ok(Self { info, der, key })
    }

    /// DER CertificationRequestInfo.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The key to be certified, which also signs.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// The complete CSR in PEM. `signature` is the content of signatureValue.
    ///
    /// # Errors
    /// If the signature does not verify.
    pub fn assemble(&self, signature: &[u8]) -> Result<String, RequestError> {
        let algorithm = self.key.signature_algorithm();
        self.key.verify(algorithm, &self.der, signature).map_err(|_| RequestError::Signature)?;
        assemble(self.info.clone(), &self.key, signature).map_err(|_error| RequestError::Encoding)
    }
}

/// The bytes to be signed for a CSR without subject, names and attributes (RFC 2986); the requester is identified by
/// other means.
///
/// # Errors
/// If it cannot be encoded.
pub fn nameless_info(key: &PublicKey) -> Result<Vec<u8>, RequestError> {
    let info = certification_request_info(Name::default(), key, Attributes::default());
    info.and_then(|info| info.to_der()).map_err(|_error| RequestError::Encoding)
}

/// The complete CSR of a [`nameless_info`] in PEM. `signature` is the content of signatureValue.
///
/// # Errors
/// If it cannot be encoded.
pub fn nameless(key: &PublicKey, info: &[u8], signature: &[u8]) -> Result<String, RequestError> {
    CertReqInfo::from_der(info).and_then(|info| assemble(info, key, signature)).map_err(|_error| RequestError::Encoding)
}

fn ca_info(subject: &Subject, key: &PublicKey) -> der::Result<CertReqInfo> {
    let constraints = BasicConstraints { ca: true, path_len_constraint: None };
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    let extensions = vec![extension(true, &constraints)?, extension(true, &usage)?];
    let mut attributes = Attributes::default();
    attributes.insert(Attribute::try_from(ExtensionReq(extensions))?)?;
    certification_request_info(subject.0.clone(), key, attributes)
}

fn certification_request_info(subject: Name, key: &PublicKey, attributes: Attributes) -> der::Result<CertReqInfo> {
    let public_key = SubjectPublicKeyInfoOwned::from_der(key.spki_der())?;
    Ok(CertReqInfo { version: Version::V1, subject, public_key, attributes })
}

fn assemble(info: CertReqInfo, key: &PublicKey, signature: &[u8]) -> der::Result<String> {
    let algorithm = AlgorithmIdentifierOwned::from_der(algorithm::identifier(key.signature_algorithm()))?;
    CertReq { info, algorithm, signature: BitString::from_bytes(signature)? }.to_pem(LineEnding::LF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_keep_their_order() {
        let subject: Subject = "O=My Company\\, Inc,CN=My Mesh CA".parse().unwrap();
        assert_eq!(subject.0.to_string(), "CN=My Mesh CA,O=My Company\\, Inc", "RFC 4514 prints the reverse");
    }

    #[test]
    fn invalid_subject_is_refused() {
        for bad in ["", "nothing", "O=", "O=a,,CN=b", "O=a\nCN=b", "1.2.3", &format!("O={}", "x".repeat(1100))] {
            assert!(matches!(bad.parse::<Subject>(), Err(RequestError::Subject(_))), "{bad:?}");
        }
    }
}
