//! Builds the bytes to be signed (RFC 5280, section 4.1) and lints them.

use std::sync::Arc;

use super::{Issuer, Template};

/// A serial number: a positive INTEGER of at most 20 bytes with 127 random bits (RFC 5280, section 4.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serial([u8; 16]);

impl Serial {
    /// Draws a serial number from the operating system's generator, by way of aws-lc-rs.
    #[must_use]
    pub fn random() -> Self {
        todo!()
    }

    /// The serial number as lower-case hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        todo!()
    }
}

/// A TBSCertificate that has passed the lint.
#[derive(Clone, Debug)]
pub struct Tbs {
    der: Vec<u8>,
    template: Template,
    issuer: Arc<Issuer>,
    serial: Serial,
}

/// Why no TBSCertificate was built: each is a fault of ours or of the CA's own certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TbsError {
    /// The lint found what must never be signed.
    #[error("BUG: the certificate to be signed breaks a rule: {0}")]
    Lint(#[from] super::lint::Finding),
    /// A value could not be encoded.
    #[error("BUG: {0} cannot be encoded")]
    Encoding(&'static str),
}

impl Tbs {
    /// Builds and lints the certificate to be signed.
    ///
    /// # Errors
    /// When a value cannot be encoded, or the result breaks one of our own rules.
    pub fn build(_template: Template, _issuer: Arc<Issuer>, _serial: Serial) -> Result<Self, TbsError> {
        todo!()
    }

    /// The DER TBSCertificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// What was to be built.
    #[must_use]
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The issuer with which the request started.
    #[must_use]
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// The serial number.
    #[must_use]
    pub fn serial(&self) -> Serial {
        self.serial
    }
}
