//! A CA's own certificate request (RFC 2986), for the root's owner to sign.
//!
//! Builds the bytes to be signed from a subject and a public key, and puts the signature to them once it verifies.
//! Never signs. Called by `generate --csr`, whose token signs.

use der::{
    Decode, Encode, EncodePem, Tag,
    asn1::{BitString, OctetString},
    pem::LineEnding,
};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{
    attr::{Attribute, Attributes},
    ext::{
        Extension,
        pkix::{BasicConstraints, KeyUsage, KeyUsages},
    },
    name::{RdnSequence, RelativeDistinguishedName},
    request::{CertReq, CertReqInfo, ExtensionReq, Version},
};

use super::{
    PublicKey, algorithm, pem,
    tbs::{TbsError, join},
    walk::context,
};

/// The longest subject in bytes that is taken: a handful of attributes of 64 characters (RFC 5280, appendix A.1).
const SUBJECT_MAX: usize = 1024;

/// Why there is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request cannot be encoded.
    #[error("BUG: the certificate request cannot be encoded")]
    Encoding,
    /// The signature is another key's.
    #[error("the token's signature does not verify with the new key: the token is broken, or its key is another")]
    Signature,
    /// The subject is no name.
    #[error("the subject {0:?} is no name; write it as O=My Company,CN=My Mesh CA (a comma in a value as \\,)")]
    Subject(String),
}

/// The subject that a CA's certificate shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(x509_cert::name::Name);

impl std::str::FromStr for Subject {
    type Err = RequestError;

    /// Attributes in the order in which the certificate shall have them, as openssl prints it; values are escaped as
    /// in RFC 4514, whose own order is the reverse.
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
        x509_cert::name::Name::from_der(&der).map(Self).map_err(|_error| refused())
    }
}

/// A request that is yet to be signed: CA:TRUE, keyCertSign and cRLSign are asked for.
#[derive(Clone, Debug)]
pub struct CaRequest {
    info: CertReqInfo,
    der: Vec<u8>,
    key: PublicKey,
}

impl CaRequest {
    /// Builds what is to be signed.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn new(subject: &Subject, key: PublicKey) -> Result<Self, RequestError> {
        let info = info(subject, &key).map_err(|_error| RequestError::Encoding)?;
        let der = info.to_der().map_err(|_error| RequestError::Encoding)?;
        Ok(Self { info, der, key })
    }

    /// DER CertificationRequestInfo.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The key that is to be certified, and that signs.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// The whole request in PEM. `signature` is the content of signatureValue.
    ///
    /// # Errors
    /// When the signature does not verify.
    pub fn assemble(&self, signature: &[u8]) -> Result<String, RequestError> {
        let algorithm = self.key.signature_algorithm();
        self.key.verify(algorithm, &self.der, signature).map_err(|_| RequestError::Signature)?;
        let encoding = |_error: der::Error| RequestError::Encoding;
        let request = CertReq {
            info: self.info.clone(),
            algorithm: AlgorithmIdentifierOwned::from_der(algorithm::identifier(algorithm)).map_err(encoding)?,
            signature: BitString::from_bytes(signature).map_err(encoding)?,
        };
        request.to_pem(LineEnding::LF).map_err(encoding)
    }
}

/// What the owner of a key signs to ask for a certificate without naming anybody: no subject, no names, no
/// attributes (RFC 2986). Who asks is known by other means.
///
/// # Errors
/// When it cannot be encoded.
pub fn nameless_info(key: &PublicKey) -> Result<Vec<u8>, RequestError> {
    let info = || join(Tag::Sequence, &[b"\x02\x01\x00", b"\x30\x00", key.spki_der(), &join(context(0, true), &[])?]);
    info().map_err(|_: TbsError| RequestError::Encoding)
}

/// The whole request of a [`nameless_info`] in PEM. `signature` is the content of signatureValue.
///
/// # Errors
/// When it cannot be encoded.
pub fn nameless(key: &PublicKey, info: &[u8], signature: &[u8]) -> Result<String, RequestError> {
    let request = || {
        let signature = join(Tag::BitString, &[b"\0", signature])?;
        join(Tag::Sequence, &[info, algorithm::identifier(key.signature_algorithm()), &signature])
    };
    request().map(|der| pem::encode("CERTIFICATE REQUEST", &der)).map_err(|_: TbsError| RequestError::Encoding)
}

fn info(subject: &Subject, key: &PublicKey) -> der::Result<CertReqInfo> {
    let constraints = BasicConstraints { ca: true, path_len_constraint: None };
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    let extensions = vec![critical(&constraints)?, critical(&usage)?];
    let mut attributes = Attributes::default();
    attributes.insert(Attribute::try_from(ExtensionReq(extensions))?)?;
    Ok(CertReqInfo {
        version: Version::V1,
        subject: subject.0.clone(),
        public_key: SubjectPublicKeyInfoOwned::from_der(key.spki_der())?,
        attributes,
    })
}

fn critical<T: Encode + const_oid::AssociatedOid>(value: &T) -> der::Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical: true, extn_value: OctetString::new(value.to_der()?)? })
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
    fn what_is_no_subject_is_refused() {
        for bad in ["", "nothing", "O=", "O=a,,CN=b", "O=a\nCN=b", "1.2.3", &format!("O={}", "x".repeat(1100))] {
            assert!(matches!(bad.parse::<Subject>(), Err(RequestError::Subject(_))), "{bad:?}");
        }
    }
}
