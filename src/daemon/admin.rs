//! The admin address: `/livez`, `/readyz` and `/metrics` over plain HTTP, for probes and Prometheus.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::readiness::Report;

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
/// When the address cannot be served any more.
pub async fn serve(
    listener: TcpListener,
    report: watch::Receiver<Report>,
    metrics: Render,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Admin { report, metrics });
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let report = admin.report.borrow().clone();
    let status = if report.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, report.to_string())
}

async fn render(State(admin): State<Admin>) -> ([(&'static str, &'static str); 1], String) {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], (admin.metrics)())
}
