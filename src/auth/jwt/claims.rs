//! Claims of a JWT (RFC 7519, section 4.1, and Kubernetes' own claims), and their validation.
//!
//! Pure. [`super::Jwt`] has verified the signature before anything but `iss` is used.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::auth::{BoundPod, received::Received};
use audit_log::timestamp;
use pki::identity::{Namespace, ServiceAccount};

/// Prefix of the subject of a service account's JWT.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Maximum number of audiences that are checked; Kubernetes' JWTs have one or two.
const MOST_AUDIENCES: usize = 64;
/// Maximum length of a pod name and UID in bytes: that of an RFC 1123 subdomain.
const MOST_NAME: usize = 253;
/// The last second of the year 9999; later times are rejected.
const LAST_SECOND: u64 = 253_402_300_799;

/// Why what a token says is refused: what it says, and what is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Not for us.
    #[error("the token's audience is {received}, and accepted are {accepted}")]
    Audience {
        /// `aud`.
        received: Received,
        /// The configured audiences.
        accepted: Received,
    },
    /// `sub` and `kubernetes.io` name different workloads.
    #[error("the token's subject {subject} and its kubernetes.io claim ({claim}) disagree")]
    Disagree {
        /// `sub`.
        subject: Received,
        /// Namespace and service account.
        claim: Received,
    },
    /// `exp` has passed.
    #[error("the token expired at {}, and it is {}", timestamp::format(*expired), timestamp::format(*now))]
    Expired {
        /// `exp`.
        expired: SystemTime,
        /// Our time.
        now: SystemTime,
    },
    /// Issued later than now.
    #[error("the token was issued in the future, at {}, and it is {}", timestamp::format(*issued), timestamp::format(*now))]
    IssuedInFuture {
        /// `iat`.
        issued: SystemTime,
        /// Our time.
        now: SystemTime,
    },
    /// Not a JSON object with the claims in their types, or without `iss`, `sub` or `exp`.
    #[error("the token's claims are malformed: {0}")]
    Malformed(Received),
    /// A namespace that its issuer does not speak for.
    #[error("the token's namespace is {received}, and its issuer is configured for {accepted}")]
    Namespace {
        /// That of `sub`.
        received: Received,
        /// The configured namespaces.
        accepted: Received,
    },
    /// `nbf` has not come yet.
    #[error("the token is not valid before {}, and it is {}", timestamp::format(*starts), timestamp::format(*now))]
    NotYetValid {
        /// `nbf`.
        starts: SystemTime,
        /// Our time.
        now: SystemTime,
    },
    /// Not the subject of a ServiceAccount.
    #[error("the token's subject {0} is not a Kubernetes service account")]
    Subject(Received),
}

impl ClaimsError {
    /// The label in metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Audience { .. } => "jwt_audience",
            Self::Disagree { .. } => "jwt_disagree",
            Self::Expired { .. } => "jwt_expired",
            Self::IssuedInFuture { .. } => "jwt_issued_in_future",
            Self::Malformed(_) => "jwt_claims",
            Self::Namespace { .. } => "jwt_namespace",
            Self::NotYetValid { .. } => "jwt_not_yet_valid",
            Self::Subject(_) => "jwt_subject",
        }
    }
}

/// Required claims of an issuer's JWTs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// The namespaces of the issuer's workloads; empty means all.
    pub namespaces: Vec<Namespace>,
    /// Tolerated difference between the issuer's clock and ours.
    pub leeway: Duration,
}

/// The claims of a JWT, not validated.
#[derive(Debug, Deserialize)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    sub: String,
    exp: NumericDate,
    #[serde(default)]
    nbf: Option<NumericDate>,
    #[serde(default)]
    iat: Option<NumericDate>,
    #[serde(default)]
    aud: Option<Audience>,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

/// Validity period of a JWT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Start, including the leeway.
    pub not_before: SystemTime,
    /// End, without the leeway.
    pub expires: SystemTime,
}

/// Workload of a JWT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The namespace.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ServiceAccount,
    /// The pod that the JWT is bound to, if any.
    pub pod: Option<BoundPod>,
}

/// RFC 7519, section 4.1.3: a string or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// The private claim of bound service account tokens (`kubernetes/pkg/serviceaccount/claims.go`).
#[derive(Debug, Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Reference,
    #[serde(default)]
    pod: Option<Reference>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    name: String,
    #[serde(default)]
    uid: Option<String>,
}

/// Seconds since 1970 (RFC 7519, section 2), without fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NumericDate(Duration);

impl NumericDate {
    fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0
    }
}

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let seconds = match number.as_u64() {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => number.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds.floor()).ok()),
        };
        seconds
            .filter(|seconds| seconds.as_secs() <= LAST_SECOND)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not a date"))
    }
}

impl Claims {
    /// Parses a payload.
    ///
    /// # Errors
    /// If it is not a JSON object with the required claims.
    pub fn parse(payload: &[u8]) -> Result<Self, ClaimsError> {
        serde_json::from_slice(payload).map_err(|error| ClaimsError::Malformed(Received::new(&error.to_string())))
    }

    /// Validates `exp`, `nbf`, `iat` and `aud`.
    ///
    /// # Errors
    /// If the JWT is not valid now, or not for our audiences.
    pub fn times(&self, rules: &Rules, now: SystemTime) -> Result<Times, ClaimsError> {
        let latest = now + rules.leeway;
        if now >= self.exp.time() + rules.leeway {
            return Err(ClaimsError::Expired { expired: self.exp.time(), now });
        }
        if let Some(nbf) = self.nbf.filter(|nbf| nbf.time() > latest) {
            return Err(ClaimsError::NotYetValid { starts: nbf.time(), now });
        }
        if let Some(iat) = self.iat.filter(|iat| iat.time() > latest) {
            return Err(ClaimsError::IssuedInFuture { issued: iat.time(), now });
        }
        let audiences: &[String] = match &self.aud {
            None => &[],
            Some(Audience::One(audience)) => std::slice::from_ref(audience),
            Some(Audience::Many(audiences)) => audiences,
        };
        let for_us =
            audiences.len() <= MOST_AUDIENCES && audiences.iter().any(|audience| rules.audiences.contains(audience));
        if !for_us {
            return Err(ClaimsError::Audience {
                received: Received::list(audiences.iter().map(String::as_str)),
                accepted: Received::list(rules.audiences.iter().map(String::as_str)),
            });
        }
        let starts = self.nbf.max(self.iat).map_or(SystemTime::UNIX_EPOCH, NumericDate::time);
        let not_before = starts.checked_sub(rules.leeway).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Times { not_before, expires: self.exp.time() })
    }

    /// Reads the workload from `sub` and `kubernetes.io`, which must match.
    ///
    /// # Errors
    /// If they contain no service account, different ones, or a namespace that is not configured for the issuer.
    pub fn subject(&self, rules: &Rules) -> Result<Subject, ClaimsError> {
        let foreign = || ClaimsError::Subject(Received::new(&self.sub));
        let names = self.sub.strip_prefix(SERVICE_ACCOUNT).ok_or_else(foreign)?;
        let (namespace, service_account) = names.split_once(':').ok_or_else(foreign)?;
        if let Some(claim) = &self.kubernetes
            && (claim.namespace != namespace || claim.serviceaccount.name != service_account)
        {
            let claim = Received::list([claim.namespace.as_str(), claim.serviceaccount.name.as_str()]);
            return Err(ClaimsError::Disagree { subject: Received::new(&self.sub), claim });
        }
        let namespace: Namespace = namespace.parse().map_err(|_| foreign())?;
        let service_account = service_account.parse().map_err(|_| foreign())?;
        if !rules.namespaces.is_empty() && !rules.namespaces.contains(&namespace) {
            return Err(ClaimsError::Namespace {
                received: Received::new(namespace.as_str()),
                accepted: Received::list(rules.namespaces.iter().map(Namespace::as_str)),
            });
        }
        let pod = self.kubernetes.as_ref().and_then(|claim| claim.pod.as_ref()).map(Reference::pod).transpose()?;
        Ok(Subject { namespace, service_account, pod })
    }
}

impl Reference {
    /// A pod's name and UID: printable text for log lines and for comparison with the API server's response.
    fn pod(&self) -> Result<BoundPod, ClaimsError> {
        let plain = |text: &str| {
            !text.is_empty()
                && text.len() <= MOST_NAME
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        };
        match &self.uid {
            Some(uid) if plain(&self.name) && plain(uid) => Ok(BoundPod { name: self.name.clone(), uid: uid.clone() }),
            Some(_) | None => Err(ClaimsError::Malformed(Received::new("kubernetes.io.pod"))),
        }
    }
}
