//! TLS of the endpoint: versions, key exchange, and the certificate, which can change while serving.
//!
//! `auth` checks the client's certificate at each request; the handshake only verifies that the client holds its key.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::settings::Tls;

/// The largest session that is put into a ticket, in bytes. It has its client's chain, 1 to 3 KiB for a workload's, and
/// must fit the client's next ClientHello.
const SESSION_MAX: usize = 6 * 1024;

/// The endpoint's certificate and key, replaced by renewals; clones share it.
#[derive(Clone, Default)]
pub struct ServingCertificate(Arc<ArcSwapOption<CertifiedKey>>);

impl ServingCertificate {
    /// No certificate yet: handshakes fail until [`replace`](Self::replace) is called.
    #[must_use]
    pub fn absent() -> Self {
        Self::default()
    }

    /// Uses another certificate for new handshakes; existing connections are not affected.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        self.0.store(Some(certificate));
    }

    /// The certificate for new handshakes, if any.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCertificate").field("present", &self.0.load().is_some()).finish()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

/// The server's TLS configuration: 1.3 (1.2 only if configured), HTTP/2, hybrid post-quantum key exchange preferred.
///
/// Sessions are kept by the client, encrypted in its ticket with keys that only this process has and that change every six
/// hours; here no memory is used for them. A ticket has the client's chain, so a resumed connection speaks for the same
/// client as the first; whether that chain is still good is asked at each request. There is no early data: it could be
/// replayed.
///
/// # Errors
/// If the library rejects its own provider, which would be an error in the build.
pub fn server_config(
    settings: &Tls,
    certificate: ServingCertificate,
    client_verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions: &[_] = if settings.allow_tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(client_verifier)
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Arc::new(SmallTickets(LazyLock::new(|| aws_lc_rs::Ticketer::new().ok())));
    // One ticket a connection: agents and ztunnel keep one connection to the CA.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Tickets for sessions of limited size. A client with a longer chain does a whole handshake each time.
///
/// Their keys are made for the first handshake: the generator of random numbers is still starting when the endpoint is
/// prepared. Without it, which AWS-LC rules out, there are no tickets.
#[derive(Debug)]
struct SmallTickets(LazyLock<Option<Arc<dyn ProducesTickets>>>);

impl SmallTickets {
    fn ticketer(&self) -> Option<&dyn ProducesTickets> {
        self.0.as_deref()
    }
}

impl ProducesTickets for SmallTickets {
    fn enabled(&self) -> bool {
        self.ticketer().is_some_and(ProducesTickets::enabled)
    }

    fn lifetime(&self) -> u32 {
        self.ticketer().map_or(0, ProducesTickets::lifetime)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        if session.len() > SESSION_MAX {
            return None;
        }
        self.ticketer()?.encrypt(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.ticketer()?.decrypt(ticket)
    }
}
