//! Certificate revocation lists (CRLs) of this CA: their content, and the signed list that may be released (RFC 5280,
//! section 5).
//!
//! A list passes through the same steps as a certificate: [`CrlTbs`] is built and linted, recorded in the issuance log,
//! signed by the token, and [`SignedCrl::assemble`] parses the result again and verifies its signature. The lint
//! ([`crate::lint::crl()`]) reads the bytes with its own reader and shares nothing with the builder.
//!
//! CRLs of any CA are read by [`read`], and judged for publication by [`judge()`].

mod build;
mod judge;
mod parse;
mod serial;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr, sync::Arc, time::SystemTime};

pub use build::{CrlContent, CrlError, CrlIssuer, CrlTbs};
pub use judge::{Authority, Judgement, Role, judge};
pub use parse::{Crl, read};
pub use serial::{SerialError, SerialNumber};

use crate::{
    PublicKey,
    lint::{self, CrlFacts},
    pem,
    verify::{self, VerifyError},
};

/// The PEM label of a CRL (RFC 7468, section 6).
pub const LABEL: &str = "X509 CRL";

/// Maximum size in bytes of a TBSCertList. A Kubernetes ConfigMap holds 1 MiB; in PEM, which has 65 characters for 48
/// bytes, such a list takes 948 KiB, and the lists of the CAs above this one fit next to it.
pub const TBS_MAX: usize = 700 * 1024;

/// Why a certificate was revoked (RFC 5280, section 5.3.1): the reasons that make sense for certificates of a mesh.
/// removeFromCRL belongs to delta CRLs, aACompromise to attribute certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// No reason is stated; the entry has no reason code then, as RFC 5280 demands.
    #[default]
    Unspecified,
    /// The private key is known, or suspected, to be in the wrong hands.
    KeyCompromise,
    /// The key of a CA is, for an intermediate.
    #[serde(rename = "cACompromise")]
    CaCompromise,
    /// The subject's name or affiliation changed.
    AffiliationChanged,
    /// Another certificate has replaced it.
    Superseded,
    /// The workload does not exist any more.
    CessationOfOperation,
    /// Revoked for a time; the only reason that can be undone.
    CertificateHold,
    /// The workload lost a privilege that the certificate gives it.
    PrivilegeWithdrawn,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::CertificateHold,
        Self::PrivilegeWithdrawn,
    ];

    /// The name in RFC 5280.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::CaCompromise => "cACompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::CertificateHold => "certificateHold",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
        }
    }

    /// The value of the ENUMERATED.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::CaCompromise => 2,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::CertificateHold => 6,
            Self::PrivilegeWithdrawn => 9,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a reason that this CA issues.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a reason for a revocation; the reasons are {list}", list = Reason::ALL.map(Reason::as_str).join(", "))]
pub struct UnknownReason(String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let same = |reason: &Self| reason.as_str().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(same).ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

/// A revoked certificate of one CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedEntry {
    /// The certificate's serial number.
    pub serial: SerialNumber,
    /// When it was revoked, in whole seconds.
    pub revoked_at: SystemTime,
    /// Why.
    pub reason: Reason,
    /// The certificate's notAfter. The list itself does not say it.
    pub expires: SystemTime,
}

/// A signed CRL that may be released.
#[derive(Clone, Debug)]
pub struct SignedCrl {
    der: Vec<u8>,
    tbs: Arc<CrlTbs>,
}

impl SignedCrl {
    /// Assembles the list with its signature, and verifies the result. `signature` is the content of signatureValue
    /// (for ECDSA: DER ECDSA-Sig-Value).
    ///
    /// # Errors
    /// If the signature does not verify with the CA certificate's key, or the signed list is not the one that was built.
    pub fn assemble(tbs: Arc<CrlTbs>, signature: &[u8]) -> Result<Self, VerifyError> {
        let der = rehearsed(&tbs, tbs.issuer().public_key(), signature)?;
        Ok(Self { der, tbs })
    }

    /// The DER CertificateList.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The signed content.
    #[must_use]
    pub fn tbs(&self) -> &CrlTbs {
        &self.tbs
    }

    /// The list in PEM, with a final newline.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(LABEL, &self.der)
    }
}

/// The DER list with a signature by a key that stands in for the CA's in a rehearsal, which is never released. Everything
/// but the signature value is checked as [`SignedCrl::assemble`] does.
///
/// # Errors
/// If the signature does not verify with the stand-in, or the signed list is not the one that was built.
pub fn rehearsed(tbs: &CrlTbs, stand_in: &PublicKey, signature: &[u8]) -> Result<Vec<u8>, VerifyError> {
    verify::signed(tbs.der(), stand_in, signature, |content| {
        let facts = CrlFacts::parse(content)?;
        lint::crl(&facts, &tbs.issuer().as_ca(), tbs.lifetime())?;
        let same = facts.number == tbs.number() && facts.entries.len() == tbs.entries();
        if same { Ok(()) } else { Err(VerifyError::Field("content")) }
    })
}
