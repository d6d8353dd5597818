//! The composition root: builds the parts, listens, tells readiness, reloads, drains.
//!
//! Knows every part and decides nothing about certificates. A token that is away at the start does not end the
//! daemon: it stays up, not ready, and becomes ready once the token is there.

pub mod admin;
pub mod background;
pub mod clusters;
pub mod controllers;
pub mod last_good_bundle;
pub mod operator;
pub mod readiness;
pub mod reload;
pub mod runtime;
pub mod setup;
pub mod snapshot;
pub mod status;
pub mod systemd;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{AcceptAny, Authenticator},
    config::{Admin, Config},
    grpc::{self, listener::Listener, service::CertificateService},
    telemetry::metrics::{self, Metrics},
};
use background::Background;
use process::hardening;
use readiness::{Readiness, ReadinessHandle, Report};
use setup::{Core, SetupError};

/// How long the tokens may take to end what they have begun, after the drain.
const TOKENS_END: Duration = Duration::from_secs(5);
/// How long the background tasks may take to end.
const TASKS_END: Duration = Duration::from_secs(2);
/// Open files that are kept for everything but connections of workloads.
const OWN_FILES: usize = 256;
/// How long new connections wait for the serving certificate after the start; as long as requests wait for a token.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(2);
/// How often the metrics that are counted elsewhere are set; Prometheus scrapes every 15 s or more by habit.
const METRICS: Duration = Duration::from_secs(1);

/// The daemon did not start, or ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// An address cannot be listened on.
    #[error(
        "{what} cannot be opened at {at}; stop what listens there (a daemon that runs already?), or configure another"
    )]
    Address {
        /// What listens there.
        what: &'static str,
        /// The address or path.
        at: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Authentication cannot be set up.
    #[error("authentication cannot be set up: {}", .0.join("; "))]
    Authentication(Vec<String>),
    /// The clusters cannot be used.
    #[error("Kubernetes cannot be set up: {}", .0.join("; "))]
    Kubernetes(Vec<String>),
    /// The endpoint cannot listen.
    #[error(transparent)]
    Listen(#[from] grpc::listener::ListenError),
    /// The endpoint ended without being asked to.
    #[error(transparent)]
    Serve(#[from] grpc::server::ServeError),
    /// The serving certificate cannot be had.
    #[error(transparent)]
    Serving(#[from] grpc::serving::ServingError),
    /// The CA, its log or its tokens cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The system refuses signals.
    #[error("signals cannot be received: {0}")]
    Signal(#[source] std::io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or its endpoint ended without being asked to.
pub async fn run(mut config: Config) -> Result<(), DaemonError> {
    fit_connections(&mut config.listen.limits);
    let stop = CancellationToken::new();
    let reload_trigger = Arc::new(Notify::new());
    signals(stop.clone(), Arc::clone(&reload_trigger))?;
    let background = Background::default();
    let readiness = Readiness::new();
    let metrics = metrics::install();
    // First of all, so that the daemon is not ready before it listens, by when every other part has registered.
    let endpoint = readiness.required("gRPC endpoint");
    serve_admin(&config, &readiness, &metrics, &background).await?;

    let own = &config.ca.trust_domains;
    let authenticator = Authenticator::new(&config.auth, own)
        .map_err(|errors| DaemonError::Authentication(errors.iter().map(ToString::to_string).collect()))?;
    let clusters = clusters::connect(&config, &readiness, &background)
        .await
        .map_err(|errors| DaemonError::Kubernetes(errors.iter().map(ToString::to_string).collect()))?;
    let authenticator = Arc::new(match &clusters {
        Some(clusters) => clusters::authenticate(clusters, authenticator, &background),
        None => authenticator,
    });
    authenticator.start();
    let core = setup::core(&config, &readiness, &background).await?;
    let standing = clusters.as_ref().map(|clusters| {
        let leadership = clusters::elect(&config, clusters, &background);
        let leading = leadership.as_ref().map(|leadership| &leadership.here);
        controllers::start(&config, clusters, &core.ca, leading, &readiness, &background);
        clusters::ClustersStatus::new(clusters, leadership)
    });
    let parts = (authenticator, standing);
    let served =
        serve(&config, &core, parts, &metrics, (&readiness, endpoint), &background, (stop, reload_trigger)).await;
    tracing::info!("draining");
    systemd::ending();
    background.end(TASKS_END).await;
    core.close(Instant::now() + TOKENS_END).await;
    tracing::info!("ended");
    served
}

/// Takes as many open files as the system gives, and no more connections than that allows: the log, the tokens' hosts
/// and the admin address must never be without one.
fn fit_connections(limits: &mut grpc::settings::Limits) {
    match hardening::raise_open_files() {
        Ok(files) => {
            let room = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(OWN_FILES).max(1);
            if limits.connections > room {
                tracing::warn!(
                    open_files = files,
                    configured = limits.connections,
                    connections = room,
                    "the system's limit of open files allows fewer connections than [listen.limits] connections; \
                     raise it (systemd: LimitNOFILE) or lower that"
                );
                limits.connections = room;
            }
        }
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

async fn serve(
    config: &Config,
    core: &Core,
    (authenticator, clusters): (Arc<Authenticator>, Option<clusters::ClustersStatus>),
    metrics: &Metrics,
    (readiness, endpoint): (&Readiness, ReadinessHandle),
    background: &Background,
    (stop, reload_trigger): (CancellationToken, Arc<Notify>),
) -> Result<(), DaemonError> {
    let listen = &config.listen;
    let mut first_certificate = None;
    let tls = if listen.plaintext {
        None
    } else {
        let (certificate, ready) = grpc::serving::spawn(Arc::clone(&core.ca), &config.serving, background.ended())?;
        first_certificate = Some(ready.clone());
        background.follow(ready, readiness.required("serving certificate"), |ready| {
            (!ready).then(|| "there is none yet, or it has expired".to_owned())
        });
        Some(grpc::tls::server_config(
            &listen.tls,
            certificate,
            Arc::new(AcceptAny::new(&rustls::crypto::aws_lc_rs::default_provider())),
        )?)
    };
    let listener = Listener::bind(listen, tls).await?;
    let at = listener.local_addr().map_err(|source| DaemonError::Address {
        what: "the gRPC endpoint",
        at: listen.address.to_string(),
        source,
    })?;
    if let Some(path) = &config.admin.socket {
        let socket = operator::bind(path).map_err(|source| DaemonError::Address {
            what: "the operator's socket",
            at: path.display().to_string(),
            source,
        })?;
        background.spawn(operator::serve(socket, Arc::clone(&core.ca), background.ended()));
    }
    if let Some(socket) = status_socket(config).await? {
        let take = snapshot::taker(core, config, readiness.watch(), clusters);
        background.spawn(status::serve(socket, take, background.ended()));
    }
    let reloader =
        core.reloader(config, Arc::clone(&authenticator), reload_trigger, readiness.required("CA certificate"));
    background.spawn(reloader.run(background.ended()));
    background.spawn_until_end(setup::watch_issuers(Arc::clone(&authenticator)));
    let (gather, metrics) = (snapshot::gatherer(core, readiness.watch(), listener.connections()), metrics.clone());
    background.every(METRICS, move || gather(&metrics));

    let ready = ready_flag(readiness.watch(), background);
    let service = CertificateService::new(Arc::clone(&core.ca), authenticator, &listen.limits);
    let routes = grpc::server::routes(service, listen, ready, stop.clone(), Arc::clone(&core.recent))?;
    if let Some(mut certificate) = first_certificate {
        // Connections wait in the listen queue meanwhile. A handshake without a certificate would fail, and a gRPC client
        // tries again only after a second.
        tokio::select! {
            _ = tokio::time::timeout(FIRST_CERTIFICATE, certificate.wait_for(|there| *there)) => {}
            () = stop.cancelled() => {}
        }
    }
    endpoint.set(None);
    tracing::info!(address = %at, tls = !listen.plaintext, "listening");
    systemd::listening(readiness.watch(), background);
    match grpc::server::serve(listener, routes, listen, stop).await? {
        grpc::server::Drained::Clean => tracing::info!("all requests in progress were answered"),
        grpc::server::Drained::Cut { connections } => {
            tracing::warn!(connections, "open connections were closed at the end of the drain")
        }
    }
    Ok(())
}

/// SIGTERM and SIGINT stop, SIGHUP triggers a reload.
fn signals(stop: CancellationToken, reload_trigger: Arc<Notify>) -> Result<(), DaemonError> {
    let on = |kind| signal(kind).map_err(DaemonError::Signal);
    let (mut term, mut int, mut hup) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => stop.cancel(),
                _ = int.recv() => stop.cancel(),
                _ = hup.recv() => reload_trigger.notify_one(),
            }
        }
    });
    Ok(())
}

async fn serve_admin(
    config: &Config,
    readiness: &Readiness,
    metrics: &Metrics,
    background: &Background,
) -> Result<(), DaemonError> {
    let Some(address) = config.admin.address else { return Ok(()) };
    let socket = bind("the admin address", address).await?;
    let render = metrics.render();
    tracing::info!(address = %socket.local_addr().unwrap_or(address), "admin");
    background.spawn(admin::serve(socket, readiness.watch(), render, background.ended()));
    Ok(())
}

/// Where the status page is served. An address that nobody asked for and that is taken is no reason not to start.
async fn status_socket(config: &Config) -> Result<Option<TcpListener>, DaemonError> {
    if !config.admin.status_page {
        return Ok(None);
    }
    let bound = bind("the status page", config.admin.status_address.unwrap_or(Admin::STATUS)).await;
    match bound {
        Ok(socket) => {
            let address = socket.local_addr().unwrap_or(Admin::STATUS);
            tracing::info!(%address, page = %format_args!("http://{address}/"), "status page");
            Ok(Some(socket))
        }
        Err(error) if config.admin.status_address.is_none() => {
            tracing::warn!(%error, "the status page is not served; set [admin] status_address, or status_page = false");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn bind(what: &'static str, address: std::net::SocketAddr) -> Result<TcpListener, DaemonError> {
    let failed = |source| DaemonError::Address { what, at: address.to_string(), source };
    TcpListener::bind(address).await.map_err(failed)
}

/// Readiness as one flag, for the health service.
fn ready_flag(mut report: watch::Receiver<Report>, background: &Background) -> watch::Receiver<bool> {
    let (flag, watched) = watch::channel(report.borrow().ready());
    background.spawn_until_end(async move {
        while report.changed().await.is_ok() {
            let ready = report.borrow_and_update().ready();
            flag.send_if_modified(|flag| std::mem::replace(flag, ready) != ready);
        }
    });
    watched
}
