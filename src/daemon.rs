//! The composition root: builds the parts, listens, reports readiness, reloads, drains.
//!
//! It makes no decisions about certificates. An unavailable token at startup does not stop the daemon: it is not ready
//! until the token is available.

pub mod admin;
pub mod background;
pub mod clusters;
pub mod controllers;
pub mod http;
pub mod last_good_bundle;
pub mod operator;
pub mod preparation;
pub mod publication;
pub mod readiness;
pub mod reload;
pub mod revocation;
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
    auth::Authenticator,
    config::{Admin, Config},
    grpc::{self, service::CertificateService},
    revocation::StoreError,
    telemetry::metrics::{self, Metrics},
};
use background::Background;
use http::Hosts;
use preparation::{AddressError, Endpoint, Preparation, PreparationError, Prepared, StatusPage};
use process::hardening;
use readiness::{Readiness, ReadinessHandle, Report};
use setup::{Core, SetupError};

/// Maximum time for the tokens to finish requests after the drain.
const TOKENS_END: Duration = Duration::from_secs(5);
/// Maximum time for the background tasks to end.
const TASKS_END: Duration = Duration::from_secs(2);
/// Open files reserved for everything other than workload connections.
const OWN_FILES: usize = 256;
/// How long new connections wait for the serving certificate after the start; as long as requests wait for a token.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(2);
/// Interval for updating metrics that are counted elsewhere; Prometheus usually scrapes every 15 s or more.
const METRICS: Duration = Duration::from_secs(1);

/// The daemon did not start, or ended unexpectedly.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The endpoint's address was lost.
    #[error("the gRPC endpoint's address cannot be read")]
    Address(#[source] std::io::Error),
    /// Something that is read, checked or opened before the start.
    #[error(transparent)]
    Preparation(#[from] PreparationError),
    /// The endpoint ended without being asked to.
    #[error(transparent)]
    Serve(#[from] grpc::server::ServeError),
    /// No serving certificate can be obtained.
    #[error(transparent)]
    Serving(#[from] grpc::serving::ServingError),
    /// The CA, its log or its tokens cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The store of revocation cannot be used.
    #[error("[revocation] store: {0}")]
    Revocation(#[from] StoreError),
    /// The system refuses signals.
    #[error("signals cannot be received")]
    Signal(#[source] std::io::Error),
    /// The operator's socket was taken after the preparation.
    #[error(transparent)]
    Socket(#[from] AddressError),
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, or its endpoint ends unexpectedly.
pub async fn run(mut config: Config) -> Result<(), DaemonError> {
    fit_connections(&mut config.listen.limits);
    let stop = CancellationToken::new();
    let reload_trigger = Arc::new(Notify::new());
    signals(stop.clone(), Arc::clone(&reload_trigger))?;
    let background = Background::default();
    let readiness = Readiness::new();
    let metrics = metrics::install();
    // First of all, so that the daemon is not ready before it listens, by when every other part has registered.
    let listening = readiness.required("gRPC endpoint");
    let Prepared { admin, authenticator, bundle, clusters, endpoint, status_page, revocations } =
        Preparation::run(&config).await.complete()?;
    serve_admin(admin, Hosts::new(&config.admin.hosts), &readiness, &metrics, &background);
    let clusters = clusters
        .zip(config.kubernetes.as_ref())
        .map(|(clusters, settings)| clusters::start(settings, clusters, &readiness, &background));
    let authenticator = Arc::new(match &clusters {
        Some(clusters) => clusters::authenticate(clusters, authenticator, &background),
        None => authenticator,
    });
    authenticator.start();
    let core = setup::core(&config, bundle, authenticator.denylist(), &revocations, &readiness, &background).await?;
    let leadership = clusters.as_ref().and_then(|clusters| clusters::elect(&config, clusters, &background));
    let leading = leadership.as_ref().map(|leadership| &leadership.here);
    let crls = revocation::start(
        &config,
        &core,
        &revocations,
        clusters.as_deref(),
        leading.cloned(),
        &readiness,
        &background,
    )?;
    if let Some((inputs, own)) = publication::Inputs::of(&config).zip(crls) {
        publication::start(inputs, Arc::clone(&core.ca), own, leading.cloned(), &readiness, &background);
    }
    let standing = clusters.as_ref().map(|clusters| {
        controllers::start(&config, clusters, &core.ca, leading, &readiness, &background);
        clusters::ClustersStatus::new(clusters, leadership.clone())
    });
    let parts = (authenticator, standing, endpoint, status_page);
    let served =
        serve(&config, &core, parts, &metrics, (&readiness, listening), &background, (stop, reload_trigger)).await;
    tracing::info!("draining");
    systemd::ending();
    background.end(TASKS_END).await;
    core.close(Instant::now() + TOKENS_END).await;
    tracing::info!("ended");
    served
}

/// Starts the generator of random numbers, which takes AWS-LC as long as everything else until the first certificate
/// (jitter entropy). Meanwhile the configuration is read and the token hosts start.
pub fn start_random() {
    // Without a thread the first user waits for it, and reports a failure.
    let _ = std::thread::Builder::new().name("random".to_owned()).spawn(|| aws_lc_rs::rand::fill(&mut [0]));
}

/// Raises the limit of open files and limits the number of connections accordingly: the log, the token hosts and the
/// admin address must always be able to open files.
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
    (authenticator, clusters, endpoint, status_page): (
        Arc<Authenticator>,
        Option<clusters::ClustersStatus>,
        Endpoint,
        StatusPage,
    ),
    metrics: &Metrics,
    (readiness, listening): (&Readiness, ReadinessHandle),
    background: &Background,
    (stop, reload_trigger): (CancellationToken, Arc<Notify>),
) -> Result<(), DaemonError> {
    let listen = &config.listen;
    let mut first_certificate = None;
    let Endpoint { listener, certificate } = endpoint;
    if !listen.plaintext {
        let trouble = grpc::serving::spawn(Arc::clone(&core.ca), &config.serving, certificate, background.ended())?;
        first_certificate = Some(trouble.clone());
        background.follow(trouble, readiness.required("serving certificate"), Clone::clone);
    }
    let at = listener.local_addr().map_err(DaemonError::Address)?;
    if let Some(path) = &config.admin.socket {
        let socket = operator::bind(path).map_err(|reason| AddressError::Socket { path: path.clone(), reason })?;
        background.spawn(operator::serve(socket, Arc::clone(&core.ca), background.ended()));
    }
    let take = snapshot::taker(core, config, readiness.watch(), clusters);
    serve_status_page(status_page, take, Hosts::new(&config.admin.hosts), background);
    let reloader = core.reloader(config, Arc::clone(&authenticator), reload_trigger, readiness);
    background.spawn(reloader.run(background.ended()));
    background.spawn_until_end(setup::watch_issuers(Arc::clone(&authenticator)));
    let (gather, metrics) = (snapshot::gatherer(core, readiness.watch(), listener.connections()), metrics.clone());
    background.every(METRICS, move || gather(&metrics));

    let ready = ready_flag(readiness.watch(), background);
    let service = CertificateService::new(Arc::clone(&core.ca), authenticator, &listen.limits);
    let routes = grpc::server::routes(service, listen, ready, stop.clone(), Arc::clone(&core.recent))?;
    if let Some(mut certificate) = first_certificate {
        // Meanwhile connections wait in the listen queue. A handshake without a certificate would fail, and gRPC
        // clients retry only after a second.
        tokio::select! {
            _ = tokio::time::timeout(FIRST_CERTIFICATE, certificate.wait_for(Option::is_none)) => {}
            () = stop.cancelled() => {}
        }
    }
    listening.set(None);
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

fn serve_admin(
    socket: Option<TcpListener>,
    hosts: Hosts,
    readiness: &Readiness,
    metrics: &Metrics,
    background: &Background,
) {
    let Some(socket) = socket else { return };
    tracing::info!(address = socket.local_addr().ok().map(tracing::field::display), "admin");
    background.spawn(admin::serve(socket, readiness.watch(), metrics.render(), hosts, background.ended()));
}

/// Serves the status page. An address that nobody asked for and that is taken is no reason not to start.
fn serve_status_page(page: StatusPage, take: status::Take, hosts: Hosts, background: &Background) {
    match page {
        StatusPage::Off => {}
        StatusPage::Open(socket) => {
            let address = socket.local_addr().unwrap_or(Admin::STATUS);
            tracing::info!(%address, page = %format_args!("http://{address}/"), "status page");
            background.spawn(status::serve(socket, take, hosts, background.ended()));
        }
        StatusPage::Unavailable(error) => {
            tracing::warn!(%error, "the status page is not served; set [admin] status_address, or status_page = false");
        }
    }
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
