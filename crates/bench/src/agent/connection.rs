//! A TLS connection to the CA and the request that agents send on it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use istio_api::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};

/// An agent could not connect.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The client's certificate or key is not PEM, or they do not match.
    #[error("the client certificate or its key cannot be used: {0}")]
    ClientCertificate(String),
    /// The connection or the TLS handshake failed.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] tonic::transport::Error),
    /// The root file contains no usable trust anchor.
    #[error("the root file cannot be used: {0}")]
    Roots(String),
    /// The server's name is not a DNS name or an IP address.
    #[error("{0:?} is not a DNS name or an IP address")]
    ServerName(String),
    /// The TLS library rejects the configuration.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// TLS settings of an agent: trusted roots, expected server name, client certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    nodelay: bool,
}

impl Tls {
    /// TLS 1.3 or 1.2 over HTTP/2; `client` is a PEM certificate chain, leaf first, and its PEM key.
    ///
    /// # Errors
    /// If the roots, the name or the client certificate cannot be used.
    pub fn new(roots: &[u8], server_name: &str, client: Option<(&[u8], &[u8])>) -> Result<Self, AgentError> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            let root = root.map_err(|error| AgentError::Roots(error.to_string()))?;
            store.add(root).map_err(|error| AgentError::Roots(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(AgentError::Roots("it holds no certificate".into()));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(AgentError::Tls)?
            .with_root_certificates(store);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let unusable = |error: &dyn std::fmt::Display| AgentError::ClientCertificate(error.to_string());
                let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
                    .collect::<Result<_, _>>()
                    .map_err(|error| unusable(&error))?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| unusable(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Each connection must prove its client certificate again; resumption would hide that cost from a measurement.
        config.resumption = rustls::client::Resumption::disabled();
        let server_name =
            ServerName::try_from(server_name.to_owned()).map_err(|_| AgentError::ServerName(server_name.to_owned()))?;
        Ok(Self { config: Arc::new(config), server_name, nodelay: true })
    }

    /// The same for a client that resumes the session of its last connection (RFC 8446, section 2.2).
    #[must_use]
    pub fn resuming(mut self) -> Self {
        Arc::make_mut(&mut self.config).resumption = rustls::client::Resumption::in_memory_sessions(1);
        self
    }

    /// The same for a client that does not set TCP_NODELAY.
    #[must_use]
    pub fn delaying(self) -> Self {
        Self { nodelay: false, ..self }
    }
}

/// Opens one connection.
///
/// # Errors
/// If the connection or the TLS handshake fails.
pub async fn connect(address: SocketAddr, tls: &Tls) -> Result<Channel, AgentError> {
    connect_from(None, address, tls).await
}

/// Opens one connection from a local address; `None` leaves the choice to the system.
///
/// # Errors
/// If the connection or the TLS handshake fails.
pub async fn connect_from(source: Option<IpAddr>, address: SocketAddr, tls: &Tls) -> Result<Channel, AgentError> {
    let Tls { config, server_name, nodelay } = tls.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, name) = (TlsConnector::from(Arc::clone(&config)), server_name.clone());
        async move {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(source) = source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            let stream = socket.connect(address).await?;
            stream.set_nodelay(nodelay)?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    // The scheme is only part of the origin here; the connector does TLS.
    let failed = |error| AgentError::Connect(address, error);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
    endpoint.connect_with_connector(connector).await.map_err(failed)
}

/// The CA's reply: the leaf, its issuers, one per element, and the roots last.
pub type Reply = Vec<String>;

/// Requests a certificate like istio-agent: JWT if there is one, cluster, and an empty `CertSigner` (Istio:
/// security/pkg/nodeagent/caclient/providers/citadel/client.go).
///
/// # Errors
/// The CA's status, or `InvalidArgument` if the JWT or cluster is not valid in a header.
pub async fn create_certificate(
    channel: Channel,
    token: Option<&str>,
    cluster: &str,
    csr: String,
    validity_seconds: i64,
) -> Result<Reply, Status> {
    let signer = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(String::new())) };
    let metadata = prost_types::Struct { fields: [("CertSigner".to_owned(), signer)].into() };
    let mut request =
        Request::new(IstioCertificateRequest { csr, validity_duration: validity_seconds, metadata: Some(metadata) });
    let header = |text: &str| {
        MetadataValue::try_from(text).map_err(|_| Status::invalid_argument("the token or cluster is not header text"))
    };
    if let Some(token) = token {
        let mut value = header(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    request.metadata_mut().insert("clusterid", header(cluster)?);
    let mut client = IstioCertificateServiceClient::new(channel);
    Ok(client.create_certificate(request).await?.into_inner().cert_chain)
}
