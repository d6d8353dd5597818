//! `issue`: issues one certificate for a CSR file, for the operator, through the issuance pipeline.
//!
//! Through the daemon's admin socket if a daemon runs; otherwise alone, with an exclusive lock on the log.

use std::{
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{bundle_dir, configured::ConfigArgs};
use crate::{
    auth::Authenticator,
    config::Config,
    daemon::{
        background::Background,
        operator::{self, IssueFailure, IssueReply, IssueRequest},
        readiness::{Readiness, Report},
        revocation, setup,
    },
    revocation::Revocations,
    telemetry::RequestId,
};
use pki::{
    VerifiedCsr,
    csr::CSR_MAX,
    found::{self, Found, Wanted},
    identity::{DnsName, SpiffeId},
};
use process::{
    error::chain,
    output::{Output, Refused},
};

/// How long `issue` waits for the token when it runs alone.
const ALONE: Duration = Duration::from_secs(30);

/// Arguments of `issue`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// The PEM certificate request; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// The SPIFFE ID in the certificate: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT
    #[arg(long, value_name = "URI", required_unless_present_any = ["dns_name", "ip_address"])]
    spiffe_id: Option<SpiffeId>,
    /// A DNS name, one of those configured for serving certificates; may be repeated
    #[arg(long, value_name = "NAME")]
    dns_name: Vec<DnsName>,
    /// An IP address, one of those configured for serving certificates; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    ip_address: Vec<IpAddr>,
    /// The lifetime, such as 24h [default: the configured one]
    #[arg(long, value_name = "DURATION", value_parser = humantime_serde::re::humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Output file of the chain [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Run alone, even if the configuration names an admin socket; no daemon may have the log open
    #[arg(long)]
    alone: bool,
}

/// Issues one certificate.
///
/// # Errors
/// If the request is rejected, or neither daemon nor token can be reached.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let config = args.config.read()?;
    if let Some(out) = &args.out {
        bundle_dir::check_file(out).context("nothing was issued: --out")?;
    }
    let request = IssueRequest {
        csr: read_csr(&args.csr)?,
        spiffe_id: args.spiffe_id.as_ref().map(ToString::to_string),
        dns_names: args.dns_name.iter().map(ToString::to_string).collect(),
        ip_addresses: args.ip_address.clone(),
        validity_seconds: args.ttl.map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let socket = config.admin.socket.clone().filter(|_| !args.alone);
    let reply = runtime.block_on(async {
        match &socket {
            Some(socket) if socket.exists() => ask(socket, &request).await,
            _ => alone(&config, request).await,
        }
    })?;
    match &args.out {
        None => output.print(&reply, |reply| reply.chain.concat()),
        Some(path) => {
            bundle_dir::write_file(path, reply.chain.concat().as_bytes(), 0o644).with_context(|| {
                format!("the certificate {} was issued, and is lost; name another file by --out", reply.serial)
            })?;
            output.print(&reply, |reply| format!("issued {} to {}\n", reply.serial, path.display()))
        }
    }
}

fn read_csr(path: &Path) -> anyhow::Result<String> {
    let read = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(u64::try_from(CSR_MAX)? + 1).read_to_end(&mut bytes).map(|_| bytes)
    } else {
        process::files::read_input(path, CSR_MAX)
    };
    let bytes = read.with_context(|| {
        format!("{}: the request cannot be read; name a PEM certificate request by --csr", path.display())
    })?;
    if bytes.len() > CSR_MAX {
        bail!("{}: larger than {CSR_MAX} bytes; this is not a certificate request", path.display());
    }
    if let Some(Found { what, remedy }) = found::file(&bytes, &path.display().to_string(), Wanted::Request) {
        bail!("{}: {what}; {remedy}", path.display());
    }
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{}: not text; name a PEM certificate request by --csr", path.display()))?;
    // Before a daemon or a token is asked; the path checks it again.
    VerifiedCsr::from_pem(&text)
        .with_context(|| format!("{}: no request that a certificate is issued for", path.display()))?;
    Ok(text)
}

async fn ask(socket: &Path, request: &IssueRequest) -> anyhow::Result<IssueReply> {
    let unreachable = || {
        format!("the daemon does not answer at {}; start it, or give --alone while no daemon runs", socket.display())
    };
    let client = reqwest::Client::builder().unix_socket(socket).no_proxy().build()?;
    let reply = client.post("http://localhost/issue").json(request).send().await.with_context(unreachable)?;
    if reply.status().is_success() {
        return reply.json().await.with_context(unreachable);
    }
    let failure: IssueFailure = reply.json().await.with_context(unreachable)?;
    bail!("{} (request {})", failure.error, failure.request_id)
}

async fn alone(config: &Config, request: IssueRequest) -> anyhow::Result<IssueReply> {
    process::logging::init(&config.logging)?;
    let (readiness, background) = (Readiness::new(), Background::default());
    let bundle = setup::bundle(config)?;
    let revocations = Revocations::default();
    let authenticator =
        Authenticator::new(&config.auth, &config.ca.trust_domains, &revocations).map_err(|errors| Refused {
            what: "[auth] cannot be used:".to_owned(),
            reasons: errors.iter().map(|error| chain(error)).collect(),
        })?;
    let core = setup::core(config, bundle, authenticator.denylist(), &revocations, &readiness, &background).await?;
    revocation::apply_once(config, &core, &revocations).await?;
    let mut report = readiness.watch();
    let deadline = Instant::now() + ALONE;
    let ready = tokio::time::timeout_at(deadline.into(), report.wait_for(Report::ready));
    // The watch's guard must not outlive this line: a part that changes meanwhile waits for it.
    let is_ready = matches!(ready.await, Ok(Ok(_)));
    let result = if is_ready {
        let uid = nix::unistd::getuid().as_raw();
        operator::perform(&core.ca, uid, &RequestId::random(), request).await.map_err(anyhow::Error::msg)
    } else {
        Err(anyhow::anyhow!("{}", readiness.watch().borrow().to_string().trim_end()))
    };
    background.end(Duration::from_secs(1)).await;
    core.close(Instant::now() + Duration::from_secs(5)).await;
    result
}
