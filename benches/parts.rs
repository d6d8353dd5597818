//! CPU time of the parts of a certificate, for the ratio that `benches/endpoint.sh` prints; not wall time, so that a
//! busy machine affects it less.
//!
//! `parts measure DIR` prints one part per line, `name microseconds`, and as `flush` the wall time of a flush; the log is
//! written to DIR, and log lines go to standard error as the daemon's do. `parts measure-storm DIR` adds a JWT that is not cached. `parts echo DIR` runs
//! the endpoint's own stack (listener, TLS, HTTP/2, gRPC) with a handler that only returns a reply of a certificate's
//! size: the cost of the RPC. It writes DIR/root.pem and prints its address.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends at the first surprise")]

use std::{
    collections::HashMap,
    fs::File,
    hint::black_box,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, RwLock},
    time::{Duration, Instant, SystemTime},
};

use audit_log::{Intent, Log, Outcome};
use bench::agent::{KeyKind, TokenIssuer, Workload, WorkloadKey};
use futures_util::future::join_all;
use istio_api::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};
use istio_hsm_ca::{
    auth::{self, Authenticator, ClusterId, Credentials},
    grpc::{
        Settings,
        listener::Listener,
        server::{routes, serve},
        tls::{ServingCertificate, server_config},
    },
    policy::{Asked, Rules},
    revocation::Revocations,
    telemetry::{
        RequestId,
        metrics::{self, Step},
        recent::{self, Recent},
    },
};
use nix::{
    fcntl::posix_fallocate,
    time::{ClockId, clock_gettime},
};
use pki::{
    Issued, Issuer, Profile, PublicKey, Tbs, Template, VerifiedCsr,
    lint::{self, Ca, Facts},
    tbs::Serial,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
    PublicKeyData, RsaKeySize, SigningKey,
};
use rustls::{crypto::aws_lc_rs, server::WebPkiClientVerifier, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const DAY: Duration = Duration::from_secs(86_400);
/// Duration of one slice: long, because short measurements are more likely to see the CPU at its fastest.
const SLICE: Duration = Duration::from_millis(600);
const WARM_UP: Duration = Duration::from_millis(60);
/// More than are verified in one slice.
const NEW_TOKENS: u32 = 40_000;
/// Number of workload keys, as in the load of `benches/endpoint.sh`: with a single signature the CPU's branch
/// prediction would learn its branches.
const WORKLOADS: usize = 64;
/// Number of requests whose lines share a flush, about as in the daemon with 64 in flight.
const GROUP: usize = 8;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("measure"), Some(directory)) => measure(Path::new(&directory), false),
        (Some("measure-storm"), Some(directory)) => measure(Path::new(&directory), true),
        (Some("echo"), Some(directory)) => echo(Path::new(&directory)),
        // `cargo bench` and `cargo test` start every bench; this one needs a directory.
        _ => println!("usage: parts measure|measure-storm|echo DIR   (benches/endpoint.sh runs it)"),
    }
}

fn cpu(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("a CPU clock").into()
}

/// CPU time of this process per call in a slice, in microseconds. Each run makes `each` calls.
fn part(name: &str, each: u32, mut run: impl FnMut()) {
    let mut measure = |slice: Duration| {
        let start = cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let mut calls = 0;
        loop {
            run();
            calls += each;
            let took = cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID) - start;
            if took >= slice {
                return took.as_secs_f64() * 1e6 / f64::from(calls);
            }
        }
    };
    measure(WARM_UP);
    println!("{name} {:.2}", measure(SLICE));
}

fn public(key: &KeyPair) -> PublicKey {
    PublicKey::from_spki_der(&key.subject_public_key_info()).expect("a public key")
}

fn issuer(key: &KeyPair, now: SystemTime) -> Arc<Issuer> {
    let root = Template {
        profile: Profile::SelfSignedRoot { organization: "cluster.local".to_owned() },
        public_key: public(key),
        names: Vec::new(),
        not_before: now - DAY,
        not_after: now + 3650 * DAY,
    };
    Issuer::of_new_root(&root).expect("an issuer")
}

fn measure(directory: &Path, storm: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let now = process::clock::now();
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let id = "spiffe://cluster.local/ns/bench/sa/w1";

    let csrs: Vec<String> =
        (0..WORKLOADS).map(|_| WorkloadKey::generate(KeyKind::P256).and_then(|key| key.request(id)).unwrap()).collect();
    let mut next = csrs.iter().cycle();
    part("csr", 1, || drop(VerifiedCsr::from_pem(black_box(next.next().unwrap())).unwrap()));

    // The caller with a JWT whose result is cached.
    let issuer_key = TokenIssuer::generate_key().unwrap();
    let tokens = TokenIssuer::new(issuer_key.as_bytes(), "https://bench.invalid".into(), "istio-ca".into()).unwrap();
    let keys = directory.join("parts-jwks.json");
    std::fs::write(&keys, serde_json::to_vec(&tokens.key_set()).unwrap()).unwrap();
    let workload = Workload { namespace: "bench".into(), service_account: "w1".into() };
    let token = tokens.mint(&workload, now, Duration::from_secs(3600)).unwrap();
    let settings: auth::Settings = toml::from_str(&format!(
        "[[jwt]]\nissuer = \"https://bench.invalid\"\nkeys = {{ file = {{ path = {keys:?} }} }}\ntrust_domain = \"cluster.local\"\n"
    ))
    .unwrap();
    let authenticator =
        Authenticator::new(&settings, &["cluster.local".parse().unwrap()], &Revocations::default()).unwrap();
    let rsa_issuer = issuer(&rsa, now);
    runtime.block_on(async {
        authenticator.start();
        while !authenticator.not_ready().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let credentials = Credentials {
        bearer: Some(auth::credentials::BearerToken::new(&token)),
        cluster_id: ClusterId::Named("Kubernetes"),
        client_chain: None,
        peer: None,
        client: None,
    };
    let authenticate = || runtime.block_on(authenticator.authenticate(&credentials, &rsa_issuer, now)).unwrap();
    part("jwt", 1, || drop(authenticate()));
    if storm {
        // And with a JWT that is not cached.
        let new = (0..NEW_TOKENS).map(|number| {
            let workload = Workload { namespace: "bench".into(), service_account: format!("n{number}") };
            tokens.mint(&workload, now, Duration::from_secs(3600)).unwrap()
        });
        let new: Vec<String> = new.collect();
        let mut next = new.iter();
        part("jwt-new", 1, || {
            let bearer =
                Some(auth::credentials::BearerToken::new(next.next().expect("too few tokens for this machine")));
            let credentials = Credentials { bearer, ..credentials };
            drop(runtime.block_on(authenticator.authenticate(&credentials, &rsa_issuer, now)).unwrap());
        });
    }
    let caller = authenticate();

    let rules = Rules {
        default_ttl: DAY,
        max_ttl: 90 * DAY,
        trust_domains: vec!["cluster.local".parse().unwrap()],
        cert_signers: Vec::new(),
        serving_dns_names: Vec::new(),
        serving_ip_addresses: Vec::new(),
        serving_ttl: DAY,
        clusters: Vec::new(),
    };
    let verified: Vec<VerifiedCsr> = csrs.iter().map(|csr| VerifiedCsr::from_pem(csr).unwrap()).collect();
    let asked = Asked { validity_seconds: 86_400, ..Asked::default() };
    for (name, key) in [("p256", &p256), ("rsa", &rsa)] {
        let issuer = issuer(key, now);
        let build = |csr: &VerifiedCsr| {
            let grant = rules.decide(&caller, csr, &asked, &issuer, now).unwrap();
            Arc::new(Tbs::build(grant.template().clone(), Arc::clone(&issuer), Serial::random()).unwrap())
        };
        let mut next = verified.iter().cycle();
        part(&format!("tbs-{name}"), 1, || drop(build(next.next().unwrap())));
        let signed: Vec<_> =
            verified.iter().map(build).map(|tbs| (Arc::clone(&tbs), key.sign(tbs.der()).unwrap())).collect();
        let mut next = signed.iter().cycle();
        part(&format!("verify-{name}"), 1, || {
            let (tbs, signature) = next.next().unwrap();
            drop(Issued::assemble(Arc::clone(tbs), black_box(signature)).unwrap().chain());
        });
    }
    let issuer = issuer(&p256, now);
    let grant = rules.decide(&caller, verified.first().unwrap(), &asked, &issuer, now).unwrap();
    let tbs = Arc::new(Tbs::build(grant.template().clone(), Arc::clone(&issuer), Serial::random()).unwrap());
    // The token host's own check of the same bytes.
    let ca = Ca::from(&*issuer);
    part("host-check", 1, || {
        let facts = Facts::parse(black_box(tbs.der())).unwrap();
        lint::leaf(&facts, &ca, 90 * DAY).unwrap();
        facts.public_key().unwrap();
    });
    telemetry(&tbs, &caller);
    log(&runtime, directory, &Intent { request_id: "0".repeat(32), time: now, caller: (&caller).into(), tbs });
    flush(directory);
}

/// What is reported for each certificate: the log line, the metrics, the status page's activity.
fn telemetry(tbs: &Tbs, caller: &auth::Caller) {
    let _metrics = metrics::install();
    let _lines = process::logging::init_in_background(&process::logging::Settings::default()).unwrap();
    let recent = Recent::new();
    let peer: SocketAddr = "127.0.0.1:40000".parse().unwrap();
    part("telemetry", 1, || {
        let (id, start) = (RequestId::random(), Instant::now());
        metrics::request();
        for step in [Step::Authenticate, Step::Csr, Step::Build, Step::Log, Step::Sign, Step::Verify] {
            metrics::step(step, start.elapsed());
        }
        metrics::answered("issued", caller.method().as_str(), start.elapsed());
        let names: Vec<_> = tbs.template().names.iter().map(ToString::to_string).collect();
        recent.issued(recent::Certificate {
            time: process::clock::now(),
            caller: caller.identity().to_string(),
            method: caller.method().as_str(),
            names: names.join(", "),
            serial: tbs.serial().to_hex(),
            not_after: tbs.template().not_after,
            token: "softhsm".to_owned(),
            latency: start.elapsed(),
        });
        tracing::info!(
            request_id = %id,
            peer = %peer,
            identity = caller.identity().to_string(),
            method = caller.method().as_str(),
            names = names.join(","),
            serial = tbs.serial().to_hex(),
            ms = start.elapsed().as_secs_f64(),
            "issued"
        );
    });
}

/// Intent, a flush shared by a group, and outcome.
fn log(runtime: &tokio::runtime::Runtime, directory: &Path, intent: &Intent) {
    let settings = audit_log::Settings::new(directory.join("parts-log"), "bench.invalid/log");
    let (log, _) = runtime.block_on(async { Log::open(settings, None) }).unwrap();
    part("log", u32::try_from(GROUP).unwrap(), || {
        let record = || async {
            let recorded = log.record(intent.clone()).await.unwrap();
            log.outcome(recorded.index(), Outcome::Issued { token: "softhsm".to_owned() });
        };
        runtime.block_on(join_all((0..GROUP).map(|_| record())));
    });
    runtime.block_on(log.close());
}

/// Wall time of one write and flush of an intent's size, in microseconds; the median.
fn flush(directory: &Path) {
    let file = File::create(directory.join("flush")).unwrap();
    // As in the issuance log, so that the size of the file does not change.
    posix_fallocate(&file, 0, 1 << 20).unwrap();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            (&file).write_all(&[b'x'; 700]).unwrap();
            file.sync_data().unwrap();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("flush {:.2}", times[times.len() / 2].as_secs_f64() * 1e6);
}

/// Signs each CSR once and then returns the same certificate, which callers can use in a handshake.
struct Echo {
    root: CertifiedIssuer<'static, KeyPair>,
    answers: RwLock<HashMap<String, Vec<String>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Echo {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let csr = request.into_inner().csr;
        if let Some(chain) = self.answers.read().unwrap().get(&csr) {
            return Ok(Response::new(IstioCertificateResponse { cert_chain: chain.clone() }));
        }
        let params = CertificateSigningRequestParams::from_pem(&csr).unwrap();
        // A leaf, the CA and a root, like the daemon's reply.
        let cert_chain = vec![params.signed_by(&self.root).unwrap().pem(), self.root.pem(), self.root.pem()];
        self.answers.write().unwrap().insert(csr, cert_chain.clone());
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

fn echo(directory: &Path) {
    process::hardening::raise_open_files().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["istiod.istio-system.svc".to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    std::fs::write(directory.join("root.pem"), root.pem()).unwrap();
    let provider = aws_lc_rs::default_provider();
    let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(leaf.pem().as_bytes()).unwrap()];
    let certificate = ServingCertificate::absent();
    certificate.replace(Arc::new(CertifiedKey::from_der(chain, private, &provider).unwrap()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    let service = Echo { root, answers: RwLock::default() };
    let settings = Settings { address: "127.0.0.1:0".parse().unwrap(), ..Settings::default() };
    let runtime = istio_hsm_ca::daemon::runtime::start(None).unwrap();
    runtime.block_on(async {
        let tls = server_config(&settings.tls, certificate, verifier).unwrap();
        let listener = Listener::bind(&settings, Some(tls)).await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let (_ready, watched) = watch::channel(true);
        let stop = CancellationToken::new();
        let routes = routes(service, &settings, watched, stop.clone(), Arc::default()).unwrap();
        serve(listener, routes, &settings, stop).await.unwrap();
    });
}
