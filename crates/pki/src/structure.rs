//! The structure of certificates and CSRs, with the original bytes of each part.
//!
//! x509-cert's types own their parts and encode them again; parts covered by a signature or compared by bytes must be
//! kept unchanged.

use der::{AnyRef, Decode, Encode, Sequence, asn1::BitStringRef};
use x509_cert::{ext::Extensions, time::Validity};

use crate::name;

/// Certificate (RFC 5280, section 4.1) or CertificationRequest (RFC 2986, section 4.2).
#[derive(Clone, Copy, Debug, Sequence)]
pub(crate) struct Signed<'a> {
    /// The signed part.
    pub(crate) content: AnyRef<'a>,
    /// AlgorithmIdentifier.
    pub(crate) algorithm: AnyRef<'a>,
    pub(crate) signature: BitStringRef<'a>,
}

/// TBSCertificate (RFC 5280, section 4.1).
#[derive(Debug, Sequence)]
pub(crate) struct TbsCertificate<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    pub(crate) version: Option<u8>,
    pub(crate) serial: AnyRef<'a>,
    pub(crate) algorithm: AnyRef<'a>,
    pub(crate) issuer: AnyRef<'a>,
    pub(crate) validity: Validity,
    pub(crate) subject: AnyRef<'a>,
    pub(crate) spki: AnyRef<'a>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    pub(crate) issuer_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    pub(crate) subject_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    pub(crate) extensions: Option<Extensions>,
}

/// The fields of a certificate of any issuer. x509-cert's Certificate takes no serial number above 20 octets, and Istio's
/// clients do.
#[derive(Clone, Debug)]
pub struct CertificateFields {
    /// DER INTEGER.
    pub serial: Vec<u8>,
    /// DER Name.
    pub issuer: Vec<u8>,
    /// notBefore and notAfter.
    pub validity: Validity,
    /// DER Name.
    pub subject: Vec<u8>,
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// The extensions; none where there are none.
    pub extensions: Extensions,
}

impl CertificateFields {
    /// Reads a DER certificate, without verifying anything.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(der: &[u8]) -> Result<Self, der::Error> {
        let content = Signed::from_der(der)?.content.to_der()?;
        let read = TbsCertificate::from_der(&content)?;
        Ok(Self {
            serial: read.serial.to_der()?,
            issuer: read.issuer.to_der()?,
            validity: read.validity,
            subject: read.subject.to_der()?,
            spki: read.spki.to_der()?,
            extensions: read.extensions.unwrap_or_default(),
        })
    }

    /// The subject for people (RFC 4514), in whatever string types.
    #[must_use]
    pub fn subject_text(&self) -> String {
        name::shown(&self.subject)
    }

    /// The issuer for people.
    #[must_use]
    pub fn issuer_text(&self) -> String {
        name::shown(&self.issuer)
    }
}
