//! What attackers connect with.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use testkit::daemon::{Daemon, SERVER};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// An attacker's address; several count as several.
pub fn address(number: u8) -> IpAddr {
    [127, 0, 66, number].into()
}

pub async fn tcp(daemon: &Daemon, from: IpAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(daemon.address).await
}

/// A client's TLS, with a certificate of so many bytes if asked for.
pub fn config(daemon: &Daemon, certificate_bytes: Option<usize>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(daemon.roots.as_bytes()).map(Result::unwrap));
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    if let Some(bytes) = certificate_bytes {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // Netscape's comment: nobody reads it.
        let comment = CustomExtension::from_oid_content(&[2, 16, 840, 1, 113_730, 1, 13], vec![b'x'; bytes]);
        params.custom_extensions.push(comment);
        let certificate = params.self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = CertifiedKey::from_der(vec![certificate.der().clone()], key, &default_provider()).unwrap();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    }
    Arc::new(config)
}

pub async fn tls(daemon: &Daemon, from: IpAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = tcp(daemon, from).await?;
    let name = ServerName::try_from(SERVER).unwrap();
    let handshake = TlsConnector::from(config).connect(name, stream);
    tokio::time::timeout(Duration::from_secs(30), handshake).await?
}

/// The first flight of a client.
pub fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from(SERVER).unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::clone(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// Memory of the daemon in KiB: `VmRSS` or `VmHWM`.
pub fn kib(daemon: &Daemon, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}
