//! An endpoint with a service that returns what it saw, and clients for it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use istio_api::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_client::IstioCertificateServiceClient,
    istio_certificate_service_server::IstioCertificateService,
};
use istio_hsm_ca::grpc::{
    Settings,
    connection::Peer,
    listener::Listener,
    server::{Drained, ServeError, routes, serve},
    tls::{ServingCertificate, server_config},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{net::TcpStream, sync::watch, task::JoinHandle};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Uri},
};

pub type Client = IstioCertificateServiceClient<Channel>;

/// Timeout of all operations.
pub const SOON: Duration = Duration::from_secs(20);

/// Returns the client's address and number of certificates; the request `sleep:MS` makes it slow.
pub struct Echo;

#[tonic::async_trait]
impl IstioCertificateService for Echo {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        if let Some(millis) = request.get_ref().csr.strip_prefix("sleep:") {
            tokio::time::sleep(Duration::from_millis(millis.parse().unwrap())).await;
        }
        let cert_chain = vec![peer.address.ip().to_string(), peer.certificates.len().to_string()];
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A CA for one test.
pub struct Pki {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A leaf for a DNS name: certificate and key in PEM.
    pub fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    pub fn leaf_der(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        use rustls_pki_types::pem::PemObject;
        let (certificate, key) = self.leaf(name);
        (
            CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap(),
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
    }
}

/// A running endpoint; stops when dropped.
pub struct Running {
    pub address: SocketAddr,
    pub pki: Pki,
    pub ready: watch::Sender<bool>,
    pub stop: CancellationToken,
    pub task: Option<JoinHandle<Result<Drained, ServeError>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The default settings with a free port on loopback.
pub fn settings() -> Settings {
    Settings { address: "127.0.0.1:0".parse().unwrap(), ..Settings::default() }
}

pub async fn start(settings: Settings) -> Running {
    let pki = Pki::new();
    let (leaf, key) = pki.leaf_der("localhost");
    let certificate = ServingCertificate::absent();
    certificate.replace(Arc::new(CertifiedKey::from_der(vec![leaf], key, &aws_lc_rs::default_provider()).unwrap()));
    let config = server_config(&settings.tls, certificate, verifier(&pki)).unwrap();
    start_with(settings, pki, Some(config)).await
}

pub async fn start_with(settings: Settings, pki: Pki, tls: Option<Arc<rustls::ServerConfig>>) -> Running {
    let listener = Listener::bind(&settings, tls).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ready, watched) = watch::channel(false);
    let stop = CancellationToken::new();
    let routes = routes(Echo, &settings, watched, stop.clone(), Arc::default()).unwrap();
    let token = stop.clone();
    let task = tokio::spawn(async move { serve(listener, routes, &settings, token).await });
    Running { address, pki, ready, stop, task: Some(task) }
}

pub fn verifier(pki: &Pki) -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)), Arc::new(aws_lc_rs::default_provider()))
        .allow_unauthenticated()
        .build()
        .unwrap()
}

fn roots(pki: &Pki) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(pki.root()).unwrap();
    roots
}

/// Configuration of a client that trusts the endpoint's CA, with a given provider and TLS versions.
pub fn client_config(
    pki: &Pki,
    provider: CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots(pki))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

pub fn default_client_config(pki: &Pki) -> Arc<ClientConfig> {
    client_config(pki, aws_lc_rs::default_provider(), &[&rustls::version::TLS13])
}

pub async fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    tokio::time::timeout(SOON, TlsConnector::from(config).connect(name, stream)).await.expect("the handshake hangs")
}

pub async fn channel(running: &Running) -> Result<Channel, tonic::transport::Error> {
    channel_with(running.address, default_client_config(&running.pki)).await
}

pub async fn channel_with(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://localhost")
        .timeout(SOON)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let config = Arc::clone(&config);
            async move { tls(address, config).await.map(TokioIo::new) }
        }))
        .await
}

pub fn ask(csr: &str) -> IstioCertificateRequest {
    IstioCertificateRequest { csr: csr.to_owned(), ..IstioCertificateRequest::default() }
}
