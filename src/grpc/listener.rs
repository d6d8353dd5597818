//! Accepts connections and performs the TLS handshakes, within limits that apply before authentication.
//!
//! A connection first waits for its client's whole ClientHello, which costs next to nothing and has a deadline. It then
//! waits for its turn, in a fair order over the addresses: when a whole mesh comes at once, to do all handshakes at once
//! would let all of them come too late, and agents that are turned away have five tries in two seconds. The turn lasts
//! while the daemon computes its answer and never while it waits for the client, so that nobody can hold one.

use std::{
    borrow::Cow,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use rustls::{PeerIncompatible, ServerConfig, server::Acceptor};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Peer, Socket, Transport},
    settings::{Limits, Settings},
    standing::{Connections, Standing},
};
use crate::limits::{Full, Turns};
use process::error::{Advice, Remedy};

/// Maximum number of established connections waiting for HTTP/2, which accepts them at once.
const READY: usize = 64;
/// Maximum number of connections queued by the kernel; the smaller of this and net.core.somaxconn applies.
const BACKLOG: u32 = 4096;
/// Pause in accepting after the system ran out of descriptors or memory, so that connections can end.
const PAUSE: Duration = Duration::from_millis(100);
/// How much TLS holds for a client that does not read, in bytes: two records.
const TLS_BUFFER: usize = 32 * 1024;

/// The endpoint cannot listen.
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
    /// TLS is required but not configured.
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
    tls: Option<Arc<ServerConfig>>,
    connections: Connections,
    handshakes: Arc<Turns>,
    limits: Arc<Limits>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("tls", &self.tls.is_some()).field("connections", &self.connections).finish()
    }
}

impl Listener {
    /// Binds the configured address. `tls` is required unless the settings enable plaintext.
    ///
    /// # Errors
    /// If the address cannot be bound, or plaintext is enabled on an address that is not loopback.
    pub async fn bind(settings: &Settings, tls: Option<Arc<ServerConfig>>) -> Result<Self, ListenError> {
        let address = settings.address;
        let tls = match (settings.plaintext, tls) {
            (true, _) if !address.ip().to_canonical().is_loopback() => {
                return Err(ListenError::PlaintextOffLoopback(address));
            }
            (true, _) => None,
            (false, Some(config)) => Some(config),
            (false, None) => return Err(ListenError::NoTls(address)),
        };
        let socket = listen(address).map_err(|reason| ListenError::Bind { address, reason })?;
        let limits = Arc::new(settings.limits.clone());
        let (connections, handshakes) = (Connections::new(&limits), Turns::new(limits.handshakes));
        let gate = Gate { tls, connections, handshakes, limits };
        Ok(Self { socket, gate })
    }

    /// Its address, with the actual port if the configured one is 0.
    ///
    /// # Errors
    /// If the system does not return it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The connection counters, for metrics.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.gate.connections.clone()
    }

    /// Accepts connections until `stop` is cancelled: then the socket is closed, and handshakes in progress end. `cut`
    /// closes the connections that were returned.
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
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = ready.closed() => break,
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => match self.gate.enter(stream, address, &cut) {
                    Ok(handshake) => {
                        let ready = ready.clone();
                        handshakes.spawn(async move {
                            if let Some(connection) = handshake.await {
                                // Without a receiver the server has ended, and the connection ends, too.
                                let _ = ready.send(Ok(connection)).await;
                            }
                        });
                    }
                    Err(reason) => {
                        metrics::counter!("istio_hsm_ca_connections_refused_total").increment(1);
                        tracing::warn!(peer = %address, %reason, kind = "connection", "a connection was rejected");
                    }
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
    /// Counts a connection in and returns its handshake. `cut` ends every connection.
    fn enter(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        cut: &CancellationToken,
    ) -> Result<impl Future<Output = Option<Connection>> + use<>, Full> {
        let standing = self.connections.admit(address.ip(), cut)?;
        let gate = self.clone();
        Ok(async move {
            // Replies are small and complete: Nagle's algorithm would only delay them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(peer = %address, %error, "cannot set TCP_NODELAY on a connection");
            }
            let Some(tls) = &gate.tls else {
                standing.open().await;
                let transport = Transport::Plain(Socket::new(stream, Arc::clone(&standing), 0));
                return Some(Connection::new(transport, Peer::new(address, &[], standing), &gate.limits));
            };
            let opened = tokio::select! {
                biased;
                () = standing.cut().cancelled() => Err(NoTls::Dropped),
                opened = gate.handshake(tls, stream, &standing) => opened,
            };
            match opened {
                Ok(mut stream) => {
                    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                    let chain: &[CertificateDer<'static>] = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let peer = Peer::new(address, chain, standing);
                    Some(Connection::new(Transport::Tls(Box::new(stream)), peer, &gate.limits))
                }
                Err(failure) => {
                    metrics::counter!("istio_hsm_ca_handshakes_failed_total", "reason" => failure.label()).increment(1);
                    failure.log(address);
                    None
                }
            }
        })
    }
}

/// Why a connection has no TLS.
#[derive(Debug, thiserror::Error)]
enum NoTls {
    #[error("the connection was dropped for another one, or at the end of the drain")]
    Dropped,
    #[error("the client closed the connection without sending anything")]
    Gone,
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    #[error("the client supports none of the accepted TLS versions")]
    Version,
    #[error("the TLS handshake took too long")]
    Timeout,
    #[error("too many concurrent handshakes; the connection was not served in time")]
    Turn,
}

impl NoTls {
    fn label(&self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Gone => "gone",
            Self::Handshake(_) => "error",
            Self::Version => "version",
            Self::Timeout => "timeout",
            Self::Turn => "turn",
        }
    }

    fn log(&self, peer: SocketAddr) {
        match self {
            // What probes of load balancers do.
            Self::Gone => tracing::debug!(%peer, "a client closed its connection without sending anything"),
            Self::Dropped => tracing::debug!(%peer, reason = %self, "a client got no TLS connection"),
            Self::Version => tracing::warn!(
                %peer,
                kind = "tls_version",
                "a client without TLS 1.3 was rejected; agents under COMPLIANCE_POLICY=fips-140-2 have TLS 1.2 only: set \
                 [listen.tls] allow_tls12 = true to accept them"
            ),
            Self::Handshake(_) | Self::Timeout | Self::Turn => {
                tracing::info!(%peer, kind = "tls_handshake", reason = %self, "a client got no TLS connection");
            }
        }
    }
}

impl Gate {
    /// Waits for the ClientHello, then for its turn, and does the handshake.
    async fn handshake(
        &self,
        config: &Arc<ServerConfig>,
        stream: TcpStream,
        standing: &Arc<Standing>,
    ) -> Result<TlsStream<Socket>, NoTls> {
        let deadline = Instant::now() + self.limits.handshake_timeout;
        // Who says nothing costs no memory for TLS.
        match timeout_at(deadline.into(), stream.peek(&mut [0])).await {
            Ok(Ok(0)) => return Err(NoTls::Gone),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(NoTls::Handshake(error)),
            Err(_) => return Err(NoTls::Timeout),
        }
        Box::pin(async move {
            let socket = Socket::new(stream, Arc::clone(standing), self.limits.handshake_bytes);
            let hello = LazyConfigAcceptor::new(Acceptor::default(), socket);
            let hello = timeout_at(deadline.into(), hello).await.map_err(|_| NoTls::Timeout)?;
            let hello = hello.map_err(NoTls::of)?;
            let busy = standing.busy();
            let turn = async {
                standing.open().await;
                self.handshakes.take(standing.client()).await
            };
            let turn = timeout(self.limits.handshake_wait, turn).await.map_err(|_| NoTls::Turn)?;
            let mut handshake = pin!(hello.into_stream(Arc::clone(config)));
            // One poll computes and sends our part; what comes later waits for the client.
            let answered = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
            drop((turn, busy));
            let ended = match answered {
                Poll::Ready(ended) => ended,
                Poll::Pending => timeout(self.limits.handshake_timeout, handshake).await.map_err(|_| NoTls::Timeout)?,
            };
            ended.map_err(NoTls::of)
        })
        .await
    }
}

impl NoTls {
    fn of(error: io::Error) -> Self {
        use PeerIncompatible::{SupportedVersionsExtensionRequired, Tls12NotOfferedOrEnabled};
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(rustls::Error::PeerIncompatible(SupportedVersionsExtensionRequired | Tls12NotOfferedOrEnabled)) => {
                Self::Version
            }
            _ => Self::Handshake(error),
        }
    }
}

/// Listens, with a backlog for many simultaneous connections.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Like tokio's own bind: a restart need not wait for the connections of the last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether an error of accept(2) concerns the connection rather than the socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
