//! Previous CAs, whose leaves can still be renewed.
//!
//! Pure.

use std::time::SystemTime;

use const_oid::AssociatedOid;
use der::Decode;
use x509_cert::ext::pkix::BasicConstraints;

use super::Accepted;
use pki::{
    CertificateFields, PublicKey,
    key::KeyError,
    pem::{self, PemError},
};

/// Maximum number of certificates in one file.
const MOST: usize = 64;

/// A CA whose leaves are accepted in addition to the current one's.
#[derive(Clone, Debug)]
pub struct PreviousCa {
    subject: Vec<u8>,
    key: PublicKey,
    not_after: SystemTime,
}

/// A file does not contain valid CA certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreviousCaError {
    /// There is no PEM certificate.
    #[error("the file holds no certificate")]
    Empty,
    /// The key type is not supported.
    #[error("certificate {0}: {1}")]
    Key(usize, #[source] KeyError),
    /// A block is not a certificate.
    #[error("certificate {0} is malformed")]
    Malformed(usize),
    /// A certificate is not a CA certificate.
    #[error("certificate {0} is not a CA certificate")]
    NotCa(usize),
    /// The PEM text is malformed.
    #[error("the PEM text is malformed: {0}")]
    Pem(#[from] PemError),
    /// More than anybody needs.
    #[error("the file holds more than {MOST} certificates")]
    TooMany,
}

impl PreviousCa {
    /// Parses all certificates of a PEM file.
    ///
    /// # Errors
    /// At the first certificate that is malformed or no CA's, counted from 1.
    pub fn parse_all(text: &[u8]) -> Result<Vec<Self>, PreviousCaError> {
        let blocks = pem::blocks(text)?.into_iter().filter(|block| block.label == "CERTIFICATE");
        let mut cas = Vec::new();
        for (number, certificate) in (1..).zip(blocks) {
            if number > MOST {
                return Err(PreviousCaError::TooMany);
            }
            cas.push(Self::parse(number, &certificate.der)?);
        }
        if cas.is_empty() { Err(PreviousCaError::Empty) } else { Ok(cas) }
    }

    fn parse(number: usize, der: &[u8]) -> Result<Self, PreviousCaError> {
        let malformed = || PreviousCaError::Malformed(number);
        let fields = CertificateFields::parse(der).map_err(|_| malformed())?;
        let basic = fields.extensions.iter().find(|extension| extension.extn_id == BasicConstraints::OID);
        let basic = basic.map(|extension| BasicConstraints::from_der(extension.extn_value.as_bytes())).transpose();
        if !basic.map_err(|_| malformed())?.is_some_and(|basic| basic.ca) {
            return Err(PreviousCaError::NotCa(number));
        }
        Ok(Self {
            key: PublicKey::from_spki_der(&fields.spki).map_err(|source| PreviousCaError::Key(number, source))?,
            not_after: fields.validity.not_after.to_system_time(),
            subject: fields.subject,
        })
    }

    /// The data for verifying a leaf of this CA.
    #[must_use]
    pub fn accepted(&self) -> Accepted<'_> {
        Accepted { subject: &self.subject, key: &self.key, not_after: self.not_after }
    }
}
