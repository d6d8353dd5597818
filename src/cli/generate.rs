//! `generate`: generates the CA key in the token, with a self-signed root or a CSR for the root's owner.
//!
//! All checks run before the key is generated. Nothing that exists is overwritten, neither a key nor a file; an error
//! after the key was generated reports what exists and what to do.

mod request;
mod root;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::token::{Opened, TokenArgs, WeaknessArgs, label_problem};
use pki::{KeyAlgorithm, profile::ORGANIZATION_MAX, request::Subject};
use process::output::Output;
use token::{
    Session,
    generate::{self, Generated, ServiceKey},
    key::Accepted,
};

/// Lifetime of Istio's own self-signed root in days (CITADEL_SELF_SIGNED_CA_CERT_TTL).
const DAYS: u16 = 3650;
/// Maximum lifetime of a root in days: thirty years.
const DAYS_MAX: i64 = 10_950;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("form").required(true).args(["self_signed", "csr", "log_key"])))]
pub struct Args {
    #[command(flatten)]
    token: TokenArgs,
    /// The key's type
    #[arg(long, value_enum, required_unless_present = "log_key", conflicts_with = "log_key")]
    algorithm: Option<Algorithm>,
    /// CKA_LABEL of the key's objects
    #[arg(long, default_value = "istio-ca")]
    label: String,
    /// Create a self-signed root, like Istio's own CA
    #[arg(long, requires_all = ["organization", "bundle", "log"])]
    self_signed: bool,
    /// The organization (O) in the root's subject
    #[arg(long, value_name = "NAME", requires = "self_signed")]
    organization: Option<String>,
    /// The root's lifetime in days [default: 3650]
    #[arg(long, value_name = "NUMBER", requires = "self_signed", value_parser = clap::value_parser!(u16).range(1..=DAYS_MAX))]
    days: Option<u16>,
    /// Directory for the root's public files and the receipt; `serve` reads them from there
    #[arg(long, value_name = "DIR", requires = "self_signed")]
    bundle: Option<PathBuf>,
    /// The issuance log's directory, the daemon's own: the root is recorded there before it is signed
    #[arg(long, value_name = "DIR", requires = "self_signed")]
    log: Option<PathBuf>,
    /// The origin of the log, as configured by `[log]` origin [default: HOSTNAME/istio-hsm-ca]
    #[arg(long, value_name = "NAME", requires = "self_signed")]
    log_origin: Option<String>,
    /// Write a certificate request for the root's owner to sign; `install` installs the certificate
    #[arg(long, value_name = "FILE", requires = "subject")]
    csr: Option<PathBuf>,
    /// The requested subject: O=My Company,CN=My Mesh CA, in the order of the certificate
    #[arg(long, value_name = "NAME", requires = "csr")]
    subject: Option<Subject>,
    /// Make no CA key but the log key (Ed25519), in the token that `[log]` token names
    #[arg(long)]
    log_key: bool,
    #[command(flatten)]
    weaknesses: WeaknessArgs,
}

/// Supported types of generated keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Algorithm {
    Ed25519,
    P256,
    P384,
    #[value(name = "rsa-2048")]
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    #[value(name = "rsa-3072")]
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    #[value(name = "rsa-4096")]
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

impl From<Algorithm> for KeyAlgorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Ed25519 => Self::Ed25519,
            Algorithm::P256 => Self::P256,
            Algorithm::P384 => Self::P384,
            Algorithm::Rsa2048 => Self::Rsa { bits: 2048 },
            Algorithm::Rsa3072 => Self::Rsa { bits: 3072 },
            Algorithm::Rsa4096 => Self::Rsa { bits: 4096 },
        }
    }
}

/// Generates the key.
///
/// # Errors
/// If a check fails, or the token fails.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    if let Some(problem) = label_problem(&args.label) {
        bail!(problem);
    }
    // The parser asks for a type unless it is about the log key.
    let Some(algorithm) = args.algorithm else { return log_key(&args.token, output) };
    let accepted = args.weaknesses.accepted();
    let key = Key { token: &args.token, algorithm: algorithm.into(), label: &args.label, accepted };
    match (args.organization, args.bundle, args.log, args.csr, args.subject) {
        (Some(organization), Some(bundle), Some(log), None, None) => {
            let length = organization.chars().count();
            if length == 0 || length > ORGANIZATION_MAX || organization.chars().any(char::is_control) {
                bail!("--organization must have 1 to {ORGANIZATION_MAX} characters, none of them a control character");
            }
            let origin = args.log_origin.unwrap_or_else(process::default_log_origin);
            let days = args.days.unwrap_or(DAYS);
            root::run(&key, root::Root { organization, days, bundle, log, origin }, output)
        }
        (None, None, None, Some(file), Some(subject)) => request::run(&key, &file, &subject, output),
        // The parser rejects all other combinations.
        _ => bail!("give --self-signed with --organization, --bundle and --log, or --csr with --subject"),
    }
}

/// Makes the log key alone.
fn log_key(token: &TokenArgs, output: Output) -> anyhow::Result<()> {
    let opened = token.open()?;
    let session = opened.login(true)?;
    let key = generate::log_key(&opened.token, &session).context("the log key was not made")?;
    let label = &opened.token.info().label;
    output.print(&key, |key| match key {
        ServiceKey::Made(key) => format!("the log key {} was made in the token {label}\n", key.raw),
        ServiceKey::Present(key) => format!("the log key {} is in the token {label} already\n", key.raw),
        ServiceKey::Unavailable { reason } => format!("the token {label} cannot have a log key: {reason}\n"),
    })
}

/// The key that is to be made.
struct Key<'a> {
    token: &'a TokenArgs,
    algorithm: KeyAlgorithm,
    label: &'a str,
    accepted: Accepted,
}

impl Key<'_> {
    fn make(&self, opened: &Opened, session: &Session) -> anyhow::Result<Generated> {
        Ok(generate::run(&opened.token, session, self.algorithm, self.label, &self.accepted)?)
    }
}

/// What exists, and what to do, after a failure later than the generation of the key.
pub(super) fn left_behind(made: &Generated) -> String {
    format!(
        "the key `{}` (CKA_ID {}) was made in the token {} and stays there without a certificate; fix the cause, then \
         delete the key by the vendor's tool and run this again, or run it again with another --label",
        made.label, made.id, made.token.label
    )
}
