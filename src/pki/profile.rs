//! What certificates of this CA look like (ISTIO: security/pkg/pki/util/generate_cert.go).

use std::time::SystemTime;

use super::PublicKey;
use crate::identity::Name;

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

/// The content of a certificate, before issuer and serial number are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What kind of certificate.
    pub profile: Profile,
    /// The subject's public key.
    pub public_key: PublicKey,
    /// The subject alternative names; for a leaf at least one.
    pub names: Vec<Name>,
    /// Start of the validity, whole seconds.
    pub not_before: SystemTime,
    /// End of the validity, whole seconds, inclusive (RFC 5280, section 4.1.2.5).
    pub not_after: SystemTime,
}
