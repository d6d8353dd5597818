//! Authentication by a JSON Web Token (RFC 7519), verified with its issuer's published keys.
//!
//! A JWT is only verified with the keys of the issuer in its `iss`, in the cluster that the client sends (the same
//! issuer name may be configured for several clusters). Nothing in a JWT determines which key or algorithm is trusted:
//! `jwk`, `jku`, `x5c` and `x5u` are ignored.

pub mod claims;
pub mod compact;
pub mod jwks;
pub mod keys;
pub mod settings;
pub mod source;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{
    claims::{Claims, ClaimsError, Rules, Subject},
    compact::{Compact, CompactError},
    jwks::Jwk,
    keys::{KeySet, Keys},
    source::Source,
};
pub use self::{
    settings::{Algorithm, Settings},
    source::FetchError,
};
use super::{
    BoundPod, NotReady, SetupError,
    credential_cache::{CredentialCache, sha256},
    credentials::{BearerToken, ClusterId, ClusterName},
    received::Received,
};
use pki::identity::{SpiffeId, TrustDomain};

/// Maximum number of cached results, some hundred bytes each.
const REMEMBERED: usize = 16_384;
/// Maximum number of keys tried for a JWT without a key ID: a verification costs up to 100 microseconds.
const TRIES: usize = 4;
/// Maximum time that a request waits for its issuer's keys to be fetched again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a token proves nothing: what it says, and what is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// An algorithm that its issuer is not configured for, `none` and the HMACs among them.
    #[error("the token's algorithm is {received}; issuer {issuer} is configured for {accepted}")]
    Algorithm {
        /// `alg`.
        received: Received,
        /// The issuer.
        issuer: Box<str>,
        /// Its algorithms.
        accepted: Received,
    },
    /// What the token says is refused.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The issuer's keys could not be fetched lately, and the token's is not among those known.
    #[error("the token's key (kid {kid}) is not known, and the keys of issuer {issuer} cannot be fetched now")]
    KeysStale {
        /// `kid`.
        kid: Received,
        /// The issuer.
        issuer: Box<str>,
    },
    /// The issuer's keys have not been fetched yet.
    #[error("the keys of the token's issuer {0} are not available yet")]
    NotReady(Box<str>),
    /// No key of the issuer made the signature.
    #[error("the token's signature does not verify with the key {kid} of issuer {issuer}")]
    Signature {
        /// `kid`.
        kid: Received,
        /// The issuer.
        issuer: Box<str>,
    },
    /// Not a token.
    #[error(transparent)]
    Compact(#[from] CompactError),
    /// The issuer is not configured.
    #[error("the token's issuer is {received}, and configured are {configured}")]
    UnknownIssuer {
        /// `iss`.
        received: Received,
        /// The issuers of the configuration.
        configured: Received,
    },
    /// The issuer has no such key.
    #[error("issuer {issuer} has no key {kid} for {}; its keys are {known}", algorithm.as_str())]
    UnknownKey {
        /// `kid`.
        kid: Received,
        /// `alg`.
        algorithm: Algorithm,
        /// The issuer.
        issuer: Box<str>,
        /// The key IDs that it has.
        known: Received,
    },
    /// The issuer is another cluster's.
    #[error("the caller names the cluster {received}, and issuer {issuer} is configured for {configured}")]
    WrongCluster {
        /// The cluster that the caller names, or the default one.
        received: Received,
        /// The issuer.
        issuer: Box<str>,
        /// Its clusters.
        configured: Received,
    },
}

impl JwtError {
    /// The label in metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Algorithm { .. } => "jwt_algorithm",
            Self::Claims(error) => error.reason(),
            Self::KeysStale { .. } => "jwt_keys_stale",
            Self::NotReady(_) => "jwt_keys_not_ready",
            Self::Signature { .. } => "jwt_signature",
            Self::Compact(error) => error.reason(),
            Self::UnknownIssuer { .. } => "jwt_unknown_issuer",
            Self::UnknownKey { .. } => "jwt_unknown_key",
            Self::WrongCluster { .. } => "jwt_wrong_cluster",
        }
    }

    /// Whether the same JWT may be accepted later, without a change of it or of the configuration.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::KeysStale { .. } | Self::NotReady(_) => true,
            Self::Algorithm { .. }
            | Self::Claims(_)
            | Self::Signature { .. }
            | Self::Compact(_)
            | Self::UnknownIssuer { .. }
            | Self::UnknownKey { .. }
            | Self::WrongCluster { .. } => false,
        }
    }
}

/// The content of a verified JWT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The workload.
    pub identity: SpiffeId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The pod that the JWT is bound to, if any.
    pub pod: Option<Arc<BoundPod>>,
}

/// Verifies JWTs.
#[derive(Debug)]
pub struct Jwt {
    issuers: Vec<Issuer>,
    default_cluster: ClusterName,
    cache: CredentialCache<Answer>,
}

/// A JWT issuer.
#[derive(Debug)]
struct Issuer {
    name: Box<str>,
    algorithms: Vec<Algorithm>,
    rules: Rules,
    cluster: ClusterName,
    trust_domain: TrustDomain,
    keys: Keys,
}

/// A cached result of a valid JWT: the generation of the issuer's keys that verified it, and its expiry.
#[derive(Debug)]
struct Answer {
    issuer: usize,
    generation: u64,
    not_before: SystemTime,
    expires: SystemTime,
    proven: Proven,
}

impl Jwt {
    /// Sets up the issuers and reads keys from files. Keys from the network are fetched after [`Jwt::start`].
    ///
    /// # Errors
    /// All settings that contradict each other or name files that cannot be used.
    pub fn new(
        settings: &[Settings],
        default_cluster: ClusterName,
        own: &[TrustDomain],
    ) -> Result<Self, Vec<SetupError>> {
        let mut errors = Vec::new();
        let mut issuers: Vec<Issuer> = Vec::new();
        for one in settings {
            let cluster = one.cluster.clone().unwrap_or_else(|| default_cluster.clone());
            if issuers.iter().any(|other| *other.name == *one.issuer.as_str() && other.cluster == cluster) {
                errors.push(SetupError::SameIssuer { issuer: one.issuer.to_string(), cluster: cluster.to_string() });
            }
            let Some(trust_domain) = one.trust_domain.clone().or_else(|| own.first().cloned()) else {
                errors.push(SetupError::NoTrustDomain { issuer: one.issuer.to_string() });
                continue;
            };
            match Source::new(&one.issuer, &one.keys) {
                Ok(source) => issuers.push(Issuer {
                    name: one.issuer.as_str().into(),
                    algorithms: one.algorithms.clone(),
                    rules: Rules {
                        audiences: one.audiences.clone(),
                        namespaces: one.namespaces.clone(),
                        leeway: one.leeway.into(),
                    },
                    cluster,
                    trust_domain,
                    keys: Keys::new(&one.issuer, source, one.pace()),
                }),
                Err(source) => errors.push(SetupError::KeySource { issuer: one.issuer.to_string(), source }),
            }
        }
        if errors.is_empty() {
            Ok(Self { issuers, default_cluster, cache: CredentialCache::new(REMEMBERED) })
        } else {
            Err(errors)
        }
    }

    /// Starts fetching keys in the background, until this value is dropped. Needs a Tokio runtime.
    pub fn start(&self) {
        for issuer in &self.issuers {
            issuer.keys.start();
        }
    }

    /// Triggers fetching every issuer's keys.
    pub fn refresh(&self) {
        for issuer in &self.issuers {
            issuer.keys.refresh();
        }
    }

    /// Issuers whose keys are unavailable, with the reason.
    #[must_use]
    pub fn not_ready(&self) -> Vec<NotReady> {
        let one = |issuer: &Issuer| {
            issuer.keys.not_ready().map(|failure| NotReady { issuer: issuer.name.to_string(), failure })
        };
        self.issuers.iter().filter_map(one).collect()
    }

    /// Verifies a JWT at a time.
    ///
    /// # Errors
    /// If it is not accepted, or not yet ([`JwtError::is_temporary`]).
    pub async fn check(
        &self,
        token: BearerToken<'_>,
        cluster: ClusterId<'_>,
        now: SystemTime,
    ) -> Result<Proven, JwtError> {
        let text = compact::within_limit(token.expose())?;
        let cluster = cluster.or(&self.default_cluster);
        let hash = sha256(text.as_bytes());
        if let Some(answer) = self.cache.get(&hash).filter(|answer| self.holds(answer, cluster, now)) {
            return Ok(answer.proven.clone());
        }
        let compact = Compact::parse(text)?;
        let claims = Claims::parse(&compact.payload)?;
        let (index, issuer) = self.issuer(&claims.iss, cluster)?;
        let algorithm = issuer.algorithms.iter().copied().find(|known| known.as_str() == compact.header.alg);
        let algorithm = algorithm.ok_or_else(|| JwtError::Algorithm {
            received: Received::new(&compact.header.alg),
            issuer: issuer.name.clone(),
            accepted: Received::list(issuer.algorithms.iter().map(|accepted| accepted.as_str())),
        })?;
        let keys = issuer.keys_for(&compact, algorithm).await?;
        if !keys.of(compact.header.kid.as_deref(), algorithm).take(TRIES).any(|key| key.made(&compact)) {
            return Err(JwtError::Signature { kid: compact.kid(), issuer: issuer.name.clone() });
        }
        let times = claims.times(&issuer.rules, now)?;
        let Subject { namespace, service_account, pod } = claims.subject(&issuer.rules)?;
        let proven = Proven {
            identity: SpiffeId::new(issuer.trust_domain.clone(), namespace, service_account),
            cluster: issuer.cluster.clone(),
            pod: pod.map(Arc::new),
        };
        let answer = Answer {
            issuer: index,
            generation: keys.generation(),
            not_before: times.not_before,
            expires: times.expires,
            proven: proven.clone(),
        };
        self.cache.insert(hash, Arc::new(answer));
        Ok(proven)
    }

    /// Whether a cached result is still valid: not after the JWT's expiry, regardless of the leeway; not after the
    /// issuer's keys changed; and only for the issuer's cluster.
    fn holds(&self, answer: &Answer, cluster: &str, now: SystemTime) -> bool {
        now < answer.expires
            && now >= answer.not_before
            && answer.proven.cluster.as_str() == cluster
            && self
                .issuers
                .get(answer.issuer)
                .and_then(|issuer| issuer.keys.current())
                .is_some_and(|keys| keys.generation() == answer.generation)
    }

    fn issuer(&self, name: &str, cluster: &str) -> Result<(usize, &Issuer), JwtError> {
        let named = || self.issuers.iter().enumerate().filter(|(_, issuer)| *issuer.name == *name);
        if let Some(found) = named().find(|(_, issuer)| issuer.cluster.as_str() == cluster) {
            return Ok(found);
        }
        Err(match named().next() {
            Some((_, issuer)) => JwtError::WrongCluster {
                received: Received::new(cluster),
                issuer: issuer.name.clone(),
                configured: Received::list(named().map(|(_, issuer)| issuer.cluster.as_str())),
            },
            None => JwtError::UnknownIssuer {
                received: Received::new(name),
                configured: Received::list(self.issuers.iter().map(|issuer| &*issuer.name)),
            },
        })
    }
}

impl Issuer {
    /// A key set with a key for the JWT: the current one, or one that is fetched now. Unknown key IDs cause no more
    /// fetches than [`keys::Pace`] permits.
    async fn keys_for(&self, compact: &Compact<'_>, algorithm: Algorithm) -> Result<Arc<KeySet>, JwtError> {
        let has = |keys: &KeySet| keys.of(compact.header.kid.as_deref(), algorithm).next().is_some();
        let current = self.keys.current().ok_or_else(|| JwtError::NotReady(self.name.clone()))?;
        if has(&current) {
            return Ok(current);
        }
        let fetched = self.keys.fetched_again(PATIENCE).await;
        match self.keys.current() {
            Some(keys) if has(&keys) => Ok(keys),
            Some(keys) if fetched => Err(JwtError::UnknownKey {
                kid: compact.kid(),
                algorithm,
                issuer: self.name.clone(),
                known: Received::list(keys.kids()),
            }),
            Some(_) | None => Err(JwtError::KeysStale { kid: compact.kid(), issuer: self.name.clone() }),
        }
    }
}

impl Jwk {
    /// Whether this key verifies the JWT's signature.
    fn made(&self, compact: &Compact<'_>) -> bool {
        jsonwebtoken::crypto::verify(
            compact.signature,
            compact.signed.as_bytes(),
            self.decoding_key(),
            self.algorithm().into(),
        )
        .unwrap_or(false)
    }
}
