//! The preparation of the daemon: everything that is read, checked and opened before it serves, in one list.
//!
//! `serve` takes what was prepared, or ends with every reason at once. `check` takes the same steps apart and reports
//! each; it names every field, so that a new step does not compile without a finding.

use std::{borrow::Cow, io, net::SocketAddr, path::PathBuf, sync::Arc, time::SystemTime};

use tokio::net::TcpListener;

use super::{
    operator,
    setup::{self, SetupError},
};
use crate::{
    auth::{self, AcceptAny, Authenticator, Caller, InternalCaller},
    config::{Admin, Config},
    grpc::{
        listener::{self, ListenError, Listener},
        serving::key::ServingKey,
        tls::{self, ServingCertificate},
    },
    kubernetes::{ClusterError, Clusters},
    policy::Asked,
    revocation::Revocations,
    token_pool::HostEndpoint,
};
use audit_log::Log;
use pki::{
    Bundle, Tbs, VerifiedCsr,
    identity::{Name, SpiffeId},
    tbs::Serial,
};
use process::error::{Advice, Remedy, chain};

/// The result of each step.
#[derive(Debug)]
pub struct Preparation {
    /// `[admin] address`, open.
    pub admin: Result<Option<TcpListener>, AddressError>,
    /// `[auth]`, with its files read.
    pub authenticator: Result<Authenticator, Vec<auth::SetupError>>,
    /// The bundle.
    pub bundle: Result<Bundle, SetupError>,
    /// The clients of `[kubernetes]`; `None` without that section.
    pub clusters: Result<Option<Clusters>, Vec<ClusterError>>,
    /// `[listen] address`, open.
    pub endpoint: Result<Endpoint, EndpointError>,
    /// Whether the issuance log is free; the daemon opens it next, which may take long.
    pub log: Result<(), SetupError>,
    /// Whether `[admin] socket` can be opened, which the daemon does when it can answer.
    pub operator_socket: Result<(), AddressError>,
    /// The status page's address, open.
    pub status_page: Result<StatusPage, AddressError>,
    /// Revoked certificates, which the authenticator and the endpoint refuse; filled once the daemon runs.
    pub revocations: Revocations,
}

/// What the daemon starts with.
#[derive(Debug)]
pub struct Prepared {
    pub(super) admin: Option<TcpListener>,
    pub(super) authenticator: Authenticator,
    pub(super) bundle: Bundle,
    pub(super) clusters: Option<Clusters>,
    pub(super) endpoint: Endpoint,
    pub(super) status_page: StatusPage,
    pub(super) revocations: Revocations,
}

/// The gRPC endpoint before it accepts connections.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) listener: Listener,
    /// Absent until there is a serving certificate.
    pub(super) certificate: ServingCertificate,
}

/// The status page's socket.
#[derive(Debug)]
pub enum StatusPage {
    /// Switched off.
    Off,
    /// Open.
    Open(TcpListener),
    /// The default address, which nobody configured, is taken: the daemon runs without the page.
    Unavailable(AddressError),
}

/// The gRPC endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

impl Remedy for EndpointError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Listen(error) => error.remedy(),
            Self::Tls(_) => None,
        }
    }
}

/// An address or a socket of the daemon cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// `[admin] socket`.
    #[error("[admin] socket: cannot listen on {}: {reason}{advice}", path.display(), advice = Advice(self))]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why not.
        reason: operator::BindError,
    },
    /// An address of plain HTTP.
    #[error("{setting}: cannot listen on {address}: {reason}{advice}", advice = Advice(self))]
    Tcp {
        /// Its setting, such as `[admin] address`.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        reason: io::Error,
    },
}

impl Remedy for AddressError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Socket { reason, .. } => reason.remedy(),
            Self::Tcp { setting, reason, .. } => Some(listener::remedy(setting, reason)),
        }
    }
}

/// At least one step of the preparation failed.
#[derive(Debug, thiserror::Error)]
pub struct PreparationError(Vec<String>);

impl std::fmt::Display for PreparationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [reason] => f.write_str(reason),
            reasons => {
                write!(f, "the daemon cannot start for {} reasons:", reasons.len())?;
                reasons.iter().try_for_each(|reason| write!(f, "\n- {reason}"))
            }
        }
    }
}

impl Preparation {
    /// Takes every step, whatever the others give. Addresses stay open until the result is dropped; nothing else
    /// outside of this process changes.
    pub async fn run(config: &Config) -> Self {
        let revocations = Revocations::default();
        // First of all: a client that is refused by the system tries again only after a second, while one whose
        // connection is in the listen queue waits for the daemon.
        let endpoint = endpoint(config, &revocations).await;
        Self {
            endpoint,
            admin: admin(config).await,
            authenticator: Authenticator::new(&config.auth, &config.ca.trust_domains, &revocations),
            bundle: setup::bundle(config),
            clusters: match &config.kubernetes {
                Some(settings) => Clusters::new(settings, &config.ca.trust_domains).await.map(Some),
                None => Ok(None),
            },
            log: Log::examine_lock(&config.log).map_err(SetupError::from),
            operator_socket: match &config.admin.socket {
                Some(path) => {
                    operator::examine(path).map_err(|reason| AddressError::Socket { path: path.clone(), reason })
                }
                None => Ok(()),
            },
            status_page: status_page(config).await,
            revocations,
        }
    }

    /// What was prepared, if every step succeeded.
    ///
    /// # Errors
    /// Every reason why not.
    pub fn complete(self) -> Result<Prepared, PreparationError> {
        let mut reasons = Vec::new();
        let Self { admin, authenticator, bundle, clusters, endpoint, log, operator_socket, status_page, revocations } =
            self;
        let admin = admin.map_err(|error| reasons.push(chain(&error)));
        let authenticator = authenticator.map_err(|errors| reasons.extend(errors.iter().map(|error| chain(error))));
        let bundle = bundle.map_err(|error| reasons.push(chain(&error)));
        let clusters = clusters.map_err(|errors| reasons.extend(errors.iter().map(|error| chain(error))));
        let endpoint = endpoint.map_err(|error| reasons.push(chain(&error)));
        let log = log.map_err(|error| reasons.push(chain(&error)));
        let operator_socket = operator_socket.map_err(|error| reasons.push(chain(&error)));
        let status_page = status_page.map_err(|error| reasons.push(chain(&error)));
        let checked = log.and(operator_socket);
        match (admin, authenticator, bundle, clusters, endpoint, checked, status_page) {
            (Ok(admin), Ok(authenticator), Ok(bundle), Ok(clusters), Ok(endpoint), Ok(()), Ok(status_page)) => {
                Ok(Prepared { admin, authenticator, bundle, clusters, endpoint, status_page, revocations })
            }
            _ => Err(PreparationError(reasons)),
        }
    }
}

async fn admin(config: &Config) -> Result<Option<TcpListener>, AddressError> {
    match config.admin.address {
        Some(address) => open("[admin] address", address).await.map(Some),
        None => Ok(None),
    }
}

async fn endpoint(config: &Config, revocations: &Revocations) -> Result<Endpoint, EndpointError> {
    let listen = &config.listen;
    let certificate = ServingCertificate::absent();
    let tls = if listen.plaintext {
        None
    } else {
        let verifier = AcceptAny::new(&rustls::crypto::aws_lc_rs::default_provider(), revocations.clone());
        Some(tls::server_config(&listen.tls, certificate.clone(), Arc::new(verifier))?)
    };
    Ok(Endpoint { listener: Listener::bind(listen, tls).await?, certificate })
}

async fn status_page(config: &Config) -> Result<StatusPage, AddressError> {
    if !config.admin.status_page {
        return Ok(StatusPage::Off);
    }
    match open("[admin] status_address", config.admin.status_address.unwrap_or(Admin::STATUS)).await {
        Ok(socket) => Ok(StatusPage::Open(socket)),
        Err(error) if config.admin.status_address.is_none() => Ok(StatusPage::Unavailable(error)),
        Err(error) => Err(error),
    }
}

async fn open(setting: &'static str, address: SocketAddr) -> Result<TcpListener, AddressError> {
    TcpListener::bind(address).await.map_err(|reason| AddressError::Tcp { setting, address, reason })
}

/// A kind of certificate that could not be issued.
#[derive(Debug)]
pub struct Unissuable {
    /// Which, as the subject of a sentence.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// Takes the endpoint's certificate and one of a workload in each trust domain through the issuance pipeline up to the
/// log, and through the limits of the token hosts that the daemon starts. Returns those that are refused.
#[must_use]
pub fn rehearse(config: &Config, bundle: &Bundle, now: SystemTime) -> Vec<Unissuable> {
    let from_files = config.serving.certificate_file.is_some();
    let own = (!config.listen.plaintext && !from_files).then(|| {
        let caller = Caller::internal(InternalCaller::ServingCertificate);
        ("the serving certificate".to_owned(), caller, Asked::default())
    });
    let workloads = config.ca.trust_domains.iter().filter_map(|domain| {
        let id = SpiffeId::new(domain.clone(), "default".parse().ok()?, "default".parse().ok()?);
        let asked = Asked { operator_names: vec![Name::Spiffe(id)], ..Asked::default() };
        let what = format!("a workload's certificate in the trust domain {domain}");
        Some((what, Caller::operator(nix::unistd::geteuid().as_raw()), asked))
    });
    own.into_iter()
        .chain(workloads)
        .filter_map(|(what, caller, asked)| {
            let reason = refusal(config, bundle, &caller, &asked, now).err()?;
            Some(Unissuable { what, reason })
        })
        .collect()
}

fn refusal(config: &Config, bundle: &Bundle, caller: &Caller, asked: &Asked, now: SystemTime) -> Result<(), String> {
    fn text(error: impl std::error::Error) -> String {
        chain(&error)
    }
    let issuer = bundle.issuer();
    let request = ServingKey::generate().and_then(|key| key.request()).map_err(text)?;
    let csr = VerifiedCsr::from_pem(&request).map_err(text)?;
    let grant = config.rules().decide(caller, &csr, asked, issuer, now).map_err(text)?;
    let tbs = Tbs::build(grant.template().clone(), Arc::clone(issuer), Serial::random()).map_err(text)?;
    for token in config.pool_settings().tokens {
        if let HostEndpoint::Child { settings, .. } = token.endpoint
            && let Some(reason) = settings.refuses_leaf(tbs.der(), issuer, now)
        {
            return Err(format!("the limits of the token host {} ([token_host]) forbid it: {reason}", token.name));
        }
    }
    Ok(())
}
