//! The admin address: `/livez`, `/readyz` and `/metrics` over plain HTTP, for probes and Prometheus.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    http::{self, Hosts},
    readiness::Report,
};

/// Renders the metrics in Prometheus' text format.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

#[derive(Clone)]
struct Admin {
    report: watch::Receiver<Report>,
    metrics: Render,
}

/// Serves the admin address until `shutdown`.
///
/// # Errors
/// If the address can no longer be served.
pub async fn serve(
    listener: TcpListener,
    report: watch::Receiver<Report>,
    metrics: Render,
    hosts: Hosts,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Admin { report, metrics });
    http::serve(listener, app, hosts, shutdown).await
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let report = admin.report.borrow().clone();
    let status = if report.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, report.to_string())
}

async fn render(State(admin): State<Admin>) -> ([(&'static str, &'static str); 1], String) {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], (admin.metrics)())
}
