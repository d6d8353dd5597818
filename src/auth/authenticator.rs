//! Combines the authentication methods in their order: credentials in, [`Caller`] or [`AuthError`] out.

use std::{
    borrow::Cow,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    Caller, DenylistCheck, Identity, Method,
    client_certificate::{
        self, CertificateError, ClientCertificates, denylist::DenylistError, previous::PreviousCaError,
        refusal::CertificateRefusal,
    },
    credentials::{ClusterName, Credentials},
    jwt::{self, FetchError, Jwt, JwtError},
    node::{ImpersonationError, Nodes},
    token_review::{ReviewError, TokenReviews},
};
use crate::revocation::Revocations;
use pki::{
    Issuer,
    found::{self, Found, Wanted},
    identity::TrustDomain,
};
use process::error::{Advice, Remedy, Report, chain};

/// Maximum size of a configured file in bytes.
const MOST: usize = 4 * 1024 * 1024;

/// `[auth]`.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// JWT issuers.
    pub jwt: Vec<jwt::Settings>,
    /// Client certificates.
    pub client_certificate: client_certificate::Settings,
    /// The cluster of callers that send none.
    pub default_cluster: ClusterName,
}

/// Authentication cannot be set up or reloaded.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A line of a denylist is malformed.
    #[error("{file}: {source}")]
    Denylist {
        /// Path of the denylist.
        file: PathBuf,
        /// The line and its error.
        source: DenylistError,
    },
    /// A file cannot be read.
    #[error("{file} cannot be read: {source}")]
    File {
        /// Path of the file.
        file: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// An issuer's key source cannot be used.
    #[error("issuer {issuer}: {source}")]
    KeySource {
        /// The issuer.
        issuer: String,
        /// The error.
        source: FetchError,
    },
    /// There is no trust domain for an issuer's workloads.
    #[error("issuer {issuer}: set its trust_domain, or one of the CA's own")]
    NoTrustDomain {
        /// The issuer.
        issuer: String,
    },
    /// A file of previous CAs is malformed.
    #[error("{file}: {source}")]
    PreviousCa {
        /// Path of the file.
        file: PathBuf,
        /// The parser's error.
        source: PreviousCaError,
    },
    /// Two entries for one issuer in one cluster.
    #[error("issuer {issuer} is configured twice for the cluster {cluster}{advice}", advice = Advice(self))]
    SameIssuer {
        /// The issuer.
        issuer: String,
        /// The cluster.
        cluster: String,
    },
    /// A file is something that people take for text, or for PEM.
    #[error("{file}: {}{advice}", found.what, advice = Advice(self))]
    Unlike {
        /// Path of the file.
        file: PathBuf,
        /// What it is.
        found: Found,
    },
    /// A file is too large.
    #[error("{file} is longer than 4 MiB")]
    TooLong {
        /// Path of the file.
        file: PathBuf,
    },
}

impl Remedy for SetupError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::SameIssuer { .. } => Some("give each its own cluster".into()),
            Self::KeySource { source, .. } => source.remedy(),
            Self::Unlike { found, .. } => Some(found.remedy.clone().into()),
            Self::Denylist { .. }
            | Self::File { .. }
            | Self::NoTrustDomain { .. }
            | Self::PreviousCa { .. }
            | Self::TooLong { .. } => None,
        }
    }
}

/// An issuer whose JWTs cannot be verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// The issuer.
    pub issuer: String,
    /// Why not, and what to do.
    pub failure: Arc<Report>,
}

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.issuer, self.failure.problem)
    }
}

/// The error of each method; `None` for those without credentials. For logs, never for the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Error of the client certificate.
    pub client_certificate: Option<CertificateRefusal>,
    /// Error of the JWT, verified with its issuer's published keys.
    pub jwt: Option<JwtError>,
    /// Error of the JWT, verified by the API server of its issuer's cluster.
    pub token_review: Option<ReviewError>,
}

impl Refusals {
    /// The label of the last method with an error: a bounded set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match (&self.token_review, &self.jwt, &self.client_certificate) {
            (Some(error), _, _) => error.reason(),
            (None, Some(error), _) => error.reason(),
            (None, None, Some(refusal)) => refusal.error.reason(),
            (None, None, None) => "no_credentials",
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client certificate: ")?;
        match &self.client_certificate {
            Some(refusal) => refusal.fmt(f)?,
            None => f.write_str("none")?,
        }
        f.write_str("; token: ")?;
        match (&self.token_review, &self.jwt) {
            (Some(error), _) => f.write_str(&chain(error)),
            (None, Some(error)) => f.write_str(&chain(error)),
            (None, None) => f.write_str("none"),
        }
    }
}

/// The caller was not authenticated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No method authenticates the caller: gRPC's UNAUTHENTICATED.
    #[error("the caller is not authenticated ({0})")]
    Refused(Box<Refusals>),
    /// Authentication is not possible now, since an issuer's keys or API server are unavailable: gRPC's UNAVAILABLE,
    /// which Istio's agents retry.
    #[error("the caller cannot be authenticated now ({0})")]
    Unavailable(Box<Refusals>),
}

impl AuthError {
    /// The error of each method.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        match self {
            Self::Refused(refusals) | Self::Unavailable(refusals) => refusals,
        }
    }

    /// The label in metrics: a bounded set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.refusals().reason()
    }
}

/// All authentication methods.
#[derive(Debug)]
pub struct Authenticator {
    client_certificates: Arc<ClientCertificates>,
    jwt: Jwt,
    token_reviews: TokenReviews,
    nodes: Nodes,
    default_cluster: ClusterName,
}

impl Authenticator {
    /// Sets up the methods from the configuration: `own` are the trust domains in which this CA issues; client
    /// certificates in `revocations` are refused. Files are read;
    /// the network is not used before [`Authenticator::start`], and failures there do not stop the daemon.
    ///
    /// # Errors
    /// All files and settings that cannot be used.
    pub fn new(settings: &Settings, own: &[TrustDomain], revocations: &Revocations) -> Result<Self, Vec<SetupError>> {
        let client_certificates = ClientCertificates::load(settings.client_certificate.clone(), own)
            .map(|certificates| certificates.with_revocations(revocations.clone()));
        let jwt = Jwt::new(&settings.jwt, settings.default_cluster.clone(), own);
        match (client_certificates, jwt) {
            (Ok(client_certificates), Ok(jwt)) => Ok(Self {
                client_certificates: Arc::new(client_certificates),
                jwt,
                token_reviews: TokenReviews::new(Vec::new()),
                nodes: Nodes::default(),
                default_cluster: settings.default_cluster.clone(),
            }),
            (one, other) => Err(one.err().into_iter().flatten().chain(other.err().into_iter().flatten()).collect()),
        }
    }

    /// Adds TokenReview by the clusters' API servers, and node impersonation.
    #[must_use]
    pub fn with_clusters(self, token_reviews: TokenReviews, nodes: Nodes) -> Self {
        Self { token_reviews, nodes, ..self }
    }

    /// Starts fetching the issuers' keys in the background, until this value is dropped. Needs a Tokio runtime.
    pub fn start(&self) {
        self.jwt.start();
    }

    /// Reads the denylist and the previous CAs again, and triggers fetching the issuers' keys.
    ///
    /// # Errors
    /// All files that cannot be used; the previous content stays in use.
    pub fn reload(&self) -> Result<(), Vec<SetupError>> {
        self.jwt.refresh();
        self.client_certificates.reload()
    }

    /// The denylist, for the issuance pipeline.
    #[must_use]
    pub fn denylist(&self) -> DenylistCheck {
        DenylistCheck(Some(Arc::clone(&self.client_certificates)))
    }

    /// The issuers whose tokens cannot be checked yet, for readiness and `check`.
    #[must_use]
    pub fn not_ready(&self) -> Vec<NotReady> {
        self.jwt.not_ready()
    }

    /// Authenticates a caller by client certificate, otherwise by JWT. The issuer is the one with which the request
    /// started.
    ///
    /// # Errors
    /// If no credential is valid, or cannot be verified yet.
    pub async fn authenticate(
        &self,
        credentials: &Credentials<'_>,
        issuer: &Issuer,
        now: SystemTime,
    ) -> Result<Caller, AuthError> {
        let mut refusals = Refusals::default();
        if let Some(chain) = credentials.client_chain {
            match self.client_certificates.check(chain, issuer.into(), now) {
                Ok(id) => {
                    let caller = Caller::plain(Method::ClientCertificate, Identity::Workload(id));
                    return Ok(Caller { peer: credentials.peer, ..caller });
                }
                // The holder of a revoked certificate's key gets no new one by a JWT, which may be stolen as well.
                Err(error) if error.error == CertificateError::Revoked => {
                    let refusals = Refusals { client_certificate: Some(error), ..refusals };
                    return Err(AuthError::Refused(Box::new(refusals)));
                }
                Err(error) => refusals.client_certificate = Some(error),
            }
        }
        let Some(token) = credentials.bearer else { return Err(AuthError::Refused(Box::new(refusals))) };
        let reviewed = self.token_reviews.check(credentials, token, &self.default_cluster, now).await;
        let temporary = match reviewed {
            Some(Ok(proven)) => return Ok(Caller::by_token(Method::TokenReview, proven, credentials)),
            Some(Err(error)) => {
                let temporary = error.is_temporary();
                refusals.token_review = Some(error);
                temporary
            }
            None => match self.jwt.check(token, credentials.cluster_id, now).await {
                Ok(proven) => return Ok(Caller::by_token(Method::Jwt, proven, credentials)),
                Err(error) => {
                    let temporary = error.is_temporary();
                    refusals.jwt = Some(error);
                    temporary
                }
            },
        };
        let refusals = Box::new(refusals);
        Err(if temporary { AuthError::Unavailable(refusals) } else { AuthError::Refused(refusals) })
    }

    /// Lets an authenticated caller impersonate another identity if its cluster permits it. Without node impersonation,
    /// the caller is returned unchanged, and `policy` denies the request.
    ///
    /// # Errors
    /// If it is not permitted, or if that cannot be determined now.
    pub async fn impersonate(&self, caller: Caller, asked: &str) -> Result<Caller, ImpersonationError> {
        if self.nodes.is_empty() {
            return Ok(caller);
        }
        let (id, node) = self.nodes.authorize(&caller, asked).await?;
        Ok(caller.acting_for(id, &node))
    }
}

impl Caller {
    fn by_token(method: Method, proven: jwt::Proven, credentials: &Credentials<'_>) -> Self {
        let jwt::Proven { identity, cluster, pod } = proven;
        let caller = Self::plain(method, Identity::Workload(identity));
        Self { cluster: Some(cluster), pod, peer: credentials.peer, ..caller }
    }
}

/// Reads a configured file.
/// A file that should hold text or PEM, if it is something else that is recognized.
pub(super) fn recognized(path: &Path, bytes: &[u8], wanted: Wanted) -> Option<SetupError> {
    let found = found::file(bytes, &path.display().to_string(), wanted)?;
    Some(SetupError::Unlike { file: path.to_owned(), found })
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, SetupError> {
    let wrong = |source| SetupError::File { file: path.to_owned(), source };
    let bytes = process::files::read_input(path, MOST).map_err(wrong)?;
    if bytes.len() <= MOST { Ok(bytes) } else { Err(SetupError::TooLong { file: path.to_owned() }) }
}
