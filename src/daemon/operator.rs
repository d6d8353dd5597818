//! The admin socket: the operator's `issue` command through the running daemon.
//!
//! A Unix socket that only its owner can open. The caller's user ID comes from the kernel (SO_PEERCRED); only root and
//! the daemon's own user are served. One JSON request and response, over HTTP/1.1.

use std::{
    borrow::Cow,
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, State, connect_info::Connected},
    http::StatusCode,
    routing::post,
    serve::IncomingStream,
};
use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Caller,
    issue::{CertificateAuthority, Request},
    policy::Asked,
    telemetry::RequestId,
};
use pki::identity::{DnsName, Name, SpiffeId};
use process::{error::Remedy, files};
use token_host::SOCKET_PATH_MAX;

/// The operator's request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IssueRequest {
    /// The PEM certificate request.
    pub csr: String,
    /// The SPIFFE ID for the certificate.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// DNS names, a subset of those configured for serving certificates.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// IP addresses, a subset of those configured for serving certificates.
    #[serde(default)]
    pub ip_addresses: Vec<std::net::IpAddr>,
    /// The lifetime in seconds; 0 means the configured default.
    #[serde(default)]
    pub validity_seconds: i64,
}

/// The operator's certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IssueReply {
    /// The request ID, as in the logs.
    pub request_id: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// In PEM: the leaf, the intermediates, the roots.
    pub chain: Vec<String>,
}

/// No certificate was issued.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IssueFailure {
    /// The request ID, as in the logs.
    pub request_id: String,
    /// The reason, one sentence.
    pub error: String,
}

/// The user id of the peer (SO_PEERCRED); `None` if the kernel does not report it.
#[derive(Clone, Copy, Debug)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

/// Why the operator's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another daemon answers there")]
    Answered,
    /// Its directory does not exist.
    #[error("its directory does not exist")]
    NoDirectory(PathBuf),
    /// Something else has its name.
    #[error("a file that is not a socket has this name")]
    NotASocket,
    /// The operating system refuses; the directory.
    #[error("{0}")]
    System(io::Error, PathBuf),
    /// Longer than `sun_path` holds (unix(7)).
    #[error("the path has {0} bytes, and that of a socket has at most {SOCKET_PATH_MAX}")]
    TooLong(usize),
}

impl Remedy for BindError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Answered => "stop it, or give this one a socket of its own".into(),
            Self::NoDirectory(directory) => format!("create {}", directory.display()).into(),
            Self::NotASocket => "remove it, or configure another path".into(),
            Self::System(_, directory) => format!("make {} writable for the daemon's user", directory.display()).into(),
            Self::TooLong(_) => "configure a shorter path, such as /run/istio-hsm-ca/admin.sock".into(),
        })
    }
}

/// Checks whether the socket can be opened, and changes nothing.
///
/// # Errors
/// As [`bind`].
pub fn examine(path: &Path) -> Result<(), BindError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(BindError::TooLong(length));
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(BindError::NoDirectory(directory.to_owned()));
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(BindError::NotASocket);
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(BindError::Answered);
        }
    }
    eaccess(directory, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|error| BindError::System(error.into(), directory.to_owned()))
}

/// Binds the socket, readable and writable by its owner only; a socket that a dead daemon left is replaced.
///
/// # Errors
/// When something else has its name, another daemon answers there, or the directory cannot be written.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    examine(path)?;
    let open = || {
        files::remove_socket(path)?;
        let listener = UnixListener::bind(path)?;
        files::set_socket_mode(path, 0o600)?;
        Ok(listener)
    };
    open().map_err(|error| BindError::System(error, path.parent().unwrap_or(Path::new(".")).to_owned()))
}

/// Serves the socket until `shutdown`, then removes it.
///
/// # Errors
/// If the socket can no longer be served.
pub async fn serve(
    listener: UnixListener,
    ca: Arc<CertificateAuthority>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
    let app = Router::new().route("/issue", post(issue)).with_state(ca);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await;
    // Lets `issue` run without the daemon. The log is still locked here, so no other daemon can own this path yet.
    if let Some(path) = path
        && let Err(error) = files::remove_socket(&path)
    {
        tracing::debug!(path = %path.display(), %error, "cannot remove the operator socket");
    }
    served
}

async fn issue(
    State(ca): State<Arc<CertificateAuthority>>,
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    Json(request): Json<IssueRequest>,
) -> Result<Json<IssueReply>, (StatusCode, Json<IssueFailure>)> {
    let id = RequestId::random();
    let failure = |status, error: String| (status, Json(IssueFailure { request_id: id.to_string(), error }));
    let own = nix::unistd::geteuid().as_raw();
    let Some(uid) = uid.filter(|uid| *uid == 0 || *uid == own) else {
        return Err(failure(StatusCode::FORBIDDEN, "only root and the daemon's own user may ask here".to_owned()));
    };
    match perform(&ca, uid, &id, request).await {
        Ok(reply) => Ok(Json(reply)),
        Err(error) => {
            tracing::warn!(request_id = %id, uid, error, "operator request refused");
            Err(failure(StatusCode::UNPROCESSABLE_ENTITY, error))
        }
    }
}

/// Issues for the operator, through the issuance pipeline; also used by `issue` without a daemon.
///
/// # Errors
/// The reason as one sentence.
pub async fn perform(
    ca: &CertificateAuthority,
    uid: u32,
    id: &RequestId,
    request: IssueRequest,
) -> Result<IssueReply, String> {
    let names = names(&request).map_err(|error| error.to_string())?;
    let asked = Asked { validity_seconds: request.validity_seconds, operator_names: names, ..Asked::default() };
    let caller = Caller::operator(uid);
    let (id_text, arrived) = (id.to_string().into(), Instant::now());
    let request = Request { id: id_text, caller, csr: request.csr, asked, issuer: None, arrived, deadline: None };
    let issued = ca.issue(request).await.map_err(|error| error.to_string())?;
    Ok(IssueReply { request_id: id.to_string(), serial: issued.tbs().serial().to_hex(), chain: issued.chain() })
}

fn names(request: &IssueRequest) -> Result<Vec<Name>, pki::identity::NameError> {
    let spiffe = request.spiffe_id.iter().map(|text| text.parse::<SpiffeId>().map(Name::Spiffe));
    let dns = request.dns_names.iter().map(|text| text.parse::<DnsName>().map(Name::Dns));
    let ip = request.ip_addresses.iter().map(|address| Ok(Name::Ip(*address)));
    spiffe.chain(dns).chain(ip).collect()
}
