//! Accepts connections and takes them through TLS, within limits that hold before anybody is known.
//!
//! Handshakes run beside each other, so many at once and each within its time; one that is slow or wrong costs its own
//! connection only. Those beyond that wait in line, first come, first served: when a whole mesh comes at once, to do all
//! of them at once would let all of them come too late, and agents that are turned away have five tries in two seconds.

use std::{
    borrow::Cow,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Connections, Peer, Refused, Transport},
    settings::Settings,
};
use process::error::{Advice, Remedy};

/// Connections that are ready and wait for HTTP/2 to take them; it does so at once.
const READY: usize = 64;
/// Connections that the kernel holds for us until we accept them; it takes the smaller of this and net.core.somaxconn.
const BACKLOG: u32 = 4096;
/// How long nothing is accepted after the system refused (out of descriptors or memory), so that others can end.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a line tells of connections that were turned away: a flood of them must not become one of lines.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why the endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours, or needs a privilege.
    #[error("[listen] address: cannot listen on {address}: {reason}{advice}", advice = Advice(self))]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        reason: io::Error,
    },
    /// Plaintext on an address that others can reach.
    #[error("refusing to serve plaintext on {0}, which is not a loopback address{advice}", advice = Advice(self))]
    PlaintextOffLoopback(SocketAddr),
    /// TLS is wanted and there is no configuration for it.
    #[error("BUG: the endpoint on {0} has no TLS configuration, and plaintext is not configured")]
    NoTls(SocketAddr),
}

impl Remedy for ListenError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Bind { reason, .. } => Some(remedy("[listen] address", reason)),
            Self::PlaintextOffLoopback(_) => Some("remove [listen] plaintext, or listen on 127.0.0.1".into()),
            Self::NoTls(_) => None,
        }
    }
}

/// What the operator can do where an address cannot be listened on.
pub(crate) fn remedy(setting: &str, error: &io::Error) -> Cow<'static, str> {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop what listens there (a daemon that runs already?), or configure another {setting}").into()
        }
        io::ErrorKind::PermissionDenied => {
            "configure a port above 1023, or grant the daemon CAP_NET_BIND_SERVICE".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("configure an address of this machine as {setting}; 0.0.0.0 or [::] stands for all").into()
        }
        _ => format!("configure another {setting}").into(),
    }
}

/// A socket that listens, with what each of its connections goes through.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    gate: Gate,
}

#[derive(Clone)]
struct Gate {
    /// None serves plaintext.
    tls: Option<TlsAcceptor>,
    connections: Connections,
    handshakes: Arc<Semaphore>,
    timeout: Duration,
    wait: Duration,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("tls", &self.tls.is_some()).field("connections", &self.connections).finish()
    }
}

impl Listener {
    /// Binds the configured address. `tls` is needed unless the settings ask for plaintext.
    ///
    /// # Errors
    /// When the address cannot be bound, or plaintext is asked for on an address that is not loopback.
    pub async fn bind(settings: &Settings, tls: Option<Arc<ServerConfig>>) -> Result<Self, ListenError> {
        let address = settings.address;
        let tls = match (settings.plaintext, tls) {
            (true, _) if !address.ip().to_canonical().is_loopback() => {
                return Err(ListenError::PlaintextOffLoopback(address));
            }
            (true, _) => None,
            (false, Some(config)) => Some(TlsAcceptor::from(config)),
            (false, None) => return Err(ListenError::NoTls(address)),
        };
        let socket = listen(address).map_err(|reason| ListenError::Bind { address, reason })?;
        let limits = &settings.limits;
        let gate = Gate {
            tls,
            connections: Connections::new(limits.connections, limits.connections_per_address),
            handshakes: Arc::new(Semaphore::new(limits.handshakes.min(Semaphore::MAX_PERMITS))),
            timeout: limits.handshake_timeout,
            wait: limits.handshake_wait,
        };
        Ok(Self { socket, gate })
    }

    /// Where it listens; tells the port when the configured one is 0.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The count of connections, for metrics.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.gate.connections.clone()
    }

    /// Starts to accept, until `stop` is cancelled: then the socket closes, and handshakes under way end.
    /// `cut` ends the connections that were handed out.
    pub fn incoming(
        self,
        stop: CancellationToken,
        cut: CancellationToken,
    ) -> impl Stream<Item = Result<Connection, Infallible>> + use<> {
        let (ready, connections) = mpsc::channel(READY);
        tokio::spawn(self.accept(ready, stop, cut));
        ReceiverStream::new(connections)
    }

    async fn accept(
        self,
        ready: mpsc::Sender<Result<Connection, Infallible>>,
        stop: CancellationToken,
        cut: CancellationToken,
    ) {
        let mut handshakes = JoinSet::new();
        let mut turned_away = TurnedAway::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = ready.closed() => break,
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => match self.gate.enter(stream, address, cut.clone()) {
                    Ok(handshake) => {
                        let ready = ready.clone();
                        handshakes.spawn(async move {
                            if let Some(connection) = handshake.await {
                                // The server has ended when nobody receives; the connection then ends as well.
                                let _ = ready.send(Ok(connection)).await;
                            }
                        });
                    }
                    Err(refused) => turned_away.note(address, refused),
                },
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, kind = "accept", "cannot accept connections; will retry");
                    tokio::select! { () = stop.cancelled() => break, () = tokio::time::sleep(PAUSE) => {} }
                }
            }
        }
    }
}

impl Gate {
    /// Counts a connection in and returns its handshake.
    fn enter(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        cut: CancellationToken,
    ) -> Result<impl Future<Output = Option<Connection>> + use<>, Refused> {
        let place = self.connections.admit(address.ip())?;
        let gate = self.clone();
        Ok(async move {
            // Replies are small and complete: to wait for more would only delay them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(peer = %address, %error, "cannot set TCP_NODELAY on a connection");
            }
            let (transport, peer) = match &gate.tls {
                None => (Transport::Plain(stream), Peer::new(address, &[])),
                Some(tls) => match gate.handshake(tls, stream).await {
                    Ok(stream) => {
                        let chain: &[CertificateDer<'static>] =
                            stream.get_ref().1.peer_certificates().unwrap_or_default();
                        let peer = Peer::new(address, chain);
                        (Transport::Tls(Box::new(stream)), peer)
                    }
                    Err(failure) => {
                        metrics::counter!("istio_hsm_ca_handshakes_failed_total", "reason" => failure.label())
                            .increment(1);
                        failure.log(address);
                        return None;
                    }
                },
            };
            Some(Connection::new(transport, peer, place, gate.timeout, cut))
        })
    }
}

/// Why a connection got no TLS.
#[derive(Debug, thiserror::Error)]
enum NoTls {
    #[error("the client closed the connection without sending anything")]
    Gone,
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    #[error("the TLS handshake took too long")]
    Timeout,
    #[error("too many concurrent handshakes; the connection was not served in time")]
    Turn,
}

impl NoTls {
    fn label(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Handshake(_) => "error",
            Self::Timeout => "timeout",
            Self::Turn => "turn",
        }
    }

    fn log(&self, peer: SocketAddr) {
        match self {
            // What probes of load balancers do.
            Self::Gone => tracing::debug!(%peer, "a client closed its connection without sending anything"),
            Self::Handshake(_) | Self::Timeout | Self::Turn => {
                tracing::info!(%peer, kind = "tls_handshake", reason = %self, "a client got no TLS connection");
            }
        }
    }
}

impl Gate {
    /// Waits for the client's first bytes, then for its turn, then does the handshake. Who says nothing takes no turn.
    async fn handshake(&self, tls: &TlsAcceptor, stream: TcpStream) -> Result<TlsStream<TcpStream>, NoTls> {
        let first = timeout(self.timeout, stream.peek(&mut [0])).await.map_err(|_| NoTls::Timeout)?;
        if first.map_err(NoTls::Handshake)? == 0 {
            return Err(NoTls::Gone);
        }
        let turn = timeout(self.wait, self.handshakes.acquire()).await.map_err(|_| NoTls::Turn)?;
        // Never closed; were it, nobody would have to wait.
        let _turn = turn.ok();
        let accepted = timeout(self.timeout, tls.accept(stream)).await.map_err(|_| NoTls::Timeout)?;
        accepted.map_err(NoTls::Handshake)
    }
}

/// Listens, with room for many that come at once.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As tokio's own bind does: a restart need not wait for the connections of the last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether an error of accept(2) belongs to the connection that was about to be accepted, not to the socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Connections turned away since the last line about them.
#[derive(Default)]
struct TurnedAway {
    count: u64,
    told: Option<Instant>,
}

impl TurnedAway {
    fn note(&mut self, peer: SocketAddr, reason: Refused) {
        metrics::counter!("istio_hsm_ca_connections_refused_total").increment(1);
        self.count += 1;
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            tracing::warn!(%peer, %reason, count = self.count, "connections were rejected");
            *self = Self { count: 0, told: Some(Instant::now()) };
        }
    }
}
