//! Runs the endpoint: HTTP/2 with its limits on the listener's connections, and the drain at the end.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use super::{
    admission::Admission,
    health,
    listener::Listener,
    settings::{Limits, Settings},
};
use crate::telemetry::recent::Recent;
use istio_api::{
    FILE_DESCRIPTOR_SET,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};

/// Maximum time for closed connections to end after the drain.
const CUT: Duration = Duration::from_secs(1);

/// How much later than the service's own deadline the endpoint's applies.
const LATER: Duration = Duration::from_secs(1);

/// The endpoint ended other than by a drain.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptor for reflection is invalid.
    #[error("BUG: the descriptor of the service cannot be parsed")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The HTTP/2 server failed.
    #[error("the gRPC endpoint ended")]
    Transport(#[source] tonic::transport::Error),
}

/// Result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All requests in flight were answered.
    Clean,
    /// Connections that were still open after the timeout were closed.
    Cut {
        /// Number of connections.
        connections: usize,
    },
}

/// The services of the endpoint: certificates, health, and reflection if configured.
///
/// # Errors
/// If our own descriptor is invalid.
pub fn routes(
    certificates: impl IstioCertificateService,
    settings: &Settings,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
    recent: Arc<Recent>,
) -> Result<Routes, ServeError> {
    let certificates =
        IstioCertificateServiceServer::new(certificates).max_decoding_message_size(settings.limits.message_bytes);
    let admission = Admission::new(&settings.limits, recent);
    let mut routes = Routes::new(admission.of_requests(certificates))
        .add_service(admission.of_streams(health::service(ready, stop)));
    if settings.reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes
            .add_service(admission.of_streams(builder().build_v1().map_err(ServeError::Reflection)?))
            .add_service(admission.of_streams(builder().build_v1alpha().map_err(ServeError::Reflection)?));
    }
    Ok(routes)
}

/// Serves until `stop` is cancelled; then accepts no new connections, lets requests in flight finish within the drain
/// timeout, and closes the remaining connections.
///
/// # Errors
/// If the endpoint ends unexpectedly.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    settings: &Settings,
    stop: CancellationToken,
) -> Result<Drained, ServeError> {
    let cut = CancellationToken::new();
    let connections = listener.connections();
    let incoming = listener.incoming(stop.clone(), cut.clone());
    let served = builder(&settings.limits)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let mut served = std::pin::pin!(served);
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(settings.drain).await;
    };
    tokio::select! {
        ended = &mut served => ended.map(|()| Drained::Clean).map_err(ServeError::Transport),
        () = overdue => {
            let left = connections.len();
            cut.cancel();
            // Their tasks end once woken; it does not matter whether all of them do so in time.
            let _ = tokio::time::timeout(CUT, served).await;
            Ok(Drained::Cut { connections: left })
        }
    }
}

fn builder(limits: &Limits) -> Server {
    let message = u32::try_from(limits.message_bytes).unwrap_or(u32::MAX >> 1);
    let server = Server::builder()
        .max_concurrent_streams(limits.streams)
        .http2_max_header_list_size(limits.header_bytes)
        .http2_max_pending_accept_reset_streams(Some(limits.pending_resets))
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        // A message fits its stream's window, so that no reader waits. What a connection sends is read at once, so that
        // its window bounds only what arrives between two looks at it.
        .initial_stream_window_size(message.clamp(0xffff, 1 << 20))
        .initial_connection_window_size(message.clamp(0xffff, 1 << 20) * 4)
        // Ends a request whose body never comes. A complete one is ended by the service, whose answer says so better.
        .timeout(limits.request_timeout + LATER);
    // Without an additional grace period: with one, tonic closes the connection instead of requesting its end.
    match limits.connection_age {
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}
