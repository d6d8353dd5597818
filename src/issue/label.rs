//! Labels of rejections in metrics and on the status page: closed sets, so that callers cannot create new time series.

use super::IssueError;
use crate::{issue::limits::Limited, policy::Denied, signer::SignError};
use audit_log::LogError;
use pki::{csr::CsrError, tbs::TbsError, verify::VerifyError};

impl IssueError {
    /// The reason, as a label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Clock(_) => "clock",
            Self::Csr(error) => match error {
                CsrError::CaRequested => "csr_ca_requested",
                CsrError::EndEntityRequested => "csr_end_entity_requested",
                CsrError::Key(_) => "csr_key",
                CsrError::Malformed(_)
                | CsrError::NoPem
                | CsrError::Pem(_)
                | CsrError::TooLarge(_)
                | CsrError::Unlike(_) => "csr_malformed",
                CsrError::Signature => "csr_signature",
                CsrError::UnsupportedSignatureAlgorithm(_) => "csr_signature_algorithm",
            },
            Self::Denied(error) => error.label(),
            Self::Limited(Limited::Identity) => "rate_limit_identity",
            Self::Limited(Limited::Total) => "rate_limit_total",
            Self::Log(LogError::Closed) => "ending",
            Self::Log(LogError::Unavailable(_)) => "log_unavailable",
            Self::Sign(error) => match error {
                SignError::Deadline => "deadline",
                SignError::Limit(_) => "token_host_limit",
                SignError::QueueFull => "queue_full",
                SignError::Refused(_) => "token_host_refused",
                SignError::Unavailable(_) => "token_unavailable",
            },
            Self::Tbs(TbsError::Encoding(_) | TbsError::Lint(_)) => "fault",
            Self::Verify(VerifyError::Field(_) | VerifyError::Lint(_)) => "fault",
            Self::Verify(VerifyError::Signature) => "wrong_signature",
        }
    }

    /// The label under which Istio's own CA counts such an error (security/pkg/pki/error/error.go).
    #[must_use]
    pub fn istio_kind(&self) -> &'static str {
        match self {
            Self::Csr(_) => "CSR_ERROR",
            Self::Denied(Denied::TtlTooLong { .. }) => "TTL_ERROR",
            Self::Denied(_) => "CSR_ERROR",
            Self::Clock(_) | Self::Limited(_) | Self::Log(_) => "CA_NOT_READY",
            Self::Sign(_) | Self::Tbs(_) | Self::Verify(_) => "CERT_GEN_ERROR",
        }
    }
}
