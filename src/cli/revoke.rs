//! `revoke`: revokes certificates and blocks those who obtained them, by changing the state document that all replicas
//! follow. Needs neither a daemon nor a token; the certificates are looked up in the issuance logs.

mod list;
mod select;

use std::{
    io::{BufRead, Write},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use super::configured::ConfigArgs;
use crate::{
    config::Config,
    daemon::{revocation, setup},
    revocation::{
        KeyHash, Settings, StoreError,
        state::{ChangeError, Document, Effect, Order},
        store::update,
    },
};
use pki::{
    CrlTbs,
    crl::{CrlContent, CrlError, CrlIssuer, Reason, SerialNumber, TBS_MAX},
};
use process::{
    clock,
    output::{self, Output},
};
use select::{Affected, Selection, Selector};

/// Number of certificates that are listed before a confirmation.
const SHOWN: usize = 20;

/// Arguments of `revoke`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["list", "release", "unblock"]))]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    selector: Selector,
    /// Why: unspecified, keyCompromise, cACompromise, affiliationChanged, superseded, cessationOfOperation,
    /// certificateHold or privilegeWithdrawn (RFC 5280)
    #[arg(long, value_name = "REASON", default_value_t = Reason::Unspecified)]
    reason: Reason,
    /// Deny further certificates to what is selected, until --unblock. Default with --identity, --namespace, --node or
    /// --key alone
    #[arg(long, conflicts_with_all = ["no_block", "what"])]
    block: bool,
    /// End the block after this time, such as 24h
    #[arg(long, value_name = "DURATION", conflicts_with_all = ["no_block", "what"],
          value_parser = humantime_serde::re::humantime::parse_duration)]
    block_for: Option<Duration>,
    /// Do not deny further certificates
    #[arg(long)]
    no_block: bool,
    /// Only deny further certificates; those that exist stay valid
    #[arg(long, conflicts_with_all = ["no_block", "what"])]
    no_revoke: bool,
    /// List what would be revoked and blocked, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Show what is revoked and blocked
    #[arg(long)]
    list: bool,
    /// Release the selected certificates, which were revoked with the reason certificateHold
    #[arg(long)]
    release: bool,
    /// Lift the block with this number, as --list shows it
    #[arg(long, value_name = "NUMBER")]
    unblock: Option<u64>,
}

/// What a command did or would do.
#[derive(Debug, Serialize)]
struct Report<'a> {
    dry_run: bool,
    reason: Reason,
    certificates: &'a [Affected],
    block: Option<String>,
    /// Revision of the state document; none without a change.
    revision: Option<u64>,
}

/// The state document cannot be changed as requested.
#[derive(Debug, thiserror::Error)]
enum RevokeError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Crl(#[from] CrlError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs `revoke`.
///
/// # Errors
/// If nothing matches, the logs or the store cannot be read, or the change is not possible.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let config = args.config.read()?;
    let settings = config.revocation.clone().with_context(|| {
        format!(
            "{}: [revocation] is missing; add it with a store (docs/REVOCATION.md) and restart every replica",
            args.config.path().display()
        )
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let change = Change { config, settings, output, runtime };
    if args.list {
        return change.list();
    }
    if let Some(id) = args.unblock {
        return change.unblock(&args, id);
    }
    ensure!(
        !args.selector.is_empty(),
        "nothing is selected; name certificates by --serial, --identity, --namespace, --node, --key, --since or --until"
    );
    if args.release { change.release(&args) } else { change.revoke(&args) }
}

struct Change {
    config: Config,
    settings: Settings,
    output: Output,
    runtime: tokio::runtime::Runtime,
}

impl Change {
    fn list(&self) -> anyhow::Result<()> {
        let document = self.read()?;
        self.output.print(&document, |document| list::text(document, clock::now()))
    }

    fn unblock(&self, args: &Args, id: u64) -> anyhow::Result<()> {
        let document = self.read()?;
        let block = document.blocks.iter().find(|block| block.id == id).ok_or(ChangeError::NoBlock(id))?;
        let selector = block.selector.to_string();
        let order = Order { selector: selector.clone(), ..self.order(args) };
        if args.dry_run {
            return self.print(&Report::block(args, Some(selector), None), "lift the block");
        }
        let unblock = |document: &mut Document| Ok::<_, RevokeError>(document.unblock(&order, id)?);
        let document = self.update(unblock)?.0;
        self.print(&Report::block(args, Some(selector), Some(document.revision)), "lifted the block")
    }

    fn release(&self, args: &Args) -> anyhow::Result<()> {
        let held = self.read()?.on_hold();
        let serials: Vec<SerialNumber> = if args.selector.serials().is_empty() {
            let found = args.selector.find(&self.config, None)?;
            found.certificates.iter().map(|found| found.serial.clone()).filter(|serial| held.contains(serial)).collect()
        } else {
            args.selector.serials().to_vec()
        };
        let affected: Vec<Affected> = serials.iter().map(|serial| Affected::unknown(serial, None)).collect();
        ensure!(
            !affected.is_empty(),
            "no selected certificate is on hold; `istio-hsm-ca revoke --list` shows those that are"
        );
        let report = |revision| Report { revision, ..Report::of(args, &affected, None) };
        if args.dry_run {
            return self.print(&report(None), "release");
        }
        self.confirm(args, &format!("release {}", certificates(affected.len())), &affected)?;
        let order = self.order(args);
        let release = |document: &mut Document| Ok::<_, RevokeError>(document.release(&order, &serials)?);
        let document = self.update(release)?.0;
        self.print(&report(Some(document.revision)), "released")
    }

    fn revoke(&self, args: &Args) -> anyhow::Result<()> {
        let bundle = setup::bundle(&self.config)?;
        let issuer = bundle.issuer();
        let ca_key = KeyHash(issuer.public_key().fingerprint());
        let block = self.block(args)?;
        let found = match args.no_revoke {
            true => Selection::default(),
            false => args.selector.find(&self.config, Some(ca_key))?,
        };
        for note in &found.notes {
            self.output.warn(note);
        }
        let affected = found.certificates;
        if affected.is_empty() && block.is_none() {
            bail!(
                "no certificate that is still valid matches in {}; name the logs of the other replicas by --log, or a \
                 certificate that no log has by --serial and --expires",
                found.logs
            );
        }
        let shown = block.as_ref().map(|(selector, _)| selector.to_string());
        if args.dry_run {
            return self.print(&Report::of(args, &affected, shown), "revoke");
        }
        let what = match &shown {
            Some(block) => format!("revoke {} and block {block}", certificates(affected.len())),
            None => format!("revoke {}", certificates(affected.len())),
        };
        self.confirm(args, &what, &affected)?;
        let order = self.order(args);
        let revoked: Vec<_> = affected.iter().map(|affected| affected.certificate(ca_key)).collect();
        let crl_issuer = CrlIssuer::from_certificate(issuer.certificate());
        let (document, (effect, bytes)) = self.update(|document: &mut Document| {
            document.prune(order.at, self.settings.refresh_after());
            let effect = document.revoke(&order, &revoked, block.clone())?;
            let bytes = match &crl_issuer {
                Ok(issuer) => size(issuer, document, ca_key, order.at, self.settings.lifetime)?,
                // The daemon reports it; the revoked certificates are refused at the endpoint all the same.
                Err(_) => 0,
            };
            Ok::<(Effect, usize), RevokeError>((effect, bytes))
        })?;
        if let Err(error) = crl_issuer {
            self.output.warn(&format!("no CRL can be published: {error}"));
        }
        if bytes > TBS_MAX / 2 {
            let entries = document.entries(ca_key.0).len();
            let fit = entries * TBS_MAX / bytes;
            self.output.warn(&format!(
                "the CRL has {bytes} of {TBS_MAX} bytes; about {} more certificates can be revoked",
                fit.saturating_sub(entries)
            ));
        }
        let already = effect.already.len();
        if already > 0 {
            self.output.note(&format!("{} revoked already", certificates(already)));
        }
        let report = Report { revision: Some(document.revision), ..Report::of(args, &affected, shown) };
        self.print(&report, "revoked")
    }

    /// The block that the arguments ask for.
    fn block(
        &self,
        args: &Args,
    ) -> anyhow::Result<Option<(crate::revocation::block::BlockSelector, Option<SystemTime>)>> {
        let wanted = args.block || args.block_for.is_some() || args.no_revoke;
        if args.no_block || (!wanted && !args.selector.blocks_by_default()) {
            return Ok(None);
        }
        let until = args.block_for.map(|time| clock::now() + time);
        Ok(Some((args.selector.block()?, until)))
    }

    fn order(&self, args: &Args) -> Order {
        Order { by: operator(), at: clock::now(), selector: args.selector.to_string(), reason: args.reason }
    }

    fn read(&self) -> anyhow::Result<Document> {
        self.runtime.block_on(async {
            let store = revocation::connect(&self.config, &self.settings).await?;
            Ok(store.read().await?.document)
        })
    }

    fn update<T>(&self, change: impl FnMut(&mut Document) -> Result<T, RevokeError>) -> anyhow::Result<(Document, T)> {
        self.runtime.block_on(async {
            let store = revocation::connect(&self.config, &self.settings).await?;
            Ok(update(&*store, change).await?)
        })
    }

    /// Asks at a terminal; without one, `--yes` is needed.
    fn confirm(&self, args: &Args, what: &str, affected: &[Affected]) -> anyhow::Result<()> {
        if args.yes {
            return Ok(());
        }
        ensure!(
            output::interactive(),
            "nothing was changed, because there is no terminal to ask at; give --yes to {what}"
        );
        let mut err = std::io::stderr().lock();
        for one in affected.iter().take(SHOWN) {
            writeln!(err, "{}", one.row())?;
        }
        if affected.len() > SHOWN {
            writeln!(err, "... and {} more; --dry-run lists all", affected.len() - SHOWN)?;
        }
        write!(err, "{what}? Type yes: ")?;
        err.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        ensure!(answer.trim() == "yes", "nothing was changed");
        Ok(())
    }

    fn print(&self, report: &Report<'_>, done: &str) -> anyhow::Result<()> {
        self.output.print(report, |report| {
            let mut text: String = report.certificates.iter().map(|affected| affected.row() + "\n").collect();
            let would = if report.dry_run { "would " } else { "" };
            let count = certificates(report.certificates.len());
            match (&report.block, report.certificates) {
                (Some(block), []) if done.ends_with("block") => text.push_str(&format!("{would}{done} {block}\n")),
                (Some(block), _) => text.push_str(&format!("{would}{done} {count}; {would}block {block}\n")),
                (None, _) => text.push_str(&format!("{would}{done} {count}\n")),
            }
            if let Some(revision) = report.revision {
                text.push_str(&format!(
                    "revision {revision}; every replica that reaches the store applies it at once\n"
                ));
            }
            text
        })
    }
}

impl<'a> Report<'a> {
    fn of(args: &Args, certificates: &'a [Affected], block: Option<String>) -> Self {
        Self { dry_run: args.dry_run, reason: args.reason, certificates, block, revision: None }
    }

    fn block(args: &Args, block: Option<String>, revision: Option<u64>) -> Self {
        Self { revision, ..Self::of(args, &[], block) }
    }
}

/// Size of the CRL that the document leads to.
fn size(
    issuer: &CrlIssuer,
    document: &Document,
    ca_key: KeyHash,
    now: SystemTime,
    lifetime: Duration,
) -> Result<usize, CrlError> {
    use crate::revocation::state::{seconds, time};
    let this_update = time(seconds(now));
    let content = CrlContent {
        number: seconds(now).max(1),
        this_update,
        next_update: this_update + lifetime,
        entries: document.entries(ca_key.0),
    };
    CrlTbs::build(issuer.clone(), content).map(|tbs| tbs.der().len())
}

fn certificates(count: usize) -> String {
    match count {
        1 => "1 certificate".to_owned(),
        count => format!("{count} certificates"),
    }
}

/// The user who runs the command, and where.
fn operator() -> String {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| "unknown host".to_owned());
    format!("{} (uid {uid}) at {host}", name.unwrap_or_else(|| "unknown user".to_owned()))
}

/// Parses a directory of a log.
fn log_directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a directory is needed".to_owned()) } else { Ok(text.into()) }
}
