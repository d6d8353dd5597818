//! One accepted connection: its bytes, who is at the other end, and its place in the limits.

mod outgoing;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
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
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// The length of HTTP/2's connection preface (RFC 9113, section 3.4): until then nothing else limits a silent client.
const PREFACE: usize = 24;

/// Who is at the other end of a connection; in the extensions of each of its requests.
#[derive(Clone)]
pub struct Peer {
    /// The address, IPv4 in its own form also where it came through an IPv6 socket.
    pub address: SocketAddr,
    /// The client's certificate chain, leaf first; its key is proven, nothing else. Empty when it sent none.
    pub certificates: Arc<[CertificateDer<'static>]>,
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
    /// A peer that has shown no certificate.
    #[must_use]
    pub fn new(address: SocketAddr, certificates: &[CertificateDer<'static>]) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { address, certificates: certificates.into() }
    }
}

/// Counts connections, in all and by address.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    most: usize,
    most_per_address: usize,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection is closed before its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The address has as many connections as one may have.
    #[error("too many connections from this address")]
    Address,
    /// There are as many connections as there may be.
    #[error("too many connections")]
    Total,
}

impl Connections {
    /// Limits connections.
    #[must_use]
    pub fn new(most: usize, most_per_address: usize) -> Self {
        Self { open: Arc::default(), most, most_per_address }
    }

    /// Counts a connection in, until the place is dropped.
    ///
    /// # Errors
    /// When there are too many.
    pub fn admit(&self, address: IpAddr) -> Result<Place, Refused> {
        let key = group(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.total >= self.most {
            return Err(Refused::Total);
        }
        let of_address = open.by_address.entry(key).or_default();
        if *of_address >= self.most_per_address {
            return Err(Refused::Address);
        }
        *of_address += 1;
        open.total += 1;
        metrics::gauge!("istio_hsm_ca_connections").increment(1);
        Ok(Place { open: Arc::clone(&self.open), key })
    }

    /// How many connections there are, handshakes included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A connection's place in the limits.
#[derive(Debug)]
pub struct Place {
    open: Arc<Mutex<Open>>,
    key: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("istio_hsm_ca_connections").decrement(1);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total = open.total.saturating_sub(1);
        if let Some(count) = open.by_address.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.by_address.remove(&self.key);
            }
        }
    }
}

/// What counts as one address: an IPv6 host has its whole /64 to choose from (RFC 4291, section 2.5.4).
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The bytes of a connection.
#[derive(Debug)]
pub enum Transport {
    /// Without TLS: loopback only.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection as HTTP/2 sees it.
pub struct Connection {
    transport: Transport,
    peer: Peer,
    /// Runs until the client has sent its preface.
    preface: Option<(Pin<Box<Sleep>>, usize)>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    outgoing: Outgoing,
    _place: Place,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    /// Takes a connection whose handshake is over. It fails when its first bytes take longer than `first_bytes`,
    /// and when `cut` is cancelled.
    #[must_use]
    pub fn new(transport: Transport, peer: Peer, place: Place, first_bytes: Duration, cut: CancellationToken) -> Self {
        let preface = Some((Box::pin(tokio::time::sleep(first_bytes)), 0));
        Self {
            transport,
            peer,
            preface,
            cut: Box::pin(cut.cancelled_owned()),
            outgoing: Outgoing::default(),
            _place: place,
        }
    }

    /// Watches the time until the preface has arrived.
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
        this.outgoing.poll_flush(cx, &mut this.transport)
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
        this.outgoing.poll_write(cx, &mut this.transport, slices)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_address_and_in_all() {
        let connections = Connections::new(3, 2);
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let first = connections.admit(v4).unwrap();
        let _second = connections.admit(mapped).unwrap();
        assert_eq!(connections.admit(v4).unwrap_err(), Refused::Address);
        drop(first);
        let _again = connections.admit(v4).unwrap();
        let _third = connections.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(connections.admit("192.0.2.9".parse().unwrap()).unwrap_err(), Refused::Total);
        assert_eq!(connections.len(), 3);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_is_forgotten() {
        let connections = Connections::new(10, 1);
        let place = connections.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(connections.admit("2001:db8::ffff:2".parse().unwrap()).unwrap_err(), Refused::Address);
        assert!(connections.admit("2001:db8:0:1::1".parse().unwrap()).is_ok());
        drop(place);
        assert!(connections.is_empty());
        assert!(connections.open.lock().unwrap().by_address.is_empty());
    }
}
