//! CAs that issued before this one, whose leaves may still renew themselves.
//!
//! Pure.

use std::time::SystemTime;

use der::Decode;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_cert::{Certificate, ext::pkix::BasicConstraints};

use super::{Accepted, leaf};
use pki::{PublicKey, key::KeyError};

/// The most certificates in one file.
const MOST: usize = 64;

/// A CA whose direct leaves are accepted besides the current one's.
#[derive(Clone, Debug)]
pub struct PreviousCa {
    subject: Vec<u8>,
    key: PublicKey,
    not_after: SystemTime,
}

/// Why a file holds no previous CA's certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreviousCaError {
    /// No PEM certificate.
    #[error("the file holds no certificate")]
    Empty,
    /// A key that this CA does not check signatures with.
    #[error("certificate {0}: {1}")]
    Key(usize, #[source] KeyError),
    /// Not a certificate.
    #[error("certificate {0} is malformed")]
    Malformed(usize),
    /// Not a CA's certificate.
    #[error("certificate {0} is not a CA certificate")]
    NotCa(usize),
    /// The PEM text is malformed.
    #[error("the PEM text is malformed at certificate {0}")]
    Pem(usize),
    /// More than anybody needs.
    #[error("the file holds more than {MOST} certificates")]
    TooMany,
}

impl PreviousCa {
    /// Reads all certificates of a PEM file.
    ///
    /// # Errors
    /// At the first certificate that is malformed or no CA's, counted from 1.
    pub fn parse_all(pem: &[u8]) -> Result<Vec<Self>, PreviousCaError> {
        let mut cas = Vec::new();
        for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(pem)) {
            if number > MOST {
                return Err(PreviousCaError::TooMany);
            }
            cas.push(Self::parse(number, &certificate.map_err(|_| PreviousCaError::Pem(number))?)?);
        }
        if cas.is_empty() { Err(PreviousCaError::Empty) } else { Ok(cas) }
    }

    fn parse(number: usize, der: &[u8]) -> Result<Self, PreviousCaError> {
        let malformed = || PreviousCaError::Malformed(number);
        let parsed = Certificate::from_der(der).map_err(|_| malformed())?;
        let tbs = parsed.tbs_certificate();
        let basic = tbs.get_extension::<BasicConstraints>().map_err(|_| malformed())?;
        if !basic.is_some_and(|(_, basic)| basic.ca) {
            return Err(PreviousCaError::NotCa(number));
        }
        let spki = leaf::public_key_info(der).ok_or_else(malformed)?;
        Ok(Self {
            subject: leaf::subject(der).ok_or_else(malformed)?.to_vec(),
            key: PublicKey::from_spki_der(spki).map_err(|source| PreviousCaError::Key(number, source))?,
            not_after: tbs.validity().not_after.to_system_time(),
        })
    }

    /// What a leaf of this CA is checked with.
    #[must_use]
    pub fn accepted(&self) -> Accepted<'_> {
        Accepted { subject: &self.subject, key: &self.key, not_after: self.not_after }
    }
}
