//! Errors of authentication by TokenReview.

use super::Unanswered;
use crate::auth::{credentials::ClusterName, jwt::claims::ClaimsError, received::Received};

/// A JWT is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The answer is for audiences that are not ours.
    #[error("the API server accepts the token for {received}, and configured are {accepted}")]
    Audience {
        /// The audiences of its response.
        received: Received,
        /// The configured audiences.
        accepted: Received,
    },
    /// What the token says of itself is refused.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The API server speaks of somebody else than the token.
    #[error("the token's subject differs from the user that the API server reports, {reported}")]
    Disagree {
        /// `user.username`.
        reported: Received,
    },
    /// The API server refuses the token.
    #[error("the API server of cluster {cluster} refuses the token: {reason}")]
    Refused {
        /// The cluster.
        cluster: ClusterName,
        /// Its words.
        reason: Received,
    },
    /// The answer is none that a service account gets.
    #[error("the API server's response is not for a service account: {reason}; the user is {username}")]
    NoServiceAccount {
        /// What is wrong.
        reason: &'static str,
        /// `user.username`.
        username: Received,
    },
    /// The API server is away.
    #[error("the API server of cluster {cluster} could not review the token")]
    Unanswered {
        /// The cluster.
        cluster: ClusterName,
        /// The error.
        source: Unanswered,
    },
    /// The issuer is another cluster's.
    #[error("the caller names the cluster {received}, and issuer {issuer} is that of cluster {configured}")]
    WrongCluster {
        /// The cluster that the caller names, or the default one.
        received: Received,
        /// `iss`.
        issuer: Received,
        /// The issuer's cluster.
        configured: ClusterName,
    },
}

impl ReviewError {
    /// The label in metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Audience { .. } => "review_audience",
            Self::Claims(error) => error.reason(),
            Self::Disagree { .. } => "review_disagree",
            Self::NoServiceAccount { .. } => "review_no_service_account",
            Self::Refused { .. } => "review_refused",
            Self::Unanswered { .. } => "review_unanswered",
            Self::WrongCluster { .. } => "review_wrong_cluster",
        }
    }

    /// Whether the same JWT may be accepted later, without a change of it or of the configuration.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unanswered { .. } => true,
            Self::Audience { .. }
            | Self::Claims(_)
            | Self::Disagree { .. }
            | Self::NoServiceAccount { .. }
            | Self::Refused { .. }
            | Self::WrongCluster { .. } => false,
        }
    }

    /// How metrics count the API server's answer.
    pub(super) fn outcome(&self) -> &'static str {
        if self.is_temporary() { "unanswered" } else { "refused" }
    }
}
