//! The status page: one self-contained, read-only page on an address of its own, loopback by default since it
//! shows identities.
//!
//! Everything that came from outside passes through the template's escaping; the page loads nothing and, by its
//! Content-Security-Policy, may not.

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

/// A certificate of the CA's path.
#[derive(Clone, Debug)]
pub struct ChainEntry {
    /// What it is: `CA`, `intermediate`, `root`.
    pub role: &'static str,
    /// Its subject in RFC 4514 form.
    pub subject: String,
    /// Its key's type and size.
    pub key: String,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// A token as it stands.
#[derive(Clone, Debug)]
pub struct TokenEntry {
    /// Its configured name.
    pub name: String,
    /// Where it is: its URI's label or serial number and its module, or the socket of its host.
    pub place: String,
    /// Where it stands, such as `serving`.
    pub phase: &'static str,
    /// Why it does not sign; `None` when it does.
    pub trouble: Option<String>,
    /// Signatures since the daemon started.
    pub signed: u64,
    /// Requests that wait for it.
    pub outstanding: u64,
    /// Faults since the daemon started.
    pub faults: u64,
    /// How often its host was restarted.
    pub restarts: u64,
}

/// The issuance log as it stands.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Why it takes no lines; `None` when it does.
    pub trouble: Option<String>,
    /// Its lines.
    pub lines: u64,
    /// Bytes of its lines on the disk.
    pub bytes: u64,
    /// Its segments.
    pub segments: u64,
    /// Flushes since the daemon started.
    pub flushes: u64,
    /// Lines since the daemon started.
    pub written: u64,
    /// The lines under the last checkpoint, 0 without one.
    pub checkpointed: u64,
    /// When the last checkpoint was signed.
    pub checkpoint_time: Option<SystemTime>,
    /// Why there is no newer one; `None` when all is well.
    pub checkpoint_trouble: Option<String>,
}

/// A cluster as it stands.
#[derive(Clone, Debug)]
pub struct ClusterEntry {
    /// Its configured name.
    pub name: String,
    /// Why its API server does not answer; `None` when it does.
    pub trouble: Option<String>,
    /// What this daemon does there.
    pub controllers: Vec<ControllerEntry>,
}

/// A controller of a cluster as it stands.
#[derive(Clone, Debug)]
pub struct ControllerEntry {
    /// Its name in logs and metrics.
    pub name: &'static str,
    /// Whether it runs here; where another replica leads, it stands by.
    pub running: bool,
    /// What is not as it should be; `None` when all is.
    pub trouble: Option<String>,
    /// When it last found or made everything as it should be.
    pub last_success: Option<SystemTime>,
    /// When something last failed, and what.
    pub last_error: Option<(SystemTime, String)>,
}

/// All that the page shows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub now: SystemTime,
    /// When the daemon started.
    pub started: SystemTime,
    /// What the parts of the daemon say.
    pub report: Report,
    /// The CA's path, the CA first.
    pub chain: Vec<ChainEntry>,
    /// The tokens.
    pub tokens: Vec<TokenEntry>,
    /// The log.
    pub log: LogEntry,
    /// The clusters, where there are any.
    pub clusters: Vec<ClusterEntry>,
    /// Which replica's controllers run; `None` where none is configured.
    pub leader: Option<Leader>,
    /// The last hour.
    pub hour: Hour,
}

/// Which replica leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// Another one, or none.
    Elsewhere {
        /// Which other replica holds the Lease, as last read.
        holder: Option<String>,
    },
    /// This one.
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
