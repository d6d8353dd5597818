//! Creates a JWT issuer in a directory (key and JWKS) and a workload's JWT, in the form of Kubernetes' projected
//! tokens, for trying the CA without a cluster. Used by `make demo`.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use istio_hsm_ca_bench::agent::{TokenIssuer, Workload};

#[derive(Parser)]
struct Arguments {
    /// Directory of the issuer's key.pem and jwks.json, created if missing
    #[arg(long)]
    directory: PathBuf,
    /// The issuer's name, the claim `iss`
    #[arg(long)]
    issuer: String,
    /// The claim `aud`
    #[arg(long, default_value = "istio-ca")]
    audience: String,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    service_account: String,
    /// Lifetime of the JWT in seconds
    #[arg(long, default_value_t = 3600)]
    lifetime: u64,
    /// Output file of the JWT, readable by its owner only
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.directory)
        .with_context(|| format!("cannot make {}", arguments.directory.display()))?;
    let key_file = arguments.directory.join("key.pem");
    if !key_file.exists() {
        write_private(&key_file, TokenIssuer::generate_key()?.as_bytes())?;
    }
    let key = fs::read(&key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
    let issuer = TokenIssuer::new(&key, arguments.issuer, arguments.audience)?;
    let key_set = arguments.directory.join("jwks.json");
    fs::write(&key_set, serde_json::to_vec_pretty(&issuer.key_set())?)
        .with_context(|| format!("cannot write {}", key_set.display()))?;

    let workload = Workload { namespace: arguments.namespace, service_account: arguments.service_account };
    let token = issuer.mint(&workload, process::clock::now(), Duration::from_secs(arguments.lifetime))?;
    write_private(&arguments.out, token.as_bytes())
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).with_context(|| format!("cannot write {}", path.display()))
}
