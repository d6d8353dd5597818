//! The methods in their order, composed: credentials in, [`Caller`] or [`AuthError`] out.
//!
//! Called by `grpc` for each request, and by the daemon at start and reload.

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    Caller, Identity, Method,
    client_certificate::{
        self, CertificateError, ClientCertificates, denylist::DenylistError, previous::PreviousCaError,
    },
    credentials::{ClusterName, Credentials},
    jwt::{self, FetchError, Jwt, JwtError},
};
use crate::{identity::TrustDomain, pki::Issuer};

/// The longest configured file in bytes.
const MOST: u64 = 4 * 1024 * 1024;

/// The part `[auth]` of the configuration.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Issuers of tokens.
    pub jwt: Vec<jwt::Settings>,
    /// Client certificates.
    pub client_certificate: client_certificate::Settings,
    /// The cluster of callers that name none.
    pub default_cluster: ClusterName,
}

/// Why authentication cannot be set up, or not be reloaded.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A line of a denylist.
    #[error("{file}: {source}")]
    Denylist {
        /// The denylist.
        file: PathBuf,
        /// The line and its fault.
        source: DenylistError,
    },
    /// A file cannot be read.
    #[error("{file} cannot be read: {source}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An issuer's source of keys cannot be used.
    #[error("issuer {issuer}: {source}")]
    KeySource {
        /// The issuer.
        issuer: String,
        /// Why not.
        source: FetchError,
    },
    /// No trust domain for an issuer's workloads.
    #[error("issuer {issuer}: set its trust_domain, or one of the CA's own")]
    NoTrustDomain {
        /// The issuer.
        issuer: String,
    },
    /// A file of previous CAs.
    #[error("{file}: {source}")]
    PreviousCa {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: PreviousCaError,
    },
    /// Two entries for one issuer in one cluster.
    #[error("issuer {issuer} is configured twice for the cluster {cluster}; give each its own cluster")]
    SameIssuer {
        /// The issuer.
        issuer: String,
        /// The cluster.
        cluster: String,
    },
    /// A file is longer than anybody needs.
    #[error("{file} is longer than 4 MiB")]
    TooLong {
        /// The file.
        file: PathBuf,
    },
}

/// An issuer whose tokens cannot be checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// The issuer.
    pub issuer: String,
    /// Why not.
    pub reason: String,
}

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.issuer, self.reason)
    }
}

/// What each method said; `None` where the caller brought nothing for it. For logs, never for the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// The client certificate.
    pub client_certificate: Option<CertificateError>,
    /// The token.
    pub jwt: Option<JwtError>,
}

impl Refusals {
    /// The label of the last method that had something to say: a bounded set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match (&self.jwt, self.client_certificate) {
            (Some(error), _) => error.reason(),
            (None, Some(error)) => error.reason(),
            (None, None) => "no_credentials",
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client certificate: ")?;
        match self.client_certificate {
            Some(error) => error.fmt(f)?,
            None => f.write_str("none")?,
        }
        f.write_str("; token: ")?;
        match &self.jwt {
            Some(error) => error.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Why a caller is nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No method proves who it is: gRPC's UNAUTHENTICATED.
    #[error("the caller is not authenticated ({0})")]
    Refused(Refusals),
    /// It cannot be decided now, since an issuer's keys are not available: gRPC's UNAVAILABLE, which Istio's agents
    /// try again.
    #[error("the caller cannot be authenticated now ({0})")]
    Unavailable(Refusals),
}

impl AuthError {
    /// What each method said.
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

/// All methods of authentication.
#[derive(Debug)]
pub struct Authenticator {
    client_certificates: ClientCertificates,
    jwt: Jwt,
}

impl Authenticator {
    /// Sets the methods up from the configuration: `own` are the trust domains in which this CA issues. Files are
    /// read; the network is not touched before [`Authenticator::start`], and whatever it answers then, the daemon
    /// stays up.
    ///
    /// # Errors
    /// Every file and setting that cannot be used.
    pub fn new(settings: &Settings, own: &[TrustDomain]) -> Result<Self, Vec<SetupError>> {
        let client_certificates = ClientCertificates::load(settings.client_certificate.clone(), own);
        let jwt = Jwt::new(&settings.jwt, settings.default_cluster.clone(), own);
        match (client_certificates, jwt) {
            (Ok(client_certificates), Ok(jwt)) => Ok(Self { client_certificates, jwt }),
            (one, other) => Err(one.err().into_iter().flatten().chain(other.err().into_iter().flatten()).collect()),
        }
    }

    /// Starts to fetch the issuers' keys in the background, until this value is dropped. Needs a Tokio runtime.
    pub fn start(&self) {
        self.jwt.start();
    }

    /// Reads the denylist and the previous CAs again, and has the issuers' keys fetched.
    ///
    /// # Errors
    /// Every file that cannot be used; what was read before stays.
    pub fn reload(&self) -> Result<(), Vec<SetupError>> {
        self.jwt.refresh();
        self.client_certificates.reload()
    }

    /// The issuers whose tokens cannot be checked yet, for readiness and `check`.
    #[must_use]
    pub fn not_ready(&self) -> Vec<NotReady> {
        self.jwt.not_ready()
    }

    /// Finds out who calls: by client certificate, else by token. The issuer is the one with which the request
    /// started.
    ///
    /// # Errors
    /// When nothing proves who it is, or not yet.
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
                    return Ok(Caller {
                        method: Method::ClientCertificate,
                        identity: Identity::Workload(id),
                        cluster: None,
                        pod: None,
                        peer: credentials.peer,
                    });
                }
                Err(error) => refusals.client_certificate = Some(error),
            }
        }
        let Some(token) = credentials.bearer else { return Err(AuthError::Refused(refusals)) };
        match self.jwt.check(token, credentials.cluster_id, now).await {
            Ok(jwt::Proven { identity, cluster, pod }) => Ok(Caller {
                method: Method::Jwt,
                identity: Identity::Workload(identity),
                cluster: Some(cluster),
                pod,
                peer: credentials.peer,
            }),
            Err(error) => {
                let temporary = error.is_temporary();
                refusals.jwt = Some(error);
                Err(if temporary { AuthError::Unavailable(refusals) } else { AuthError::Refused(refusals) })
            }
        }
    }
}

/// Reads a configured file.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, SetupError> {
    let wrong = |source| SetupError::File { file: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(wrong)?.take(MOST).read_to_end(&mut bytes).map_err(wrong)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length < MOST) {
        Ok(bytes)
    } else {
        Err(SetupError::TooLong { file: path.to_owned() })
    }
}
