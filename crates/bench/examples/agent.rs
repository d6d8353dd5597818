//! Obtains a workload certificate like an Istio agent: a new key, a CSR with one critical SPIFFE URI, and the service
//! account's JWT or the previous certificate as credentials. Used by `make demo`.
//!
//! Writes key.pem, cert-chain.pem (without the roots) and root-cert.pem into `--out`; `--certificate` accepts such a
//! directory for renewal by mTLS.

use std::{fs, io::Write, net::SocketAddr, os::unix::fs::OpenOptionsExt, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use istio_hsm_ca_bench::agent::{KeyKind, Tls, WorkloadKey, connect, create_certificate};

#[derive(Parser)]
struct Arguments {
    /// The CA, as https://IP:PORT
    #[arg(long)]
    address: String,
    /// The expected name in the CA's serving certificate
    #[arg(long, default_value = "istiod.istio-system.svc")]
    server_name: String,
    /// The roots of the CA's serving certificate
    #[arg(long)]
    roots: PathBuf,
    /// The workload's SPIFFE ID in the CSR
    #[arg(long)]
    identity: String,
    /// A file with the service account's JWT
    #[arg(long, required_unless_present = "certificate")]
    token_file: Option<PathBuf>,
    /// A directory with the previous cert-chain.pem and key.pem, used for mTLS
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// The header `clusterid`
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    /// Type of the new key
    #[arg(long, value_enum, default_value = "rsa-2048")]
    key: KeyKind,
    /// The requested lifetime in seconds
    #[arg(long, default_value_t = 86_400)]
    lifetime: i64,
    /// Output directory of key and certificates
    #[arg(long)]
    out: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let address = arguments.address.strip_prefix("https://").context("--address begins with https://")?;
    let address: SocketAddr = address.parse().context("--address ends with IP:PORT")?;
    let token = match &arguments.token_file {
        Some(path) => Some(String::from_utf8(read(path)?).context("the token is not text")?.trim().to_owned()),
        None => None,
    };
    let previous = match &arguments.certificate {
        Some(directory) => Some((read(&directory.join("cert-chain.pem"))?, read(&directory.join("key.pem"))?)),
        None => None,
    };
    let client = previous.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
    let tls = Tls::new(&read(&arguments.roots)?, &arguments.server_name, client)?;

    let key = WorkloadKey::generate(arguments.key)?;
    let request = key.request(&arguments.identity)?;
    let channel = connect(address, &tls).await?;
    let reply = create_certificate(channel, token.as_deref(), &arguments.cluster, request, arguments.lifetime).await;
    let chain = reply.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))?;
    // istio-agent and ztunnel treat a reply of one element as an error.
    let [issued @ .., roots] = chain.as_slice() else { bail!("the reply is empty") };
    if issued.is_empty() {
        bail!("the reply holds no root");
    }

    fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let mut options = fs::OpenOptions::new();
    let mut key_file =
        options.write(true).create(true).truncate(true).mode(0o600).open(arguments.out.join("key.pem"))?;
    key_file.write_all(key.pem()?.as_bytes())?;
    fs::write(arguments.out.join("cert-chain.pem"), issued.concat())?;
    fs::write(arguments.out.join("root-cert.pem"), roots)?;
    println!("{} certificates and the roots in {}", issued.len(), arguments.out.display());
    Ok(())
}
