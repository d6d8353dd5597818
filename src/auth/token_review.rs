//! Authentication by a Kubernetes service account's JWT that an API server verifies (authentication.k8s.io/v1
//! TokenReview).
//!
//! A JWT is only sent to the API server configured for its `iss`, whatever cluster the client sends. `iss` is read
//! before verification, but a JWT with a false one only reaches an API server that rejects it. Claims are validated
//! before the request, so that invalid JWTs cost no API server anything, and the response is checked more strictly than
//! in Istio's own server (its audiences must include ours). `kubernetes` provides the API servers as [`Reviewer`]s.

mod error;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use self::error::ReviewError;
use super::{
    BoundPod,
    credential_cache::{CredentialCache, Hash, sha256},
    credentials::{BearerToken, ClusterName, Credentials},
    jwt::{
        Proven,
        claims::{Claims, Rules, Subject},
        compact::Compact,
    },
    received::Received,
};
use crate::{
    limits::{Client, Turns},
    telemetry::metrics,
};
use pki::identity::{Namespace, SpiffeId, TrustDomain};

/// Maximum number of cached results, some hundred bytes each.
const REMEMBERED: usize = 16_384;
/// How many refusals are kept: some hundred bytes each.
const REFUSALS: usize = 16_384;
/// How long a rejection is cached: enough for an agent's quick retries, short enough to notice a repaired cluster.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How many reviews are under way at one API server. More wait for their turn, as long as one may take, in a fair order
/// over addresses and connections: forged tokens of one client make others wait for their next turn only.
const AT_ONCE: usize = 32;
/// Tolerated difference between an API server's clock and ours.
const LEEWAY: Duration = Duration::from_secs(60);
/// The group of every service account.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Response of an API server (the status of a TokenReview).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// `authenticated`.
    pub authenticated: bool,
    /// `error`, if not empty.
    pub error: Option<String>,
    /// `audiences`: the requested ones that the JWT has.
    pub audiences: Vec<String>,
    /// `user.username`.
    pub username: String,
    /// `user.groups`.
    pub groups: Vec<String>,
    /// `user.extra["authentication.kubernetes.io/pod-name"]`, the first.
    pub pod_name: Option<String>,
    /// `user.extra["authentication.kubernetes.io/pod-uid"]`, the first.
    pub pod_uid: Option<String>,
}

/// An API server did not respond.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unanswered(pub String);

/// An API server that reviews JWTs.
pub trait Reviewer: std::fmt::Debug + Send + Sync {
    /// Requests a review of a JWT for these audiences.
    fn review<'a>(
        &'a self,
        token: BearerToken<'a>,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Review, Unanswered>>;
}

/// A cluster whose API server reviews its JWTs.
#[derive(Debug)]
pub struct Reviewed {
    /// The cluster.
    pub cluster: ClusterName,
    /// The issuers of its JWTs; each belongs to one cluster only.
    pub issuers: Vec<String>,
    /// A JWT must be for one of these audiences.
    pub audiences: Vec<String>,
    /// Namespaces whose workloads may obtain certificates; empty means all.
    pub namespaces: Vec<Namespace>,
    /// The trust domain of its workloads.
    pub trust_domain: TrustDomain,
    /// How long a result is cached.
    pub cache: Duration,
    /// Timeout of a review.
    pub timeout: Duration,
    /// The API server.
    pub reviewer: Arc<dyn Reviewer>,
}

/// Verifies JWTs with the API servers that issued them.
#[derive(Debug)]
pub struct TokenReviews {
    clusters: Vec<Cluster>,
    cache: CredentialCache<Answer>,
    refusals: CredentialCache<Refusal>,
}

#[derive(Debug)]
struct Cluster {
    settings: Reviewed,
    rules: Rules,
    turns: Arc<Turns>,
}

/// A cached result of a valid JWT, and its expiry.
#[derive(Debug)]
struct Answer {
    proven: Proven,
    from: SystemTime,
    until: SystemTime,
}

/// A cached rejection by the API server, and its expiry.
#[derive(Debug)]
struct Refusal {
    error: ReviewError,
    from: SystemTime,
    until: SystemTime,
}

impl TokenReviews {
    /// Combines the clusters.
    #[must_use]
    pub fn new(clusters: Vec<Reviewed>) -> Self {
        let cluster = |settings: Reviewed| Cluster {
            rules: Rules {
                audiences: settings.audiences.clone(),
                namespaces: settings.namespaces.clone(),
                leeway: LEEWAY,
            },
            settings,
            turns: Turns::new(AT_ONCE),
        };
        Self {
            clusters: clusters.into_iter().map(cluster).collect(),
            cache: CredentialCache::new(REMEMBERED),
            refusals: CredentialCache::new(REFUSALS),
        }
    }

    /// Verifies a JWT at a time; `None` if its issuer is not configured for any of these clusters, which includes text
    /// that is not a JWT.
    pub async fn check(
        &self,
        credentials: &Credentials<'_>,
        token: BearerToken<'_>,
        default_cluster: &ClusterName,
        now: SystemTime,
    ) -> Option<Result<Proven, ReviewError>> {
        if self.clusters.is_empty() {
            return None;
        }
        let named = credentials.cluster_id.or(default_cluster);
        let text = super::jwt::compact::within_limit(token.expose()).ok()?;
        let hash = sha256(text.as_bytes());
        if let Some(proven) = self.remembered(&hash, named, now) {
            return Some(Ok(proven));
        }
        let claims = Claims::parse(&Compact::parse(text).ok()?.payload).ok()?;
        let cluster = self.clusters.iter().find(|cluster| cluster.settings.issuers.contains(&claims.iss))?;
        if cluster.settings.cluster.as_str() != named {
            return Some(Err(ReviewError::WrongCluster {
                received: Received::new(named),
                issuer: Received::new(&claims.iss),
                configured: cluster.settings.cluster.clone(),
            }));
        }
        Some(self.judge(cluster, credentials.client, token, &hash, &claims, now).await)
    }

    /// Who a token of a cluster proves. The API server is asked only about what may be one of its tokens, and once about
    /// a token that many send.
    async fn judge(
        &self,
        cluster: &Cluster,
        client: Option<Client>,
        token: BearerToken<'_>,
        hash: &Hash,
        claims: &Claims,
        now: SystemTime,
    ) -> Result<Proven, ReviewError> {
        let settings = &cluster.settings;
        let times = claims.times(&cluster.rules, now)?;
        let claimed = claims.subject(&cluster.rules)?;
        self.not_refused(hash, now)?;
        let unanswered = |source| ReviewError::Unanswered { cluster: settings.cluster.clone(), source };
        let _turn = match client {
            Some(client) => match tokio::time::timeout(settings.timeout, cluster.turns.take(client)).await {
                Ok(turn) => Some(turn),
                Err(_) => return Err(unanswered(Unanswered("too many tokens wait for a review".to_owned()))),
            },
            None => None,
        };
        // The same token may have been answered meanwhile.
        self.not_refused(hash, now)?;
        if let Some(proven) = self.remembered(hash, settings.cluster.as_str(), now) {
            return Ok(proven);
        }
        let result = cluster.ask(token, &claimed).await;
        metrics::token_review(settings.cluster.as_str(), result.as_ref().map_or_else(ReviewError::outcome, |_| "good"));
        match &result {
            Ok(proven) => {
                let until = (now + settings.cache).min(times.expires);
                self.cache.insert(*hash, Arc::new(Answer { proven: proven.clone(), from: now, until }));
            }
            Err(error) if !error.is_temporary() => {
                let refusal = Refusal { error: error.clone(), from: now, until: now + REFUSED_FOR };
                self.refusals.insert(*hash, Arc::new(refusal));
            }
            Err(_) => {}
        }
        result
    }

    /// Fails if the API server lately refused the token.
    fn not_refused(&self, hash: &Hash, now: SystemTime) -> Result<(), ReviewError> {
        let refusal = self.refusals.get(hash).filter(|refusal| (refusal.from..refusal.until).contains(&now));
        refusal.map_or(Ok(()), |refusal| Err(refusal.error.clone()))
    }

    /// A cached result that is still valid, for the cluster that the client sends. Setting the clock back invalidates
    /// it, too.
    fn remembered(&self, hash: &Hash, named: &str, now: SystemTime) -> Option<Proven> {
        let answer = self.cache.get(hash)?;
        let holds = (answer.from..answer.until).contains(&now) && answer.proven.cluster.as_str() == named;
        holds.then(|| answer.proven.clone())
    }
}

impl Cluster {
    /// Asks the API server who sent a token that claims to be somebody's.
    async fn ask(&self, token: BearerToken<'_>, claimed: &Subject) -> Result<Proven, ReviewError> {
        let Reviewed { cluster, trust_domain, timeout, audiences, reviewer, .. } = &self.settings;
        let unanswered = |source| ReviewError::Unanswered { cluster: cluster.clone(), source };
        let review = match tokio::time::timeout(*timeout, reviewer.review(token, audiences)).await {
            Ok(review) => review.map_err(unanswered)?,
            Err(_) => return Err(unanswered(Unanswered(format!("no answer within {} s", timeout.as_secs_f64())))),
        };
        let subject = self.subject(&review)?;
        if subject != *claimed {
            return Err(ReviewError::Disagree { reported: Received::new(&review.username) });
        }
        let Subject { namespace, service_account, pod } = subject;
        Ok(Proven {
            identity: SpiffeId::new(trust_domain.clone(), namespace, service_account),
            cluster: cluster.clone(),
            pod: pod.map(Arc::new),
        })
    }

    /// The workload in the API server's response (ISTIO: security/pkg/k8s/tokenreview/k8sauthn.go, and the audiences).
    fn subject(&self, review: &Review) -> Result<Subject, ReviewError> {
        let refused = |reason: &str| ReviewError::Refused {
            cluster: self.settings.cluster.clone(),
            reason: Received::new(reason),
        };
        if let Some(reason) = &review.error {
            return Err(refused(reason));
        }
        if !review.authenticated {
            return Err(refused("not authenticated"));
        }
        if !review.audiences.iter().any(|audience| self.settings.audiences.contains(audience)) {
            return Err(ReviewError::Audience {
                received: Received::list(review.audiences.iter().map(String::as_str)),
                accepted: Received::list(self.settings.audiences.iter().map(String::as_str)),
            });
        }
        let no_account = |reason| ReviewError::NoServiceAccount { reason, username: Received::new(&review.username) };
        if !review.groups.iter().any(|group| group == SERVICE_ACCOUNTS) {
            return Err(no_account("its groups lack system:serviceaccounts"));
        }
        let malformed = || no_account("its username is not system:serviceaccount:NAMESPACE:NAME");
        let mut parts = review.username.split(':');
        let (Some("system"), Some("serviceaccount"), Some(namespace), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let pod = match (&review.pod_name, &review.pod_uid) {
            (Some(name), Some(uid)) => Some(BoundPod { name: name.clone(), uid: uid.clone() }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(no_account("of the pod's name and UID it has one"));
            }
        };
        Ok(Subject {
            namespace: namespace.parse().map_err(|_| malformed())?,
            service_account: account.parse().map_err(|_| malformed())?,
            pod,
        })
    }
}

#[cfg(test)]
mod tests;
