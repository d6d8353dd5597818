//! Profiles of this CA's certificates (ISTIO: security/pkg/pki/util/generate_cert.go).
//!
//! Describes the intended content only: `tbs` encodes it, `lint` checks the rules, `verify` compares the result with
//! it.

use std::time::{Duration, SystemTime};

use super::PublicKey;
use crate::identity::Name;

/// How long before the request a certificate's validity begins, so that peers with slow clocks accept it (ISTIO:
/// security/pkg/pki/util/generate_cert.go, ClockSkewGracePeriod).
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Maximum number of names in a certificate.
pub const NAMES_MAX: usize = 64;

/// Maximum length of an organization (RFC 5280, appendix A.1, ub-organization-name).
pub const ORGANIZATION_MAX: usize = 64;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The subject of a CA certificate that a ceremony makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaProfile {
    /// DER Name of the subject, not empty.
    pub subject: Vec<u8>,
    /// The subject key identifier: that of the CA's other certificates, if there are any, since certificates below it
    /// refer to it.
    pub subject_key_id: Vec<u8>,
    /// pathLenConstraint, if there is one.
    pub path_len: Option<u8>,
}

/// The types of certificates that this CA signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A root, an intermediate, a cross-certificate or a renewed CA certificate, by `ceremony run`: it may sign
    /// certificates and CRLs, and nothing else.
    Ca(CaProfile),
    /// A short-lived CA for istiod or for a requester by cert-manager: path length 0.
    Intermediate {
        /// The subject's organization (O).
        organization: String,
    },
    /// A workload's or a server's certificate, as Istio's own CA issues it.
    Leaf,
    /// A self-signed root, by `generate --self-signed`.
    SelfSignedRoot {
        /// The subject's organization (O), as in Istio's self-signed root.
        organization: String,
    },
}

impl Profile {
    /// The name in logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ca(_) => "certificate-authority",
            Self::Intermediate { .. } => "intermediate",
            Self::Leaf => "leaf",
            Self::SelfSignedRoot { .. } => "self-signed-root",
        }
    }

    /// Maximum lifetime that the lint accepts regardless of configuration, as a safeguard against unit errors. For
    /// leaves and intermediates ten years, the longest that Istio itself requests (istiod's own certificate,
    /// security/pkg/k8s/chiron); for roots and the CAs of ceremonies thirty.
    #[must_use]
    pub fn max_lifetime(&self) -> Duration {
        match self {
            Self::Intermediate { .. } | Self::Leaf => 3660 * DAY,
            Self::Ca(_) | Self::SelfSignedRoot { .. } => 10_960 * DAY,
        }
    }
}

/// Content of a certificate without issuer and serial number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The profile.
    pub profile: Profile,
    /// The subject's public key.
    pub public_key: PublicKey,
    /// The subject alternative names; at least one for a leaf, DNS names or none for an intermediate, none
    /// for a root and the CAs of ceremonies.
    pub names: Vec<Name>,
    /// notBefore, whole seconds.
    pub not_before: SystemTime,
    /// notAfter, whole seconds, inclusive (RFC 5280, section 4.1.2.5).
    pub not_after: SystemTime,
}
