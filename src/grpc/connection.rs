//! One accepted connection: its bytes, and who is at the other end.

mod outgoing;

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use outgoing::Outgoing;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::{settings::Limits, standing::Standing};

/// The length of HTTP/2's connection preface (RFC 9113, section 3.4): until then nothing else limits a silent client.
const PREFACE: usize = 24;
/// After how many bytes of an unauthenticated connection others have their turn. The smallest frames are 9 bytes long, and each costs
/// about a microsecond.
const BURST: usize = 4096;
/// Why an unauthenticated connection ends.
const TOO_MUCH: &str = "the client sent too much before a certificate was issued to it";

/// The peer of a connection, available in the extensions of each request.
#[derive(Clone)]
pub struct Peer {
    /// The address; IPv4-mapped addresses are converted to IPv4.
    pub address: SocketAddr,
    /// The client's certificate chain, leaf first; only possession of its key is verified. Empty without a certificate.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// What the connection counts for in the limits.
    pub standing: Arc<Standing>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("address", &self.address)
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// A peer and the certificates that it has shown.
    #[must_use]
    pub fn new(address: SocketAddr, certificates: &[CertificateDer<'static>], standing: Arc<Standing>) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { address, certificates: certificates.into(), standing }
    }
}

/// A socket whose client may send only so many bytes while it is unauthenticated.
///
/// Whatever it sends, frames that HTTP/2 answers or ignores included, so has an end, and what its handshake may leave in
/// memory a bound.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    standing: Arc<Standing>,
    room: usize,
    /// How much an unauthenticated connection has read since others had their turn.
    burst: usize,
}

impl Socket {
    /// Takes a socket; `room` is how many bytes its client may send.
    #[must_use]
    pub fn new(stream: TcpStream, standing: Arc<Standing>, room: usize) -> Self {
        Self { stream, standing, room, burst: 0 }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.standing.is_authenticated() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        if this.burst >= BURST {
            this.burst = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        this.burst += read;
        match this.room.checked_sub(read) {
            Some(room) => this.room = room,
            None => return Poll::Ready(Err(io::Error::new(io::ErrorKind::QuotaExceeded, TOO_MUCH))),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The byte stream of a connection.
#[derive(Debug)]
pub enum Transport {
    /// Without TLS: loopback only.
    Plain(Socket),
    /// Within TLS.
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    /// How many more bytes the client may send before a certificate is issued to it.
    fn set_room(&mut self, room: usize) {
        match self {
            Self::Plain(socket) => socket.room = room,
            Self::Tls(stream) => stream.get_mut().0.room = room,
        }
    }
}

/// A connection for HTTP/2.
pub struct Connection {
    transport: Transport,
    peer: Peer,
    /// Timeout of the client's preface.
    preface: Option<(Pin<Box<Sleep>>, usize)>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    outgoing: Outgoing,
    write_timeout: Duration,
    /// Runs while the client does not take what was written to it.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    /// Takes a connection whose handshake is over, with the limits for what its client does next. It also fails when
    /// its standing is cut.
    #[must_use]
    pub fn new(mut transport: Transport, peer: Peer, limits: &Limits) -> Self {
        transport.set_room(limits.unauthenticated_bytes);
        let preface = Some((Box::pin(tokio::time::sleep(limits.handshake_timeout)), 0));
        Self {
            transport,
            preface,
            cut: Box::pin(peer.standing.cut().clone().cancelled_owned()),
            outgoing: Outgoing::default(),
            write_timeout: limits.write_timeout,
            stalled: None,
            peer,
        }
    }

    /// Watches the time that the client takes to accept what was written.
    fn check_writes(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.outgoing.is_blocked() {
            self.stalled = None;
            return Ok(());
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.write_timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Enforces the timeout until the preface has arrived.
    fn check_preface(&mut self, context: &mut Context<'_>, read: usize) -> io::Result<()> {
        let Some((sleep, so_far)) = &mut self.preface else { return Ok(()) };
        *so_far += read;
        if *so_far >= PREFACE {
            self.preface = None;
        } else if sleep.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        this.outgoing.poll_due(cx, &mut this.transport)?;
        this.check_writes(cx)?;
        let before = buffer.filled().len();
        let polled = match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        match this.check_preface(cx, buffer.filled().len() - before) {
            Ok(()) => polled,
            Err(late) => Poll::Ready(Err(late)),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = this.outgoing.poll_flush(cx, &mut this.transport);
        this.check_writes(cx)?;
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.outgoing.poll_drain(cx, &mut this.transport))?;
        Pin::new(&mut this.transport).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = this.outgoing.poll_write(cx, &mut this.transport, slices);
        this.check_writes(cx)?;
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
