//! The workloads of `bench endpoint` and their JWTs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::EndpointArguments;
use crate::agent::{TokenIssuer, Workload};

/// The workloads and their JWTs: minted, or read from files and used in turn.
pub(super) fn tokens(arguments: &EndpointArguments, wanted: usize) -> Result<Vec<(Workload, String)>> {
    let read_tokens = arguments.token_directory.as_deref().map(read_tokens).transpose()?;
    if let Some(tokens) = read_tokens {
        return Ok(tokens.iter().cycle().take(wanted).cloned().collect());
    }
    let key = arguments.token_key.as_deref().context("give --token-key or --token-directory")?;
    let issuer = arguments.issuer.clone().context("--token-key needs --issuer")?;
    let issuer = TokenIssuer::new(&read(key)?, issuer, arguments.audience.clone())
        .with_context(|| format!("--token-key {}", key.display()))?;
    // The JWTs must not expire during the run.
    let lifetime = Duration::from_secs_f64(arguments.seconds + arguments.warm_up) + Duration::from_secs(3600);
    let mint = |number: usize| {
        let workload = Workload { namespace: arguments.namespace.clone(), service_account: format!("w{number}") };
        let token = issuer.mint(&workload, process::clock::now(), lifetime)?;
        Ok((workload, token))
    };
    (0..wanted).map(mint).collect()
}

/// Reads a directory of JWTs. The subject is read without verification, since it only determines the requested
/// identity.
fn read_tokens(directory: &Path) -> Result<Vec<(Workload, String)>> {
    let listing = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    ensure!(!paths.is_empty(), "{} holds no token", directory.display());
    let one = |path: &PathBuf| {
        let token = String::from_utf8(read(path)?).map_err(|_| anyhow::anyhow!("{} is not text", path.display()))?;
        let token = token.trim().to_owned();
        let workload = subject(&token).with_context(|| format!("{} is no service-account token", path.display()))?;
        Ok((workload, token))
    };
    paths.iter().map(one).collect()
}

fn subject(token: &str) -> Option<Workload> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let (namespace, service_account) = claims.sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some(Workload { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}; check its path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_subject_is_read() {
        let key = TokenIssuer::generate_key().unwrap();
        let issuer = TokenIssuer::new(key.as_bytes(), "https://i".into(), "istio-ca".into()).unwrap();
        let workload = Workload { namespace: "demo".into(), service_account: "httpbin".into() };
        let token = issuer.mint(&workload, process::clock::now(), Duration::from_secs(60)).unwrap();
        assert_eq!(subject(&token), Some(workload));
        for bad in ["", "a.b.c", "..", "a.e30.c"] {
            assert_eq!(subject(bad), None, "{bad}");
        }
    }
}
