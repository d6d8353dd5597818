//! Reasons for a denial.

use pki::identity::{Name, Namespace, SpiffeId, TrustDomain};

/// Why policy denies a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The `CertSigner` is not configured.
    #[error("the certificate signer {0:?} is not served here; leave CertSigner empty or have it configured")]
    CertSigner(String),
    /// No rule of the profile is for the requester of the CertificateRequest.
    #[error(
        "no rule of the profile {profile} allows {username:?} in the namespace {namespace} {what}; add a rule if it should \
         obtain one"
    )]
    CertificateRequest {
        /// The profile.
        profile: String,
        /// The CertificateRequest's namespace.
        namespace: String,
        /// The user name.
        username: String,
        /// The kind of certificate.
        what: &'static str,
    },
    /// The caller's identity, that of the certificate, or its key.
    #[error("{0} is on the denylist; remove the entry to allow certificates again")]
    Denylist(String),
    /// The CSR names somebody else.
    #[error("the request contains the name {0}, which is not the caller's")]
    ForeignName(String),
    /// The CA has the organization that the intermediate would have.
    #[error("the intermediate's organization {0:?} is the CA's own name; configure another")]
    IntermediateName(String),
    /// The path length does not permit an intermediate below the CA.
    #[error(
        "the CA's certificate, or one above it, forbids a CA below it (path length), as the certificates of Istio's own \
         tools do; have one made with a path length of 1 or more, or none"
    )]
    IntermediatePath,
    /// The caller may not impersonate the requested identity.
    #[error("a certificate for another identity is not issued: node impersonation is not enabled")]
    Impersonation,
    /// The CA's certificate, or one above it, has expired.
    #[error("the CA's certificate or one above it has expired; install a renewed one")]
    IssuerExpired,
    /// The CA's certificate is not valid yet.
    #[error("the CA's certificate is not valid yet; check the clock and the certificate")]
    IssuerNotYetValid,
    /// The operator requested no names.
    #[error("no name is requested; give at least one")]
    NoNames,
    /// No serving name is configured.
    #[error("no serving name is configured; configure at least one DNS name or IP address")]
    NoServingNames,
    /// No Service is listed for the pod's service account.
    #[error("no Service is listed for {account} under the signer {signer}; list those whose names its pods may have")]
    NoServices {
        /// The signer.
        signer: String,
        /// The service account.
        account: SpiffeId,
    },
    /// No listed Service selects the pod.
    #[error("none of the Services listed for {0} selects this pod; check the Services' selectors and the pod's labels")]
    NotSelected(SpiffeId),
    /// A requested server name is not configured.
    #[error("the name {0} is not among the configured serving names; add it there, or leave it out")]
    NotServed(Name),
    /// There is a SPIFFE ID together with other names.
    #[error("a SPIFFE ID and other names are requested together; request a certificate for each")]
    MixedNames,
    /// A caller other than the operator requested names in addition to the CSR.
    #[error("only the operator may request names; a workload's name follows from its identity")]
    OperatorNames,
    /// The controller or signer is not configured.
    #[error("{0} is not configured for this cluster")]
    NotConfigured(&'static str),
    /// The namespace is not configured.
    #[error("the namespace {0} is not among those configured; add it there")]
    Namespace(Namespace),
    /// The user name is not a service account's.
    #[error("the requester {0:?} is not a service account, and has no identity of its own here")]
    NotAServiceAccount(String),
    /// A pod certificate would be shorter than the API server accepts.
    #[error(
        "the certificate would be valid for less than an hour, which the API server rejects; the CA's certificate or one \
         above it ends too soon, so install a renewed one, or [ca] max_ttl is below an hour"
    )]
    PodLifetime,
    /// `spec.maxExpirationSeconds` is below an hour.
    #[error("spec.maxExpirationSeconds is {0}; at least 3600 are needed")]
    PodLifetimeAsked(i64),
    /// The requester is not configured.
    #[error("{username:?} may not request certificates from the signer {signer}; list it as a requester if it should")]
    Requester {
        /// The signer.
        signer: String,
        /// The user name.
        username: String,
    },
    /// The operator has revoked the key's certificate, or blocked the caller, the certificate or its key.
    #[error("denied by {0}; `istio-hsm-ca revoke --list` shows what is revoked and blocked")]
    Revoked(String),
    /// More than one SPIFFE ID.
    #[error("more than one SPIFFE ID is requested; a certificate carries one (SPIFFE X.509-SVID, section 2)")]
    SeveralIdentities,
    /// There are more names than a certificate can have.
    #[error("{0} names are requested; a certificate carries 64 at most")]
    TooManyNames(usize),
    /// This CA does not issue in the trust domain.
    #[error("the trust domain {0} is not one of this CA's; have it configured if it should be")]
    TrustDomain(TrustDomain),
    /// The lifetime exceeds the configured maximum; denied rather than shortened, as in Istio.
    #[error("a lifetime of {asked} seconds is requested; at most {longest} seconds are allowed")]
    TtlTooLong {
        /// Requested lifetime in seconds.
        asked: u64,
        /// Maximum lifetime in seconds.
        longest: u64,
    },
}

/// Class of a denial, which each front end maps to its own code. Retrying never helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The CA is not in a state to issue, and the operator has to act. gRPC: FAILED_PRECONDITION.
    FailedPrecondition,
    /// The request is invalid regardless of the caller. gRPC: INVALID_ARGUMENT.
    InvalidArgument,
    /// This caller may not obtain it. gRPC: PERMISSION_DENIED.
    PermissionDenied,
}

impl Denied {
    /// The class. istiod returns INVALID_ARGUMENT for a lifetime or a request that it does not accept (ISTIO:
    /// security/pkg/pki/error/error.go), which agents do not retry.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::IntermediateName(_)
            | Self::IntermediatePath
            | Self::IssuerExpired
            | Self::IssuerNotYetValid
            | Self::NoServingNames
            | Self::NotConfigured(_)
            | Self::NotSelected(_)
            | Self::PodLifetime => Kind::FailedPrecondition,
            Self::CertSigner(_)
            | Self::MixedNames
            | Self::NoNames
            | Self::PodLifetimeAsked(_)
            | Self::SeveralIdentities
            | Self::TooManyNames(_)
            | Self::TtlTooLong { .. } => Kind::InvalidArgument,
            Self::CertificateRequest { .. }
            | Self::Denylist(_)
            | Self::ForeignName(_)
            | Self::Impersonation
            | Self::Namespace(_)
            | Self::NoServices { .. }
            | Self::NotAServiceAccount(_)
            | Self::NotServed(_)
            | Self::OperatorNames
            | Self::Requester { .. }
            | Self::Revoked(_)
            | Self::TrustDomain(_) => Kind::PermissionDenied,
        }
    }
}

impl Denied {
    /// The label in metrics: one of a closed set.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::CertSigner(_) => "cert_signer",
            Self::CertificateRequest { .. } => "certificate_request",
            Self::Denylist(_) => "denylist",
            Self::ForeignName(_) => "foreign_name",
            Self::Impersonation => "impersonation",
            Self::IntermediateName(_) => "intermediate_name",
            Self::IntermediatePath => "intermediate_path",
            Self::IssuerExpired => "ca_expired",
            Self::IssuerNotYetValid => "ca_not_yet_valid",
            Self::MixedNames => "mixed_names",
            Self::NoNames => "no_names",
            Self::NoServices { .. } => "no_services",
            Self::NoServingNames => "no_serving_names",
            Self::Namespace(_) => "namespace",
            Self::NotAServiceAccount(_) => "not_a_service_account",
            Self::NotConfigured(_) => "not_configured",
            Self::NotSelected(_) => "not_selected",
            Self::NotServed(_) => "not_served",
            Self::OperatorNames => "operator_names",
            Self::PodLifetime => "pod_lifetime",
            Self::PodLifetimeAsked(_) => "pod_lifetime_asked",
            Self::Requester { .. } => "requester",
            Self::Revoked(_) => "revoked",
            Self::SeveralIdentities => "several_identities",
            Self::TooManyNames(_) => "too_many_names",
            Self::TrustDomain(_) => "trust_domain",
            Self::TtlTooLong { .. } => "ttl_too_long",
        }
    }
}
