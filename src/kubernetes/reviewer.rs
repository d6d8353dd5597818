//! TokenReview (authentication.k8s.io/v1) by a cluster's API server, for `auth`.
//!
//! The JWT is in the request's body only. Errors have the API server's text, which does not repeat it.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, api::PostParams};

use super::cluster::{Cluster, Clusters, chain};
use crate::auth::{
    credentials::BearerToken,
    token_review::{BoxFuture, Review, Reviewed, Reviewer, TokenReviews, Unanswered},
};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// An API server that validates JWTs.
#[derive(Debug)]
pub struct ApiServer(Arc<Cluster>);

/// The clusters whose API servers validate JWTs.
#[must_use]
pub fn token_reviews(clusters: &Clusters) -> TokenReviews {
    let reviewed = |cluster: &Arc<Cluster>| {
        let review = cluster.settings().token_review.clone()?;
        Some(Reviewed {
            cluster: cluster.name().clone(),
            issuers: review.issuers.iter().map(|issuer| issuer.as_str().to_owned()).collect(),
            audiences: review.audiences,
            namespaces: review.namespaces,
            trust_domain: cluster.trust_domain().clone(),
            cache: review.cache,
            timeout: review.timeout,
            reviewer: Arc::new(ApiServer(Arc::clone(cluster))),
        })
    };
    TokenReviews::new(clusters.iter().filter_map(reviewed).collect())
}

impl ApiServer {
    /// The API server of a cluster.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self(cluster)
    }

    async fn create_review(&self, token: BearerToken<'_>, audiences: &[String]) -> Result<Review, kube::Error> {
        let spec = TokenReviewSpec { audiences: Some(audiences.to_vec()), token: token.expose().to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.0.client());
        let status = reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        let extra = |key: &str| user.extra.as_ref()?.get(key)?.first().cloned();
        let (pod_name, pod_uid) = (extra(POD_NAME), extra(POD_UID));
        Ok(Review {
            authenticated: status.authenticated.unwrap_or_default(),
            error: status.error.filter(|error| !error.is_empty()),
            audiences: status.audiences.unwrap_or_default(),
            username: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            pod_name,
            pod_uid,
        })
    }
}

impl Reviewer for ApiServer {
    fn review<'a>(
        &'a self,
        token: BearerToken<'a>,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Review, Unanswered>> {
        Box::pin(async move { self.create_review(token, audiences).await.map_err(|error| Unanswered(chain(&error))) })
    }
}
