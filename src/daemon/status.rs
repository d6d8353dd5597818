//! The status page: a self-contained, read-only page on a separate address, by default on loopback since it shows
//! identities.
//!
//! The template escapes everything that came from outside. The page loads no other resources; its
//! Content-Security-Policy forbids it.

mod clusters;
mod page;
mod plot;
mod recent_requests;
mod text;

use std::{
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    http::{HeaderName, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    http::{self, Hosts},
    readiness::Report,
};
use crate::telemetry::recent::Hour;

/// A certificate of the CA's chain.
#[derive(Clone, Debug)]
pub struct ChainEntry {
    /// Its role: `CA`, `intermediate`, `root`.
    pub role: &'static str,
    /// Its subject as in RFC 4514.
    pub subject: String,
    /// Type and size of its key.
    pub key: String,
    /// notBefore.
    pub not_before: SystemTime,
    /// notAfter.
    pub not_after: SystemTime,
    /// Its CRL: number, nextUpdate, entries; `None` without revocation.
    pub crl: Option<String>,
}

/// State of a token.
#[derive(Clone, Debug)]
pub struct TokenEntry {
    /// Its configured name.
    pub name: String,
    /// Its location: module with the label or serial number of its URI, or the socket of its host.
    pub place: String,
    /// Its state, such as `serving`.
    pub phase: &'static str,
    /// Why it does not sign; `None` if it does.
    pub trouble: Option<String>,
    /// Signatures since the daemon started.
    pub signed: u64,
    /// Requests waiting for it.
    pub outstanding: u64,
    /// Faults since the daemon started.
    pub faults: u64,
    /// How often its host was restarted.
    pub restarts: u64,
}

/// State of the issuance log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Why it cannot be written; `None` if it can.
    pub trouble: Option<String>,
    /// Number of lines.
    pub lines: u64,
    /// Bytes of lines on disk.
    pub bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// Flushes since the daemon started.
    pub flushes: u64,
    /// Lines written since the daemon started.
    pub written: u64,
    /// Lines covered by the last checkpoint; 0 without one.
    pub checkpointed: u64,
    /// When the last checkpoint was signed.
    pub checkpoint_time: Option<SystemTime>,
    /// Why there is no newer one; `None` if checkpoints work.
    pub checkpoint_trouble: Option<String>,
}

/// State of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterEntry {
    /// Its configured name.
    pub name: String,
    /// Why its API server does not respond; `None` if it does.
    pub trouble: Option<String>,
    /// Its controllers.
    pub controllers: Vec<ControllerEntry>,
}

/// State of a controller in a cluster.
#[derive(Clone, Debug)]
pub struct ControllerEntry {
    /// Its name in logs and metrics.
    pub name: &'static str,
    /// Whether it runs in this replica; otherwise another replica leads.
    pub running: bool,
    /// Current failures; `None` if there are none.
    pub trouble: Option<String>,
    /// When a reconcile last succeeded.
    pub last_success: Option<SystemTime>,
    /// Time and description of the last failure.
    pub last_error: Option<(SystemTime, String)>,
}

/// Content of the status page.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub now: SystemTime,
    /// When the daemon started.
    pub started: SystemTime,
    /// Readiness of the parts.
    pub report: Report,
    /// The CA's chain, starting with the CA.
    pub chain: Vec<ChainEntry>,
    /// The tokens.
    pub tokens: Vec<TokenEntry>,
    /// The log.
    pub log: LogEntry,
    /// The clusters, if any.
    pub clusters: Vec<ClusterEntry>,
    /// Where the controllers run; `None` if there are none.
    pub leader: Option<Leader>,
    /// Activity of the last hour.
    pub hour: Hour,
}

/// Which replica leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// Another replica, or none.
    Elsewhere {
        /// Holder of the Lease, as last read.
        holder: Option<String>,
    },
    /// This replica.
    Here,
}

/// Takes a snapshot.
pub type Take = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// The page may use its own style and script, known by their hashes, may show its own icon, may ask its own address again,
/// and nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(page::STYLE),
        hash(page::SCRIPT)
    )
});

/// Serves the page until `shutdown`.
///
/// # Errors
/// When the address cannot be served any more.
pub async fn serve(
    listener: TcpListener,
    take: Take,
    hosts: Hosts,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new().route("/", get(move || async move { respond(&take()) }));
    http::serve(listener, app, hosts, shutdown).await
}

fn respond(snapshot: &Snapshot) -> Response {
    let headers = [
        (HeaderName::from_static("content-type"), "text/html; charset=utf-8"),
        (HeaderName::from_static("content-security-policy"), POLICY.as_str()),
        (HeaderName::from_static("cache-control"), "no-store"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ];
    match page::render(snapshot) {
        Ok(html) => (headers, html).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render the status page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
