//! All agents of a mesh start at once: each opens a connection, requests its certificate, and retries like Istio's
//! agents.
//!
//! Istio's agent makes five attempts for the codes below, with 100 ms before the second one, doubled each time (Istio:
//! pkg/security/retry.go). Here an agent is lost after five failures or a permanent one, though a real one would start
//! over. Connections stay open until all agents are served, as agents keep theirs.

use std::{
    collections::BTreeMap,
    error::Error as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::rand;
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet};
use tonic::{Code, transport::Channel};

use super::report::{Latency, Samples};
use crate::agent::{Tls, connect_from, create_certificate};

/// Attempts of one agent.
const TRIES: u32 = 5;
/// Delay before the second attempt; doubled for each further one, with 10 % jitter.
const BACKOFF: Duration = Duration::from_millis(100);
/// Timeout of gRPC clients for a connection (grpc-go: `minConnectTimeout`).
const CONNECT: Duration = Duration::from_secs(20);
/// Timeout of an agent for one attempt.
const ANSWER: Duration = Duration::from_secs(30);

/// Result of a storm.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Storm {
    /// Number of agents.
    pub agents: usize,
    /// Agents that got a certificate.
    pub served: usize,
    /// Agents by the number of attempts.
    pub tries: BTreeMap<u32, usize>,
    /// Seconds until the last agent was served.
    pub seconds: f64,
    /// From the start to the certificate, for the agents that got one.
    pub latency: Option<Latency>,
    /// Retried errors by code.
    pub refusals: BTreeMap<String, u64>,
    /// Agents without a certificate, by their last error.
    pub lost: BTreeMap<String, u64>,
}

/// An agent that has not started yet.
pub(super) struct Comer {
    /// Its JWT.
    pub token: String,
    /// Its CSR in PEM.
    pub request: String,
}

/// Connection parameters of the agents.
pub(super) struct Route {
    /// The daemon.
    pub address: SocketAddr,
    /// Their TLS settings.
    pub tls: Tls,
    /// The agents use this number of addresses of 127.0.0.0/8 in turn; 0 leaves the choice to the system.
    pub sources: u16,
    /// The cluster ID they send.
    pub cluster: String,
    /// The lifetime they request, in seconds.
    pub lifetime: i64,
}

impl Route {
    fn source(&self, agent: usize) -> Option<IpAddr> {
        let turn = u16::try_from(agent % usize::from(self.sources.max(1))).unwrap_or_default();
        let [high, low] = (turn + 1).to_be_bytes();
        (self.sources > 0).then_some(IpAddr::V4(Ipv4Addr::new(127, 1, high, low)))
    }
}

/// Result of one agent.
struct Fate {
    tries: u32,
    result: Result<(Duration, Channel), String>,
    refusals: Vec<String>,
}

/// Starts all agents and waits for the last; `done` counts those that have ended.
pub(super) async fn all(route: Arc<Route>, comers: Vec<Comer>, done: Arc<AtomicUsize>) -> Storm {
    let (start, started) = watch::channel(None);
    let mut tasks = JoinSet::new();
    let agents = comers.len();
    for (number, comer) in comers.into_iter().enumerate() {
        let (route, mut started, done) = (Arc::clone(&route), started.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            let began = started.wait_for(Option::is_some).await.ok().and_then(|began| *began);
            let fate = one(&route, number, &comer, began.unwrap_or_else(Instant::now)).await;
            done.fetch_add(1, Ordering::Relaxed);
            fate
        });
    }
    // All tasks wait by now, or will see at once that they need not.
    start.send_replace(Some(Instant::now()));
    let mut storm = Storm { agents, ..Storm::default() };
    let (mut samples, mut open) = (Samples::default(), Vec::with_capacity(agents));
    while let Some(fate) = tasks.join_next().await {
        let Ok(fate) = fate else { continue };
        for refusal in fate.refusals {
            *storm.refusals.entry(refusal).or_default() += 1;
        }
        match fate.result {
            Ok((took, channel)) => {
                storm.served += 1;
                *storm.tries.entry(fate.tries).or_default() += 1;
                storm.seconds = storm.seconds.max(took.as_secs_f64());
                samples.latencies.push(took);
                open.push(channel);
            }
            Err(reason) => *storm.lost.entry(reason).or_default() += 1,
        }
    }
    storm.latency = samples.latency();
    storm
}

async fn one(route: &Route, number: usize, comer: &Comer, began: Instant) -> Fate {
    let mut refusals = Vec::new();
    let mut tries = 1;
    loop {
        let refusal = match attempt(route, number, comer).await {
            Ok(channel) => return Fate { tries, result: Ok((began.elapsed(), channel)), refusals },
            Err(refusal) => refusal,
        };
        if tries == TRIES || !refusal.may_try_again {
            return Fate { tries, result: Err(refusal.reason), refusals };
        }
        refusals.push(refusal.reason);
        tokio::time::sleep(backoff(tries)).await;
        tries += 1;
    }
}

/// Error of an attempt.
struct Refusal {
    reason: String,
    may_try_again: bool,
}

async fn attempt(route: &Route, number: usize, comer: &Comer) -> Result<Channel, Refusal> {
    // A failed connection is UNAVAILABLE in gRPC, which is retried.
    let no_connection = |reason: &str| Refusal { reason: reason.to_owned(), may_try_again: true };
    let connected = tokio::time::timeout(CONNECT, connect_from(route.source(number), route.address, &route.tls)).await;
    let channel = match connected {
        Ok(Ok(channel)) => channel,
        Ok(Err(_)) => return Err(no_connection("no connection")),
        Err(_) => return Err(no_connection("no connection in time")),
    };
    let (token, request) = (Some(comer.token.as_str()), comer.request.clone());
    let asked = create_certificate(channel.clone(), token, &route.cluster, request, route.lifetime);
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(chain)) if chain.len() >= 2 => Ok(channel),
        Ok(Ok(_)) => Err(Refusal { reason: "reply without a root".to_owned(), may_try_again: false }),
        // Only a status that the server sent has no source. gRPC's own code for a lost connection is UNAVAILABLE.
        Ok(Err(status)) if status.source().is_some() => Err(no_connection("connection lost")),
        Ok(Err(status)) => {
            Err(Refusal { reason: format!("{:?}", status.code()), may_try_again: is_tried_again(status.code()) })
        }
        Err(_) => Err(no_connection("no answer")),
    }
}

/// The codes that Istio's agents retry.
fn is_tried_again(code: Code) -> bool {
    match code {
        Code::Aborted
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::ResourceExhausted
        | Code::Unavailable => true,
        Code::AlreadyExists
        | Code::DataLoss
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::Ok
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::Unknown => false,
    }
}

/// The delay after this number of attempts.
fn backoff(tries: u32) -> Duration {
    let mut bytes = [0; 2];
    // Without randomness, all agents retry at the same moment, which is a worse case but valid.
    let chance = if rand::fill(&mut bytes).is_ok() { f64::from(u16::from_be_bytes(bytes)) / 65_535.0 } else { 0.5 };
    (BACKOFF * 2_u32.saturating_pow(tries - 1)).mul_f64(0.9 + 0.2 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_a_tenth_of_chance() {
        for (tries, milliseconds) in [(1, 100.0), (2, 200.0), (3, 400.0), (4, 800.0)] {
            let pause = backoff(tries).as_secs_f64() * 1e3;
            assert!((milliseconds * 0.9..=milliseconds * 1.1).contains(&pause), "{tries}: {pause}");
        }
    }

    #[test]
    fn agents_take_turns_at_their_addresses() {
        let tls = Tls::new(rcgen_root().as_bytes(), "istiod.istio-system.svc", None).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut route = Route { address, tls, sources: 0, cluster: String::new(), lifetime: 1 };
        assert_eq!(route.source(7), None);
        route.sources = 300;
        let of = |agent| route.source(agent).unwrap().to_string();
        assert_eq!([of(0), of(255), of(299), of(300)], ["127.1.0.1", "127.1.1.0", "127.1.1.44", "127.1.0.1"]);
    }

    fn rcgen_root() -> String {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }
}
