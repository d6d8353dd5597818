//! Agents that request certificates all the time, and a watcher of the daemon's health.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use bench::agent::{self, KeyKind, WorkloadKey};
use der::{DecodePem, Encode};
use pki::pem;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use x509_cert::request::CertReq;

use testkit::daemon::{Daemon, IDENTITY, SOON};

/// Number of concurrent agents.
pub const CLIENTS: usize = 3;

/// Pause of an agent after a response.
const PAUSE: Duration = Duration::from_millis(150);

/// Codes that clients may get while a token fails: those that Istio's agent retries.
const PASSING: [Code; 3] = [Code::DeadlineExceeded, Code::ResourceExhausted, Code::Unavailable];

/// What clients and watchers observed.
#[derive(Debug, Default)]
pub struct Seen {
    /// Certificates: client, time, and leaf.
    pub received: Vec<(usize, Instant, Vec<u8>)>,
    /// Number of temporary errors.
    pub refused: usize,
    /// Observations that must not occur.
    pub wrong: Vec<String>,
    /// Changes reported by the health service.
    pub health: Vec<(Instant, bool)>,
}

/// The load on a daemon, which ends with it.
pub struct Load {
    pub seen: Rc<RefCell<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the load; must run in a `LocalSet`.
    pub async fn start(daemon: &Daemon) -> Self {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let client = Client {
                number,
                channel: daemon.connect(None).await,
                key: WorkloadKey::generate(KeyKind::P256).unwrap(),
                token: daemon.token.clone(),
                roots: daemon.roots.clone(),
                seen: Rc::clone(&seen),
            };
            tasks.push(tokio::task::spawn_local(client.run()));
        }
        tasks.push(tokio::task::spawn_local(watch_health(daemon.connect(None).await, Rc::clone(&seen))));
        tasks.push(tokio::task::spawn_local(watch_liveness(daemon.admin, Rc::clone(&seen))));
        Self { seen, tasks }
    }

    /// Time from a moment until the last agent had its first certificate; `None` if it takes longer than `most`.
    pub async fn all_served_after(&self, moment: Instant, most: Duration) -> Option<Duration> {
        loop {
            let first = |client| {
                let seen = self.seen.borrow();
                let mut newest = seen.received.iter().rev().take_while(|(_, at, _)| *at >= moment);
                newest.by_ref().filter(|(number, ..)| *number == client).map(|(_, at, _)| *at).min()
            };
            let firsts: Option<Vec<Instant>> = (0..CLIENTS).map(first).collect();
            if let Some(last) = firsts.and_then(|firsts| firsts.into_iter().max()) {
                return Some(last.saturating_duration_since(moment));
            }
            if moment.elapsed() > most {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Certificates between two moments.
    pub fn served_between(&self, from: Instant, to: Instant) -> Vec<Instant> {
        let seen = self.seen.borrow();
        seen.received.iter().map(|(_, at, _)| *at).filter(|at| *at >= from && *at < to).collect()
    }

    /// Fraction of the time between two moments in which the health service reported SERVING.
    pub fn share_serving(&self, from: Instant, to: Instant) -> f64 {
        let seen = self.seen.borrow();
        let (mut since, mut serving, mut share) = (from, false, Duration::ZERO);
        for (at, now) in seen.health.iter().chain(std::iter::once(&(to, false))) {
            let at = (*at).clamp(from, to);
            if serving {
                share += at.saturating_duration_since(since);
            }
            (since, serving) = (at, *now);
        }
        share.as_secs_f64() / to.saturating_duration_since(from).as_secs_f64().max(0.001)
    }

    /// Ends the load and returns the observations.
    pub async fn end(self) -> Seen {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            if let Err(error) = task.await
                && error.is_panic()
            {
                self.seen.borrow_mut().wrong.push(format!("a client panicked: {error}"));
            }
        }
        self.seen.take()
    }
}

struct Client {
    number: usize,
    channel: Channel,
    key: WorkloadKey,
    token: String,
    roots: String,
    seen: Rc<RefCell<Seen>>,
}

impl Client {
    async fn run(self) {
        let csr = self.key.request(IDENTITY).unwrap();
        let public_key = CertReq::from_pem(&csr).unwrap().info.public_key.to_der().unwrap();
        loop {
            let asked =
                agent::create_certificate(self.channel.clone(), Some(&self.token), "Kubernetes", csr.clone(), 3600);
            let answer = tokio::time::timeout(SOON, asked).await;
            {
                let mut seen = self.seen.borrow_mut();
                match answer {
                    Err(_) => seen.wrong.push(format!("no answer within {SOON:?}")),
                    Ok(Err(status)) if PASSING.contains(&status.code()) => seen.refused += 1,
                    Ok(Err(status)) => seen.wrong.push(format!("a client received {status}")),
                    Ok(Ok(chain)) => match verify(&chain, &self.roots, &public_key) {
                        Ok(leaf) => seen.received.push((self.number, Instant::now(), leaf)),
                        Err(reason) => seen.wrong.push(format!("a bad certificate was released: {reason}")),
                    },
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Verifies that the leaf is for this key and issued by the CA; returns it.
fn verify(chain: &[String], roots: &str, public_key: &[u8]) -> Result<Vec<u8>, String> {
    let ders = |text: &str| -> Vec<CertificateDer<'static>> {
        let blocks = pem::blocks(text.as_bytes()).unwrap();
        blocks.into_iter().map(|block| CertificateDer::from(block.der.to_vec())).collect()
    };
    let [leaf, between @ .., _roots] = chain else { return Err(format!("{} elements", chain.len())) };
    let der = ders(leaf).into_iter().next().ok_or("no leaf")?;
    let between: Vec<_> = between.iter().flat_map(|text| ders(text)).collect();
    let roots = ders(roots);
    let anchors: Vec<_> = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
    let now = process::clock::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let (time, usage) = (UnixTime::since_unix_epoch(now), webpki::KeyUsage::client_auth());
    let end_entity = webpki::EndEntityCert::try_from(&der).map_err(|error| error.to_string())?;
    end_entity
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &between, time, usage, None, None)
        .map_err(|error| error.to_string())?;
    if end_entity.subject_public_key_info().as_ref() != public_key {
        return Err("it is for another key".to_owned());
    }
    if end_entity.valid_uri_names().collect::<Vec<_>>() != [IDENTITY] {
        return Err("it is for another identity".to_owned());
    }
    Ok(der.as_ref().to_vec())
}

async fn watch_health(channel: Channel, seen: Rc<RefCell<Seen>>) {
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest { service: String::new() };
    let mut news = client.watch(request).await.unwrap().into_inner();
    loop {
        match news.message().await {
            Ok(Some(reply)) => {
                seen.borrow_mut().health.push((Instant::now(), reply.status() == ServingStatus::Serving));
            }
            other => {
                seen.borrow_mut().wrong.push(format!("the health watch ended: {other:?}"));
                return;
            }
        }
    }
}

async fn watch_liveness(admin: std::net::SocketAddr, seen: Rc<RefCell<Seen>>) {
    loop {
        let alive = async {
            let mut stream = tokio::net::TcpStream::connect(admin).await?;
            stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text.split(' ').nth(1) == Some("200"))
        };
        match tokio::time::timeout(Duration::from_secs(10), alive).await {
            Ok(Ok(true)) => {}
            other => seen.borrow_mut().wrong.push(format!("/livez: {other:?}")),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
