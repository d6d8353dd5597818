//! `bench endpoint`: simulates many Istio agents against a running daemon.

mod all_at_once;
mod metrics;
mod tokens;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use metrics::Signatures;
use serde::Serialize;
use tokens::{read, tokens};
use tonic::transport::Channel;

use super::{
    load::{self, Ask, Window},
    positive,
    process_usage::{ProcessTime, Reading},
    progress_bar,
    queue::Ideal,
    report::{Latency, Samples, count},
    token_bench::{self, Plan, TokenChoice},
};
use crate::agent::{KeyKind, Tls, Workload, WorkloadKey, connect, create_certificate};
use process::output::Output;
use token::TokenUri;

/// How long after a call a daemon's metrics have it: at a `keep_alive` of one second, and updated each second.
const REPORTED: Duration = Duration::from_millis(2500);

/// Arguments of `bench endpoint`.
#[derive(Args, Debug)]
pub struct EndpointArguments {
    /// The daemon, as IP:PORT
    #[arg(long)]
    address: SocketAddr,
    /// The DNS name in the daemon's serving certificate
    #[arg(long, default_value = "istiod.istio-system.svc")]
    server_name: String,
    /// The roots of its certificate, PEM
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// Connections; each is kept for the whole run
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Requests in flight per connection, each with its own identity and key
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: u16,
    /// Open loop: requests per second, which arrive by a Poisson process regardless of responses [default: closed loop]
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,
    /// With --rate: also print the latencies of an ideal token with so many sessions and the same arrivals (M/D/s)
    #[arg(long, value_name = "SESSIONS", requires = "rate", requires = "ideal_source",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    ideal_sessions: Option<u16>,
    /// Duration of each signature of the ideal token, in microseconds
    #[arg(long, value_name = "MICROSECONDS", requires = "ideal_sessions", group = "ideal_source",
          value_parser = positive)]
    ideal_signature: Option<f64>,
    /// Instead: the address of the daemon's admin listener, whose metrics say how long the token's signatures took in this run
    #[arg(long, value_name = "ADDRESS", requires = "ideal_sessions", group = "ideal_source")]
    ideal_metrics: Option<SocketAddr>,
    /// Open a new connection with the workload's client certificate (mTLS) for each certificate
    #[arg(long)]
    new_connections: bool,
    /// With --new-connections: authenticate with the JWT instead of a client certificate
    #[arg(long, requires = "new_connections")]
    jwt: bool,
    /// With --new-connections: resume the TLS session of the workload's last connection
    #[arg(long, requires = "new_connections")]
    resume: bool,
    /// Leave TCP_NODELAY off
    #[arg(long)]
    delay: bool,
    /// Instead of a load: number of agents that start at once, each with its own connection, identity, key and JWT, and
    /// with Istio's five attempts
    #[arg(long, value_name = "AGENTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000),
          conflicts_with_all = ["rate", "new_connections", "token", "token_directory"])]
    storm: Option<u32>,
    /// With --storm: number of addresses of 127.1.0.0/16 that the agents use in turn, for a daemon on this machine
    #[arg(long, value_name = "ADDRESSES", default_value_t = 0, requires = "storm",
          value_parser = clap::value_parser!(u16).range(0..=65_534))]
    storm_sources: u16,
    /// Duration of the measurement in seconds
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    seconds: f64,
    /// Duration of the warm-up in seconds
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    warm_up: f64,
    /// Type of the workloads' keys
    #[arg(long, value_enum, default_value = "p256")]
    key: KeyKind,
    /// The key of a JWT issuer that the daemon trusts (P-256, PKCS#8), to mint JWTs
    #[arg(long, value_name = "FILE", required_unless_present = "token_directory", requires = "issuer")]
    token_key: Option<PathBuf>,
    /// The issuer's name
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// Audience of the JWTs
    #[arg(long, default_value = "istio-ca")]
    audience: String,
    /// A directory of service account JWTs, one per file, instead of --token-key
    #[arg(long, value_name = "DIR", conflicts_with = "token_key")]
    token_directory: Option<PathBuf>,
    /// The identities' trust domain
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// The identities' namespace, for minted JWTs
    #[arg(long, default_value = "bench")]
    namespace: String,
    /// The cluster ID that the agents send
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    /// The requested lifetime in seconds
    #[arg(long, default_value_t = 86_400)]
    lifetime: i64,
    /// The daemon's process ID, to report the CPU time of it and its token hosts
    #[arg(long)]
    pid: Option<u32>,
    /// The daemon's token, to measure the key of --ca-cert alone afterwards and report the ratio
    #[arg(long, value_name = "PKCS11_URI", requires = "ca_cert")]
    token: Option<TokenUri>,
    #[command(flatten)]
    choice: TokenChoice,
}

/// Result of a run, as printed in JSON.
#[derive(Clone, Debug, Serialize)]
struct Report {
    connections: u16,
    streams: u16,
    new_connections: bool,
    seconds: f64,
    offered_per_second: Option<f64>,
    certificates: usize,
    certificates_per_second: f64,
    latency: Option<Latency>,
    ideal_latency: Option<Latency>,
    ideal_signature_us: Option<f64>,
    errors: BTreeMap<String, u64>,
    token_signatures_per_second: Option<f64>,
    ratio_to_token: Option<f64>,
    daemon_cpu_us_per_certificate: Option<f64>,
    processes: Vec<ProcessTime>,
}

/// One simulated workload.
struct Agent {
    token: String,
    request: String,
    /// For new connections: TLS settings of its own, with its certificate unless it sends the JWT.
    own: Option<Tls>,
}

/// All workloads and the connections that they share.
struct Agents {
    agents: Vec<Agent>,
    channels: Vec<Channel>,
    address: SocketAddr,
    /// Whether new connections send the JWT.
    jwt: bool,
    cluster: String,
    lifetime: i64,
}

impl Ask for Agents {
    async fn ask(&self, worker: usize) -> Result<(), String> {
        let agent = self.agents.get(worker).ok_or("no such workload")?;
        let channel = match &agent.own {
            Some(tls) => connect(self.address, tls).await.map_err(|_| "no connection".to_owned())?,
            None => self.channels.get(worker % self.channels.len().max(1)).ok_or("no connection")?.clone(),
        };
        let token = (agent.own.is_none() || self.jwt).then_some(agent.token.as_str());
        let reply = create_certificate(channel, token, &self.cluster, agent.request.clone(), self.lifetime).await;
        match reply {
            Ok(chain) if chain.len() >= 2 => Ok(()),
            Ok(_) => Err("reply without a root".into()),
            Err(status) => Err(format!("{:?}", status.code())),
        }
    }
}

/// Measures the daemon and prints the result.
///
/// # Errors
/// If a file cannot be read, the daemon does not respond, or no certificate was issued.
pub(super) fn run(arguments: &EndpointArguments, output: Output) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(agents) = arguments.storm {
        return runtime.block_on(all_at_once::run(arguments, usize::try_from(agents)?, output));
    }
    let mut report = runtime.block_on(measure(arguments))?;
    if let Some(token) = &arguments.token {
        let rate = token_alone(token, &arguments.choice)?;
        report.token_signatures_per_second = Some(rate);
        report.ratio_to_token = Some(report.certificates_per_second / rate);
    }
    output.print(&report, text)?;
    ensure!(report.certificates > 0, "no certificate was issued; the errors above say why");
    Ok(())
}

/// The better of one session and one session per core: the most that a token host could get from the token on this
/// machine.
fn token_alone(token: &TokenUri, choice: &TokenChoice) -> Result<f64> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(256));
    let plan = Plan { token, choice, sessions: &[1, cores.min(256)], rounds: 3, round: Duration::from_secs(1) };
    let rates = token_bench::measure(&plan)?.into_iter().map(|row| row.signatures_per_second);
    rates.max_by(f64::total_cmp).context("the token was not measured")
}

async fn measure(arguments: &EndpointArguments) -> Result<Report> {
    let agents = Arc::new(prepare(arguments).await?);
    let workers = agents.agents.len();
    let warm_up = Duration::from_secs_f64(arguments.warm_up);
    let start = Instant::now() + warm_up;
    let window = Window { start, end: start + Duration::from_secs_f64(arguments.seconds) };

    let watch = tokio::spawn(watch(window, arguments.pid));
    let signed_before = signatures(arguments).await?;
    let (mut ideal_latency, mut ideal_signature_us) = (None, arguments.ideal_signature);
    let samples: Samples = match arguments.rate {
        None => load::closed(Arc::clone(&agents), workers, window).await,
        Some(rate) => {
            let opened = load::open(Arc::clone(&agents), workers, rate, window).await?;
            if let Some(before) = signed_before {
                // A host reports its calls at each keep-alive.
                tokio::time::sleep(REPORTED).await;
                let after = signatures(arguments).await?.context("the metrics are gone")?;
                ideal_signature_us = Some(after.microseconds_since(before)?);
            }
            let ideal = ideal(arguments, ideal_signature_us);
            ideal_latency = ideal.and_then(|ideal| ideal.play(&opened.arrivals, opened.from).latency());
            opened.samples
        }
    };
    let processes = watch.await??;

    let certificates = samples.latencies.len();
    let per_second = count(certificates) / arguments.seconds;
    let cpu: f64 = processes.iter().map(|process| process.cpu_seconds).sum();
    Ok(Report {
        connections: arguments.connections,
        streams: arguments.streams,
        new_connections: arguments.new_connections,
        seconds: arguments.seconds,
        offered_per_second: arguments.rate,
        certificates,
        certificates_per_second: per_second,
        latency: samples.latency(),
        ideal_latency,
        ideal_signature_us,
        errors: samples.errors,
        token_signatures_per_second: None,
        ratio_to_token: None,
        daemon_cpu_us_per_certificate: (arguments.pid.is_some() && certificates > 0)
            .then(|| cpu * 1e6 / count(certificates)),
        processes,
    })
}

/// The ideal token that the open loop is compared with.
fn ideal(arguments: &EndpointArguments, microseconds: Option<f64>) -> Option<Ideal> {
    let (sessions, microseconds) = (arguments.ideal_sessions?, microseconds?);
    Some(Ideal { sessions: sessions.into(), signature: Duration::try_from_secs_f64(microseconds / 1e6).ok()? })
}

/// The token's signatures so far, if the daemon's metrics were asked for.
async fn signatures(arguments: &EndpointArguments) -> Result<Option<Signatures>> {
    match arguments.ideal_metrics {
        Some(address) => Signatures::read(address).await.map(Some),
        None => Ok(None),
    }
}

/// Shows the progress, and reads the daemon's CPU time over the measured window only.
async fn watch(window: Window, pid: Option<u32>) -> Result<Vec<ProcessTime>> {
    let read = || pid.map(Reading::take).transpose();
    tokio::time::sleep_until(window.start.into()).await;
    let before = read()?;
    let bar = progress_bar(100)?;
    let step = (window.end - window.start) / 100;
    for done in 1..=100 {
        tokio::time::sleep_until((window.start + step * done).into()).await;
        bar.inc(1);
    }
    let after = read()?;
    bar.finish_and_clear();
    Ok(match (before, after) {
        (Some(before), Some(after)) => after.since(&before),
        _ => Vec::new(),
    })
}

/// Prepares all keys, CSRs, JWTs and connections before the measurement.
async fn prepare(arguments: &EndpointArguments) -> Result<Agents> {
    let roots = read(&arguments.roots)?;
    let tls = Tls::new(&roots, &arguments.server_name, None)
        .with_context(|| format!("--roots {}", arguments.roots.display()))?;
    let configured = |tls: Tls| {
        let tls = if arguments.resume { tls.resuming() } else { tls };
        if arguments.delay { tls.delaying() } else { tls }
    };
    let shared = configured(tls.clone());
    let wanted = usize::from(arguments.connections) * usize::from(arguments.streams);
    let mut channels = Vec::new();
    for _ in 0..arguments.connections {
        let channel = connect(arguments.address, &shared).await;
        channels.push(channel.context("start the daemon, or give its [listen] address by --address")?);
    }
    let mut agents = Vec::new();
    for (workload, token) in tokens(arguments, wanted)? {
        let key = WorkloadKey::generate(arguments.key)?;
        let Workload { namespace, service_account } = workload;
        let identity = format!("spiffe://{}/ns/{namespace}/sa/{service_account}", arguments.trust_domain);
        let request = key.request(&identity)?;
        let mut agent = Agent { token, request, own: None };
        if arguments.jwt {
            agent.own = Some(configured(tls.clone()));
        } else if arguments.new_connections {
            let channel = channels.first().context("at least one connection is needed")?.clone();
            agent.own = Some(configured(first_certificate(arguments, channel, &agent, &key, &roots).await?));
        }
        agents.push(agent);
    }
    let (address, cluster, lifetime) = (arguments.address, arguments.cluster.clone(), arguments.lifetime);
    Ok(Agents { agents, channels, address, jwt: arguments.jwt, cluster, lifetime })
}

/// Obtains a workload's first certificate with its JWT, for connections with client certificates.
async fn first_certificate(
    arguments: &EndpointArguments,
    channel: Channel,
    agent: &Agent,
    key: &WorkloadKey,
    roots: &[u8],
) -> Result<Tls> {
    let (token, request) = (Some(agent.token.as_str()), agent.request.clone());
    let reply = create_certificate(channel, token, &arguments.cluster, request, arguments.lifetime).await;
    let chain =
        reply.map_err(|status| anyhow::anyhow!("the first certificate: {:?}: {}", status.code(), status.message()))?;
    let [issued @ .., _roots] = chain.as_slice() else { bail!("the reply is empty") };
    Ok(Tls::new(roots, &arguments.server_name, Some((issued.concat().as_bytes(), key.pem()?.as_bytes())))?)
}

fn text(report: &Report) -> String {
    let milliseconds = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
    let mut lines = vec![format!(
        "certificates  {} in {} s, {:.0} a second",
        report.certificates, report.seconds, report.certificates_per_second
    )];
    if let Some(Latency { p50_us, p99_us, max_us }) = report.latency {
        let [p50, p99, max] = [p50_us, p99_us, max_us].map(milliseconds);
        lines.push(format!("latency       p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"));
    }
    if let Some(Latency { p50_us, p99_us, max_us }) = report.ideal_latency {
        let [p50, p99, max] = [p50_us, p99_us, max_us].map(milliseconds);
        lines.push(format!("ideal queue   p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"));
    }
    lines.push(format!("errors        {}", report.errors.values().sum::<u64>()));
    lines.extend(report.errors.iter().map(|(kind, count)| format!("              {count} {kind}")));
    if let (Some(token), Some(ratio)) = (report.token_signatures_per_second, report.ratio_to_token) {
        lines.push(format!("token alone   {token:.0} signatures a second; ratio {ratio:.2}"));
    }
    if let Some(cpu) = report.daemon_cpu_us_per_certificate {
        lines.push(format!("CPU           {cpu:.0} us a certificate"));
        let process = |process: &ProcessTime| {
            format!("              {:.2} s in {} ({})", process.cpu_seconds, process.name, process.pid)
        };
        lines.extend(report.processes.iter().map(process));
    }
    lines.join("\n") + "\n"
}
