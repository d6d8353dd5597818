//! `check`: reports everything that would prevent `serve` from working, with remedies.
//!
//! Changes nothing except this: a PIN that a token rejects is recorded as `serve` records it, so that neither tries it
//! again. Each token's library is loaded in a separate process, as in `serve`, since it may crash, hang, or need its
//! own environment.

mod clusters;
mod crls;
mod finding;
mod local;
mod network;
mod process;
mod token;

use super::configured::ConfigArgs;
use crate::{
    config::{Config, ConfigError},
    daemon::preparation::Preparation,
};
use ::process::output::Output;
use finding::{Finding, Findings, Level};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Look at one token in this very process and print what was found; only `check` itself does so
    #[arg(long, value_name = "TOKEN", hide = true)]
    probe: Option<String>,
}

/// Runs all checks.
///
/// # Errors
/// If something would prevent `serve` from working; the findings have been printed then.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    if let Some(name) = &args.probe {
        return process::answer(&args.config.read()?, name);
    }
    let findings = match args.config.configuration() {
        Ok(config) => all(&config, args.config.path().display().to_string())?,
        Err(error) => configuration(&error),
    };
    output.print(&findings, |findings| text(findings))?;
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
    match errors {
        0 => Ok(()),
        1 => anyhow::bail!("`serve` would not work for 1 reason; fix it and check again"),
        more => anyhow::bail!("`serve` would not work for {more} reasons; fix them and check again"),
    }
}

/// Errors in the configuration itself, which prevent all other checks.
fn configuration(error: &ConfigError) -> Vec<Finding> {
    let mut found = Findings::about("configuration");
    match error {
        ConfigError::File { .. } => found.failed(error, "name the configuration by --config and make it readable"),
        ConfigError::Problems { path, problems } => {
            for problem in problems {
                let problem = problem.to_string();
                found.error(problem, format!("fix it in {}", path.display()));
            }
        }
        ConfigError::TooLarge(_) | ConfigError::Unlike { .. } => {
            found.failed(error, "name the configuration by --config")
        }
    }
    found.into_vec()
}

fn all(config: &Config, path: String) -> anyhow::Result<Vec<Finding>> {
    let mut found = Findings::about("configuration");
    found.ok(path);
    let mut findings = found.into_vec();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // By field, so that a new step of the preparation is reported here too.
    let Preparation {
        admin,
        authenticator,
        bundle,
        clusters,
        endpoint,
        log,
        operator_socket,
        status_page,
        revocations: _,
    } = runtime.block_on(Preparation::run(config));
    findings.extend(local::bundle(config, &bundle));
    for token in &config.tokens {
        findings.extend(process::token(token)?);
    }
    let (log, known) = local::log(config, log);
    findings.extend(log);
    findings.extend(local::clock(config, known));
    findings.extend(network::addresses(config, &endpoint, &admin, &status_page, &operator_socket));
    findings.extend(network::tls(config));
    findings.extend(network::serving(config));
    findings.extend(bundle.as_ref().map(|bundle| local::rehearsal(config, bundle)).unwrap_or_default());
    findings.extend(network::callers(config, authenticator, &runtime));
    findings.extend(bundle.as_ref().map(|bundle| crls::crls(config, bundle)).unwrap_or_default());
    findings.extend(runtime.block_on(clusters::clusters(config, clusters, bundle.ok().as_ref())));
    runtime.shutdown_background();
    Ok(findings)
}

fn text(findings: &[Finding]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let widest = findings.iter().map(|finding| finding.part.chars().count()).max().unwrap_or_default();
    for Finding { part, level, text: what, remedy } in findings {
        let _ = writeln!(text, "{:7}  {part:widest$}  {what}", level.as_str());
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "{:7}  {:widest$}  -> {remedy}", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_under_its_finding() {
        let mut found = Findings::about("log");
        found.ok("fine");
        found.error("bad", "fix it");
        assert_eq!(text(&found.into_vec()), "ok       log  fine\nerror    log  bad\n              -> fix it\n");
    }
}
