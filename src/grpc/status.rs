//! Maps errors to gRPC statuses, with one exhaustive match for each type.
//!
//! The code decides whether Istio's agent retries (`pkg/security/retry.go`): Canceled, DeadlineExceeded,
//! ResourceExhausted, Aborted, Internal and Unavailable are retried, all others are not. So temporary failures get one
//! of these, and permanent ones never do. The client gets a short fixed text and the request ID; the log has the
//! details under that ID.

use tonic::{Code, Status};

use crate::{
    auth::{AuthError, node::ImpersonationError},
    issue::{IssueError, limits::Limited},
    policy::{Denied, Kind},
    signer::SignError,
    telemetry::RequestId,
};
use audit_log::LogError;
use pki::{csr::CsrError, tbs::TbsError, verify::VerifyError};

/// Error of the service.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The caller is not authenticated.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The caller may not impersonate the requested identity.
    #[error(transparent)]
    Impersonation(#[from] ImpersonationError),
    /// The issuance pipeline failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The request's metadata is malformed.
    #[error("the metadata's {field} {reason}")]
    Metadata {
        /// The key of the Struct.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The maximum number of requests in flight is reached.
    #[error("too many concurrent requests")]
    Overload,
}

impl Refusal {
    /// The label in metrics; one of a closed set.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Auth(error) => error.reason(),
            Self::Deadline => "deadline",
            Self::Impersonation(error) => error.reason(),
            Self::Issue(error) => error.label(),
            Self::Metadata { .. } => "metadata",
            Self::Overload => "overload",
        }
    }
}

/// A code and the text for the client.
pub type Answer = (Code, &'static str);

/// The status for the client: a short fixed text, and the ID under which the log has the reason.
#[must_use]
pub fn status(refusal: &Refusal, id: &RequestId) -> Status {
    let (code, text) = answer(refusal);
    let limit = limit(refusal).map_or_else(String::new, |limit| format!("; {limit}"));
    Status::new(code, format!("{text}{limit} (request {id})"))
}

/// A limit that the client has to know to ask for less.
fn limit(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::Issue(IssueError::Denied(Denied::TtlTooLong { asked, longest })) => {
            Some(format!("{asked} seconds were requested, and the maximum is {longest}"))
        }
        _ => None,
    }
}

/// Code and text of an error.
#[must_use]
pub fn answer(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::Auth(error) => auth(error),
        Refusal::Deadline => (Code::DeadlineExceeded, "the deadline has passed"),
        Refusal::Impersonation(error) => impersonation(error),
        Refusal::Issue(error) => issue(error),
        Refusal::Metadata { .. } => (Code::InvalidArgument, "the metadata is malformed"),
        Refusal::Overload => (Code::ResourceExhausted, "the CA is overloaded"),
    }
}

fn auth(error: &AuthError) -> Answer {
    match error {
        AuthError::Refused(_) => (Code::Unauthenticated, "the caller is not authenticated"),
        AuthError::Unavailable(_) => (Code::Unavailable, "the caller cannot be authenticated now"),
    }
}

/// ztunnel retries every code, and thereby finds a pod that was not there yet.
fn impersonation(error: &ImpersonationError) -> Answer {
    match error {
        ImpersonationError::CallerPod(_) | ImpersonationError::NoNode(_) => {
            (Code::PermissionDenied, "the caller's pod is not the one of its token")
        }
        ImpersonationError::Cluster => (Code::PermissionDenied, "impersonation is not enabled"),
        ImpersonationError::Identity(_) => (Code::InvalidArgument, "the impersonated identity is malformed"),
        ImpersonationError::NotBound => (Code::PermissionDenied, "the caller's token is not bound to a pod"),
        ImpersonationError::NotOnNode { .. } => {
            (Code::PermissionDenied, "no pod of the impersonated identity is on the caller's node")
        }
        ImpersonationError::NotTrusted => (Code::PermissionDenied, "the caller may not impersonate other identities"),
        ImpersonationError::TrustDomain(_) => {
            (Code::PermissionDenied, "the impersonated identity's trust domain is not the caller's")
        }
        ImpersonationError::Unanswered { .. } => (Code::Unavailable, "the caller's pods cannot be looked up now"),
    }
}

fn issue(error: &IssueError) -> Answer {
    match error {
        IssueError::Clock(_) => (Code::Unavailable, "the CA's clock is not reliable now"),
        IssueError::Csr(error) => (Code::InvalidArgument, csr(error)),
        IssueError::Denied(error) => denied(error),
        IssueError::Limited(Limited::Identity) => {
            (Code::ResourceExhausted, "the rate limit of this identity is exceeded")
        }
        IssueError::Limited(Limited::Total) => (Code::ResourceExhausted, "the CA's rate limit is exceeded"),
        IssueError::Log(LogError::Closed) => (Code::Unavailable, "the CA is shutting down"),
        IssueError::Log(LogError::Unavailable(_)) => (Code::Unavailable, "the issuance log cannot be written now"),
        IssueError::Sign(error) => sign(error),
        IssueError::Tbs(TbsError::Encoding(_) | TbsError::Lint(_)) => (Code::Internal, "internal error of the CA"),
        IssueError::Verify(error) => verify(error),
    }
}

/// The request itself is invalid, regardless of the caller.
fn csr(error: &CsrError) -> &'static str {
    match error {
        CsrError::CaRequested => "the certificate request asks for a CA certificate",
        CsrError::EndEntityRequested => "the certificate request asks for an end entity's certificate",
        CsrError::Key(_) => "the certificate request's key is not accepted",
        CsrError::Malformed(_) => "the certificate request is malformed",
        CsrError::NoPem | CsrError::Pem(_) | CsrError::Unlike(_) => "the certificate request is not PEM",
        CsrError::Signature => "the certificate request is not signed by its own key",
        CsrError::TooLarge(_) => "the certificate request is too large",
        CsrError::UnsupportedSignatureAlgorithm(_) => "the certificate request's signature algorithm is not accepted",
    }
}

fn denied(error: &Denied) -> Answer {
    let code = match error.kind() {
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::PermissionDenied => Code::PermissionDenied,
    };
    let text = match error {
        Denied::CertSigner(_) => "the certificate signer is not served here",
        Denied::Denylist(_) => "the identity or its key is denied",
        Denied::ForeignName(_) => "the certificate request names another identity",
        Denied::Impersonation => "impersonation is not enabled",
        Denied::IssuerExpired | Denied::IssuerNotYetValid => "the CA's certificate is not valid now",
        Denied::MixedNames => "an identity and other names are requested together",
        Denied::NoNames => "no name is requested",
        Denied::NoServingNames => "no serving name is configured",
        // For controllers, CertificateSigningRequests and cert-manager's CertificateRequests, which do not use gRPC.
        Denied::CertificateRequest { .. }
        | Denied::IntermediateName(_)
        | Denied::IntermediatePath
        | Denied::Namespace(_)
        | Denied::NoServices { .. }
        | Denied::NotAServiceAccount(_)
        | Denied::NotConfigured(_)
        | Denied::NotSelected(_)
        | Denied::PodLifetime
        | Denied::PodLifetimeAsked(_)
        | Denied::Requester { .. } => "not configured",
        Denied::NotServed(_) => "a requested name is not configured",
        Denied::OperatorNames => "only the operator may request names",
        Denied::Revoked(_) => "the identity or its key is revoked",
        Denied::SeveralIdentities => "more than one identity is requested",
        Denied::TooManyNames(_) => "too many names are requested",
        Denied::TrustDomain(_) => "the trust domain is not one of this CA's",
        Denied::TtlTooLong { .. } => "the requested lifetime is too long",
    };
    (code, text)
}

fn sign(error: &SignError) -> Answer {
    match error {
        SignError::Deadline => (Code::DeadlineExceeded, "the deadline has passed"),
        SignError::Limit(_) => (Code::ResourceExhausted, "the CA's limit on certificates is reached"),
        SignError::QueueFull => (Code::ResourceExhausted, "the CA is overloaded"),
        // The host's own configuration forbids it: only its operator can change that.
        SignError::Refused(_) => (Code::PermissionDenied, "the token does not sign this"),
        SignError::Unavailable(_) => (Code::Unavailable, "the token cannot sign now"),
    }
}

fn verify(error: &VerifyError) -> Answer {
    match error {
        VerifyError::Field(_) | VerifyError::Lint(_) => (Code::Internal, "internal error of the CA"),
        // A token that signs wrongly is taken out of service; a retry may be served by another one, or the same after
        // recovery.
        VerifyError::Signature => (Code::Unavailable, "the token cannot sign now"),
    }
}

/// The code's name in the gRPC specification.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use pki::{identity::Name, key::KeyError, lint::Finding, pem::PemError};
    use process::clock::ClockError;

    /// Codes that Istio's agent retries (`pkg/security/retry.go`).
    const RETRIED: &[Code] = &[
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::Aborted,
        Code::Internal,
        Code::Unavailable,
    ];

    fn cases() -> Vec<(Refusal, Code, bool)> {
        let issue = |error: IssueError| Refusal::Issue(error);
        let text = || "detail".to_owned();
        vec![
            (AuthError::Refused(Box::default()).into(), Code::Unauthenticated, false),
            (AuthError::Unavailable(Box::default()).into(), Code::Unavailable, true),
            (Refusal::Deadline, Code::DeadlineExceeded, true),
            (ImpersonationError::CallerPod(text()).into(), Code::PermissionDenied, false),
            (ImpersonationError::Cluster.into(), Code::PermissionDenied, false),
            (
                "detail".parse::<pki::identity::SpiffeId>().map_err(ImpersonationError::from).unwrap_err().into(),
                Code::InvalidArgument,
                false,
            ),
            (ImpersonationError::NoNode(text()).into(), Code::PermissionDenied, false),
            (ImpersonationError::NotBound.into(), Code::PermissionDenied, false),
            (
                ImpersonationError::NotOnNode {
                    namespace: "detail".parse().unwrap(),
                    account: "detail".parse().unwrap(),
                    node: text(),
                }
                .into(),
                Code::PermissionDenied,
                false,
            ),
            (ImpersonationError::NotTrusted.into(), Code::PermissionDenied, false),
            (ImpersonationError::TrustDomain("detail".parse().unwrap()).into(), Code::PermissionDenied, false),
            (
                ImpersonationError::Unanswered {
                    cluster: crate::auth::ClusterName::default(),
                    source: crate::auth::token_review::Unanswered(text()),
                }
                .into(),
                Code::Unavailable,
                true,
            ),
            (Refusal::Metadata { field: "CertSigner", reason: "detail" }, Code::InvalidArgument, false),
            (Refusal::Overload, Code::ResourceExhausted, true),
            (issue(ClockError::BehindBuild(Duration::ZERO).into()), Code::Unavailable, true),
            (issue(ClockError::Jumped(Duration::ZERO).into()), Code::Unavailable, true),
            (issue(CsrError::CaRequested.into()), Code::InvalidArgument, false),
            (issue(CsrError::Key(KeyError::UnsupportedType("P-521".to_owned())).into()), Code::InvalidArgument, false),
            (issue(CsrError::Malformed("detail").into()), Code::InvalidArgument, false),
            (issue(CsrError::NoPem.into()), Code::InvalidArgument, false),
            (issue(CsrError::Pem(PemError { line: 1, reason: "detail" }).into()), Code::InvalidArgument, false),
            (issue(CsrError::Signature.into()), Code::InvalidArgument, false),
            (issue(CsrError::TooLarge(1).into()), Code::InvalidArgument, false),
            (issue(CsrError::UnsupportedSignatureAlgorithm("detail").into()), Code::InvalidArgument, false),
            (issue(Denied::CertSigner(text()).into()), Code::InvalidArgument, false),
            (issue(Denied::Denylist(text()).into()), Code::PermissionDenied, false),
            (issue(Denied::ForeignName(text()).into()), Code::PermissionDenied, false),
            (issue(Denied::Impersonation.into()), Code::PermissionDenied, false),
            (issue(Denied::IssuerExpired.into()), Code::FailedPrecondition, false),
            (issue(Denied::IssuerNotYetValid.into()), Code::FailedPrecondition, false),
            (issue(Denied::MixedNames.into()), Code::InvalidArgument, false),
            (issue(Denied::NoNames.into()), Code::InvalidArgument, false),
            (issue(Denied::NoServingNames.into()), Code::FailedPrecondition, false),
            (issue(Denied::NotServed(Name::Dns("detail".parse().unwrap())).into()), Code::PermissionDenied, false),
            (issue(Denied::OperatorNames.into()), Code::PermissionDenied, false),
            (issue(Denied::SeveralIdentities.into()), Code::InvalidArgument, false),
            (issue(Denied::TooManyNames(65).into()), Code::InvalidArgument, false),
            (issue(Denied::TrustDomain("detail".parse().unwrap()).into()), Code::PermissionDenied, false),
            (issue(Denied::TtlTooLong { asked: 2, longest: 1 }.into()), Code::InvalidArgument, false),
            (issue(Limited::Identity.into()), Code::ResourceExhausted, true),
            (issue(Limited::Total.into()), Code::ResourceExhausted, true),
            (issue(LogError::Closed.into()), Code::Unavailable, true),
            (issue(LogError::Unavailable(text()).into()), Code::Unavailable, true),
            (issue(SignError::Deadline.into()), Code::DeadlineExceeded, true),
            (issue(SignError::Limit(text()).into()), Code::ResourceExhausted, true),
            (issue(SignError::QueueFull.into()), Code::ResourceExhausted, true),
            (issue(SignError::Refused(text()).into()), Code::PermissionDenied, false),
            (issue(SignError::Unavailable(text()).into()), Code::Unavailable, true),
            (issue(TbsError::Encoding("detail").into()), Code::Internal, true),
            (issue(TbsError::Lint(Finding("detail")).into()), Code::Internal, true),
            (issue(VerifyError::Field("detail").into()), Code::Internal, true),
            (issue(VerifyError::Lint(Finding("detail")).into()), Code::Internal, true),
            (issue(VerifyError::Signature.into()), Code::Unavailable, true),
        ]
    }

    #[test]
    fn only_temporary_failures_are_retryable() {
        let id = RequestId::random();
        for (refusal, code, retried) in cases() {
            let status = status(&refusal, &id);
            assert_eq!(status.code(), code, "{refusal:?}");
            assert_eq!(RETRIED.contains(&status.code()), retried, "{refusal:?}");
            assert!(status.message().ends_with(&format!("(request {id})")), "{refusal:?}");
            assert!(!status.message().contains("detail"), "{refusal:?}: the client reads {}", status.message());
        }
    }

    #[test]
    fn too_long_lifetime_is_answered_with_the_maximum() {
        let refusal = Refusal::Issue(Denied::TtlTooLong { asked: 86_401, longest: 86_400 }.into());
        let status = status(&refusal, &RequestId::random());
        let text =
            "the requested lifetime is too long; 86401 seconds were requested, and the maximum is 86400 (request ";
        assert!(status.message().starts_with(text), "{}", status.message());
    }

    #[test]
    fn only_our_own_faults_are_internal() {
        for (refusal, code, _) in cases() {
            assert_eq!(code == Code::Internal, refusal.to_string().contains("BUG"), "{refusal:?}");
        }
    }
}
