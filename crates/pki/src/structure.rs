//! The structure of certificates and requests, each part with the bytes that it came with.
//!
//! x509-cert's types own their parts and encode them again; what a signature covers, and what is compared byte for
//! byte, has to stay as it is.

use der::{AnyRef, Sequence, asn1::BitStringRef};
use x509_cert::{ext::Extensions, time::Validity};

/// Certificate (RFC 5280, section 4.1) or CertificationRequest (RFC 2986, section 4.2).
#[derive(Clone, Copy, Debug, Sequence)]
pub(crate) struct Signed<'a> {
    /// What the signature covers.
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
