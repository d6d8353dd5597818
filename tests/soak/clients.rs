//! Istio agents, each with its own identity, key and JWT, on separate connections, retrying after errors. Every
//! certificate is verified when it arrives and recorded.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bench::agent::{KeyKind, Tls, TokenIssuer, WorkloadKey, connect, create_certificate};
use der::{Decode, Encode};
use pki::pem;
use process::clock;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use tokio::task::JoinHandle;
use x509_cert::{Certificate, request::CertReq};

use testkit::daemon::{ISSUER, SERVER, Site, mint};

/// Timeout of one request: a killed daemon may not close the connection.
const ANSWER: Duration = Duration::from_secs(20);
/// Pause after an error.
const PAUSE: Duration = Duration::from_millis(50);
/// How often an agent gets a new JWT; they are valid for an hour.
const NEW_TOKEN: Duration = Duration::from_secs(600);

/// What all clients together received.
#[derive(Default)]
pub struct Held {
    /// The TBSCertificate of each leaf.
    signed_parts: Mutex<Vec<Vec<u8>>>,
    /// The newest leaves, PEM; the oldest are dropped.
    sample: Mutex<Vec<String>>,
    count: AtomicU64,
    refusals: Mutex<BTreeMap<String, u64>>,
}

impl Held {
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// SHA-256 of the TBSCertificate of each leaf, in order.
    pub fn hashes(&self) -> Vec<Vec<u8>> {
        let mut hashes = self.signed_parts.lock().unwrap().clone();
        hashes.sort_unstable();
        hashes
    }

    /// Some leaves, PEM.
    pub fn sample(&self) -> Vec<String> {
        self.sample.lock().unwrap().clone()
    }

    /// Number of errors by gRPC code, or of failed connections.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.refusals.lock().unwrap().clone()
    }

    fn take(&self, leaf: &str, certificate: &Certificate) {
        const SAMPLE_EVERY: u64 = 97;
        let hash = hash(&certificate.tbs_certificate().to_der().unwrap());
        self.signed_parts.lock().unwrap().push(hash);
        if self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY) {
            self.sample.lock().unwrap().push(leaf.to_owned());
        }
    }

    fn refused(&self, why: String) {
        *self.refusals.lock().unwrap().entry(why).or_default() += 1;
    }
}

/// SHA-256.
pub fn hash(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

/// What all agents of a site share.
pub struct Mesh {
    tls: Tls,
    issuer: TokenIssuer,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Mesh {
    pub fn new(site: &Site) -> Self {
        let roots = site.roots();
        let ders = pem::blocks(roots.as_bytes()).unwrap();
        let anchor = |der: &[u8]| {
            let der = CertificateDer::from(der.to_vec());
            webpki::anchor_from_trusted_cert(&der).unwrap().to_owned()
        };
        Self {
            tls: Tls::new(roots.as_bytes(), SERVER, None).unwrap(),
            issuer: site.issuer_as(ISSUER, "istio-ca"),
            anchors: ders.iter().map(|block| anchor(&block.der)).collect(),
        }
    }

    /// Verifies a reply with webpki, an independent implementation, and that it is for this key and identity.
    fn judge(&self, agent: &Agent, reply: &[String]) -> Result<Certificate, String> {
        let [leaf, between @ .., _roots] = reply else { return Err(format!("{} elements", reply.len())) };
        let der = |text: &String| {
            let blocks = pem::blocks(text.as_bytes()).map_err(|error| error.to_string())?;
            let first = blocks.first().ok_or("no certificate")?;
            Ok::<_, String>(CertificateDer::from(first.der.to_vec()))
        };
        let leaf = der(leaf)?;
        let between = between.iter().map(der).collect::<Result<Vec<_>, _>>()?;
        let entity = webpki::EndEntityCert::try_from(&leaf).map_err(|error| error.to_string())?;
        let now = UnixTime::since_unix_epoch(clock::now().duration_since(std::time::UNIX_EPOCH).unwrap());
        let (usage, algorithms) = (webpki::KeyUsage::client_auth(), webpki::ALL_VERIFICATION_ALGS);
        entity
            .verify_for_usage(algorithms, &self.anchors, &between, now, usage, None, None)
            .map_err(|error| format!("webpki: {error}"))?;
        if entity.valid_uri_names().collect::<Vec<_>>() != [agent.identity.as_str()] {
            return Err(format!("it is not for {}", agent.identity));
        }
        let certificate = Certificate::from_der(&leaf).map_err(|error| error.to_string())?;
        if certificate.tbs_certificate().subject_public_key_info() != &agent.request.info.public_key {
            return Err("it is for another key".into());
        }
        Ok(certificate)
    }
}

struct Agent {
    account: String,
    identity: String,
    csr: String,
    request: CertReq,
}

impl Agent {
    fn new(number: usize) -> Self {
        use der::DecodePem;
        let account = format!("c{number}");
        let identity = format!("spiffe://cluster.local/ns/soak/sa/{account}");
        let csr = WorkloadKey::generate(KeyKind::P256).unwrap().request(&identity).unwrap();
        let request = CertReq::from_pem(&csr).unwrap();
        Self { account, identity, csr, request }
    }
}

/// Running agents.
pub struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts agents that send requests back to back, with `pause` between two requests.
    pub fn start(mesh: &Arc<Mesh>, held: &Arc<Held>, address: SocketAddr, agents: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..agents).map(|number| {
            let (mesh, held, stop) = (Arc::clone(mesh), Arc::clone(held), Arc::clone(&stop));
            tokio::spawn(work(mesh, held, stop, address, number, pause))
        });
        Self { tasks: tasks.collect(), stop }
    }

    /// Lets each agent finish its last request.
    ///
    /// # Panics
    /// If an agent received an invalid certificate.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

async fn work(
    mesh: Arc<Mesh>,
    held: Arc<Held>,
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    number: usize,
    pause: Duration,
) {
    let agent = Agent::new(number);
    let minted = || (mint(&mesh.issuer, "soak", &agent.account, clock::now()), Instant::now());
    let mut token = minted();
    'connection: while !stop.load(Ordering::Relaxed) {
        let channel = match tokio::time::timeout(ANSWER, connect(address, &mesh.tls)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(_)) | Err(_) => {
                held.refused("no connection".into());
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while !stop.load(Ordering::Relaxed) {
            if token.1.elapsed() > NEW_TOKEN {
                token = minted();
            }
            let asked = create_certificate(channel.clone(), Some(&token.0), "Kubernetes", agent.csr.clone(), 24 * 3600);
            match tokio::time::timeout(ANSWER, asked).await {
                Ok(Ok(reply)) => {
                    let certificate = mesh.judge(&agent, &reply).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
                    held.take(&reply[0], &certificate);
                    tokio::time::sleep(pause).await;
                }
                // Istio's agents open a new connection after any error.
                Ok(Err(status)) => {
                    held.refused(format!("{:?}", status.code()));
                    tokio::time::sleep(PAUSE).await;
                    continue 'connection;
                }
                Err(_) => {
                    held.refused("no answer".into());
                    continue 'connection;
                }
            }
        }
    }
}
