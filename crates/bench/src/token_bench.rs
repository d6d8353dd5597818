//! `bench token`: signing speed of a token by key and number of sessions.
//!
//! Rounds with different numbers of sessions alternate, so that noise does not affect only one of them.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use der::{DecodePem, Encode};
use indicatif::ProgressBar;
use serde::Serialize;
use x509_cert::Certificate;

use super::{positive, progress_bar, report::median};
use crate::speed::{self, Share, SpeedKey};
use pki::{KeyAlgorithm, PublicKey};
use process::output::Output;
use token::{Module, Token, TokenUri, key::CANARY_KEY_LABEL, pin};

/// Arguments of `bench token`.
#[derive(Args, Debug)]
pub struct TokenArguments {
    /// The token
    #[arg(long, value_name = "PKCS11_URI")]
    token: TokenUri,
    #[command(flatten)]
    choice: TokenChoice,
    /// Numbers of sessions, each measured separately
    #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u16).range(1..=256))]
    sessions: Vec<u16>,
    /// Number of rounds, of which the median is reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Duration of each round in seconds
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    seconds: f64,
}

/// Login and choice of keys.
#[derive(Args, Clone, Debug)]
pub struct TokenChoice {
    /// The PIN file [default: the URI's pin-source]
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    /// A CA certificate whose key signs; may be repeated [default without --label: the canary key]
    #[arg(long, value_name = "FILE")]
    ca_cert: Vec<PathBuf>,
    /// The label of a log, canary or CA key that signs; may be repeated
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
}

/// Parameters of a measurement.
pub(super) struct Plan<'a> {
    pub token: &'a TokenUri,
    pub choice: &'a TokenChoice,
    pub sessions: &'a [u16],
    pub rounds: u16,
    pub round: Duration,
}

/// Result for one key and number of sessions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// The key's algorithm.
    pub algorithm: String,
    /// How the key was selected.
    pub key: String,
    /// Concurrent sessions.
    pub sessions: u16,
    /// Signatures per second, median of the rounds.
    pub signatures_per_second: f64,
    /// CPU time of this process per signature in microseconds, median of the rounds.
    pub cpu_us_per_signature: f64,
}

/// Measures and prints the result.
///
/// # Errors
/// If the token cannot be opened, a key does not exist, or a signature fails.
pub(super) fn run(arguments: &TokenArguments, output: Output) -> Result<()> {
    let rows = measure(&Plan {
        token: &arguments.token,
        choice: &arguments.choice,
        sessions: &arguments.sessions,
        rounds: arguments.rounds,
        round: Duration::from_secs_f64(arguments.seconds),
    })?;
    output.print(&rows, |rows| text(rows))
}

fn text(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let Row { algorithm, key, sessions, signatures_per_second: rate, cpu_us_per_signature: cpu } = row;
        format!("{algorithm:<9}  {sessions:>8}  {rate:>12.0}  {cpu:>11.1}  {key}\n")
    };
    "algorithm  sessions  signatures/s  CPU us each  key\n".to_owned() + &rows.iter().map(line).collect::<String>()
}

/// Measures each key with each number of sessions.
///
/// # Errors
/// If the token cannot be opened, a key does not exist, or a signature fails.
pub(super) fn measure(plan: &Plan<'_>) -> Result<Vec<Row>> {
    let path =
        plan.token.module_path().context("the token URI names no module; add ?module-path=/path/to/module.so")?;
    let pin_file = plan.choice.pin_file.as_deref().or(plan.token.pin_source());
    let pin = pin::read(pin_file.context("no PIN; give --pin-file, or pin-source=file:/path in the token URI")?)?;
    let module = Module::load_with(path, plan.token.library_parameters())?;
    let token = module.find_token(plan.token)?;
    // Kept open to the end: the login lasts while the process has a session.
    let session = token.open_session(false)?;
    token.login(&session, &pin)?;
    let rows = all_keys(&token, plan);
    drop(session);
    module.finalize()?;
    rows
}

fn all_keys(token: &Token, plan: &Plan<'_>) -> Result<Vec<Row>> {
    let keys = keys(token, plan.choice)?;
    let rounds = keys.len() * plan.sessions.len() * usize::from(plan.rounds);
    let bar = progress_bar(u64::try_from(rounds)?)?;
    let mut rows = Vec::new();
    for (name, key) in &keys {
        rows.extend(one_key(token, name, key, plan, &bar)?);
    }
    bar.finish_and_clear();
    Ok(rows)
}

fn keys(token: &Token, choice: &TokenChoice) -> Result<Vec<(String, SpeedKey)>> {
    let mut keys = Vec::new();
    for path in &choice.ca_cert {
        let named = || path.display().to_string();
        let pem =
            process::files::read_input(path, pki::pem::TEXT_MAX).with_context(|| format!("cannot read {}", named()))?;
        let certificate = Certificate::from_pem(&pem)
            .with_context(|| format!("{} is not a certificate; give the CA's, in PEM", named()))?;
        let spki = certificate.tbs_certificate().subject_public_key_info().to_der()?;
        let public_key = PublicKey::from_spki_der(&spki).with_context(named)?;
        keys.push((named(), SpeedKey::of(public_key)));
    }
    let canary = [CANARY_KEY_LABEL.to_owned()];
    let labels = if keys.is_empty() && choice.label.is_empty() { &canary } else { choice.label.as_slice() };
    for label in labels {
        keys.push((label.clone(), SpeedKey::labelled(token, label)?));
    }
    Ok(keys)
}

fn one_key(token: &Token, name: &str, key: &SpeedKey, plan: &Plan<'_>, bar: &ProgressBar) -> Result<Vec<Row>> {
    let mut figures = vec![(Vec::new(), Vec::new()); plan.sessions.len()];
    for _ in 0..plan.rounds {
        for (&sessions, (rates, costs)) in plan.sessions.iter().zip(&mut figures) {
            let (rate, cost) = figures_of(&speed::round(token, key, sessions, plan.round)?)?;
            rates.push(rate);
            costs.push(cost);
            bar.inc(1);
        }
    }
    let row = |(&sessions, (rates, costs)): (&u16, (Vec<f64>, Vec<f64>))| {
        Ok(Row {
            algorithm: algorithm(key.public_key().algorithm()),
            key: name.to_owned(),
            sessions,
            signatures_per_second: median(rates).context("no round was measured")?,
            cpu_us_per_signature: median(costs).context("no round was measured")?,
        })
    };
    plan.sessions.iter().zip(figures).map(row).collect()
}

/// Signatures per second of all sessions together, and CPU microseconds per signature.
fn figures_of(shares: &[Share]) -> Result<(f64, f64)> {
    let signatures: f64 = shares.iter().map(|share| f64::from(share.signatures)).sum();
    ensure!(signatures > 0.0, "no signature was made within a round; give a larger --seconds");
    let rate = shares.iter().map(|share| f64::from(share.signatures) / share.wall.as_secs_f64()).sum();
    let cpu: f64 = shares.iter().map(|share| share.cpu.as_secs_f64()).sum();
    Ok((rate, cpu * 1e6 / signatures))
}

fn algorithm(algorithm: KeyAlgorithm) -> String {
    match algorithm {
        KeyAlgorithm::Ed25519 => "Ed25519".into(),
        KeyAlgorithm::P256 => "P-256".into(),
        KeyAlgorithm::P384 => "P-384".into(),
        KeyAlgorithm::Rsa { bits } => format!("RSA-{bits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_of_a_round_add_up() {
        let share =
            |signatures, cpu| Share { signatures, wall: Duration::from_millis(500), cpu: Duration::from_millis(cpu) };
        let (rate, cost) = figures_of(&[share(100, 100), share(300, 300)]).unwrap();
        assert!((rate - 800.0).abs() < 1e-9, "{rate}");
        assert!((cost - 1000.0).abs() < 1e-9, "{cost}");
        assert!(figures_of(&[share(0, 1)]).is_err());
    }
}
