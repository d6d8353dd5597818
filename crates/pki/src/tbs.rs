//! Builds the bytes to be signed (RFC 5280, section 4.1) and lints them.
//!
//! Equal to what Istio's own CA issues, field by field (ISTIO: security/pkg/pki/util/generate_cert.go, and Go's
//! x509.CreateCertificate), so that a mesh notices no difference. Never signs, never decides.

mod encode;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use encode::tbs as unchecked;
pub(super) use encode::{extension, name, time};

use std::sync::Arc;

use super::{
    Issuer, Profile, Template,
    lint::{self, Ca, Facts},
};

/// A serial number: a positive INTEGER of at most 20 bytes with 127 random bits (RFC 5280, section 4.1.2.2).
///
/// The highest of its 128 bits is set, so that all serial numbers have the same length and none is small; the INTEGER
/// then has 17 bytes, the first of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A random serial number from the operating system's generator, through aws-lc-rs.
    #[must_use]
    #[expect(clippy::expect_used, reason = "AWS-LC ends the process itself when the system has no randomness")]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("BUG: AWS-LC's generator never fails");
        bytes[0] |= 0x80;
        Self(bytes)
    }

    /// A serial number that follows from a hash, for a ceremony whose rehearsal must give the same bytes: all but the
    /// highest of these bits.
    #[must_use]
    pub fn from_hash(mut bytes: [u8; 16]) -> Self {
        bytes[0] |= 0x80;
        Self(bytes)
    }

    /// The 16 bytes, most significant first.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The serial number in lower-case hexadecimal.
    #[must_use]
    pub fn to_hex(self) -> String {
        const_hex::encode(self.0)
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

/// No TBSCertificate was built, because of a bug or of the CA certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TbsError {
    /// A value could not be encoded.
    #[error("BUG: {0} cannot be encoded")]
    Encoding(&'static str),
    /// The lint found a violation.
    #[error("BUG: the certificate to be signed breaks a rule: {0}")]
    Lint(#[from] lint::Finding),
}

impl Tbs {
    /// Builds and lints the TBSCertificate.
    ///
    /// # Errors
    /// If a value cannot be encoded, or the result violates one of our own rules.
    pub fn build(template: Template, issuer: Arc<Issuer>, serial: Serial) -> Result<Self, TbsError> {
        let der = encode::tbs(&template, &issuer, serial)?;
        let (facts, ca) = (Facts::parse(&der)?, Ca::from(&*issuer));
        let longest = template.profile.max_lifetime();
        match &template.profile {
            Profile::Ca(_) => lint::certificate_authority(&facts, &ca, longest)?,
            Profile::Intermediate { .. } => lint::intermediate(&facts, &ca, longest)?,
            Profile::Leaf => lint::leaf(&facts, &ca, longest)?,
            Profile::SelfSignedRoot { .. } => lint::self_signed_root(&facts, &ca, longest)?,
        }
        Ok(Self { der, template, issuer, serial })
    }

    /// The DER TBSCertificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The intended content.
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
