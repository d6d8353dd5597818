//! What certificates of this CA look like (ISTIO: security/pkg/pki/util/generate_cert.go).
//!
//! Only says what is meant: `tbs` encodes it, `lint` holds it to the rules, `verify` compares the result with it.

use std::time::{Duration, SystemTime};

use super::PublicKey;
use crate::identity::Name;

/// How far before the request a certificate's validity begins, so that peers whose clock is slow take it
/// (ISTIO: security/pkg/pki/util/generate_cert.go, ClockSkewGracePeriod).
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// The most names that one certificate carries.
pub const NAMES_MAX: usize = 64;

/// The longest organization (RFC 5280, appendix A.1, ub-organization-name).
pub const ORGANIZATION_MAX: usize = 64;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The kinds of certificate that this CA signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A short-lived CA for istiod: path length 0.
    Intermediate {
        /// The subject's organization (O).
        organization: String,
    },
    /// A workload's or a server's certificate, as Istio's own CA issues it.
    Leaf,
    /// A self-signed root, by `generate --self-signed`.
    SelfSignedRoot {
        /// The subject's organization (O), as Istio's self-signed root has it.
        organization: String,
    },
}

impl Profile {
    /// The name in logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Intermediate { .. } => "intermediate",
            Self::Leaf => "leaf",
            Self::SelfSignedRoot { .. } => "self-signed-root",
        }
    }

    /// The longest life that the lint lets pass, whatever is configured: a net under slips of unit. For a leaf and
    /// an intermediate ten years, the longest that Istio itself ever asks for (istiod's own certificate,
    /// security/pkg/k8s/chiron); for a root thirty.
    #[must_use]
    pub fn max_lifetime(&self) -> Duration {
        match self {
            Self::Intermediate { .. } | Self::Leaf => 3660 * DAY,
            Self::SelfSignedRoot { .. } => 10_960 * DAY,
        }
    }
}

/// The content of a certificate, before issuer and serial number are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What kind of certificate.
    pub profile: Profile,
    /// The subject's public key.
    pub public_key: PublicKey,
    /// The subject alternative names; for a leaf at least one, for a CA none.
    pub names: Vec<Name>,
    /// Start of the validity, whole seconds.
    pub not_before: SystemTime,
    /// End of the validity, whole seconds, inclusive (RFC 5280, section 4.1.2.5).
    pub not_after: SystemTime,
}
