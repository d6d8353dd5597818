//! Agents that are not hostile, and what they notice of an attack.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bench::agent::{Tls, connect_from};
use testkit::daemon::{Ask, Daemon, SERVER, Site};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

/// Where agents come from, other than attackers: `127.0.0.1`.
pub const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// How many agents ask, each on a new connection, ten times a second.
const AGENTS: usize = 4;
const EVERY: Duration = Duration::from_millis(100);

/// What agents had.
pub struct Served {
    pub tried: usize,
    pub failed: Vec<String>,
    /// Of those that were served, in order: connection, handshake and certificate.
    pub latencies: Vec<Duration>,
}

impl Served {
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).copied().unwrap_or(Duration::MAX)
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.tried.max(1) as f64
    }

    /// Of nine in ten it is as if there were no attack, and it takes no more than three times as long.
    pub fn assert_like(&self, normal: &Self, attack: &str) {
        println!("{attack}: {self}; without: {normal}");
        assert!(self.tried >= AGENTS * 5, "{self}");
        assert!(self.rate() >= 0.9 * normal.rate(), "{attack}: {self}; {:#?}", self.failed);
        // On a machine that others share, a few milliseconds more are not the attack's.
        let allowed = normal.percentile(50) * 3 + Duration::from_millis(50);
        assert!(self.percentile(50) <= allowed, "{attack}: {self}; without: {normal}");
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tried, latencies, .. } = self;
        write!(f, "{} of {tried} served, p50 {:?}, p90 {:?}", latencies.len(), self.percentile(50), self.percentile(90))
    }
}

/// How long an attack lasts.
pub fn duration() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the length of a test is its caller's choice")]
    let seconds = std::env::var("HOSTILE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(3, |text| text.parse().expect("HOSTILE_SECONDS")))
}

/// Has agents ask from an address for a time.
pub async fn ask_for(site: &Site, daemon: &Daemon, from: IpAddr, time: Duration) -> Served {
    let tls = Tls::new(daemon.roots.as_bytes(), SERVER, None).unwrap();
    let (end, tried) = (Instant::now() + time, AtomicUsize::new(0));
    let agent = |number: usize| {
        let (address, tls, tried) = (daemon.address, tls.clone(), &tried);
        let account = format!("agent-{number}");
        let identity = format!("spiffe://cluster.local/ns/demo/sa/{account}");
        let token = site.token("demo", &account);
        async move {
            let (mut failed, mut latencies) = (Vec::new(), Vec::new());
            while Instant::now() < end {
                tried.fetch_add(1, Ordering::Relaxed);
                let ask = Ask::new(&identity).token(&token);
                let began = Instant::now();
                let asked = async {
                    let channel =
                        connect_from(Some(from), address, &tls).await.map_err(|error| format!("{error:?}"))?;
                    ask.send(channel).await.map_err(|status| status.to_string())
                };
                match asked.await {
                    Ok(_) => latencies.push(began.elapsed()),
                    Err(error) => failed.push(error),
                }
                tokio::time::sleep(EVERY.saturating_sub(began.elapsed())).await;
            }
            (failed, latencies)
        }
    };
    let all = futures_util::future::join_all((0..AGENTS).map(agent)).await;
    let (failed, latencies): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let mut latencies = latencies.concat();
    latencies.sort();
    Served { tried: tried.into_inner(), failed: failed.concat(), latencies }
}

/// The threads of attackers, which do not keep agents from theirs.
static ATTACKERS: LazyLock<Runtime> = LazyLock::new(|| Builder::new_multi_thread().enable_all().build().unwrap());

/// A task of an attacker for each number, which all end when the value is dropped.
pub fn crowd<F: Future<Output = ()> + Send + 'static>(count: usize, one: impl Fn(usize) -> F) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for number in 0..count {
        tasks.spawn_on(one(number), ATTACKERS.handle());
    }
    tasks
}
