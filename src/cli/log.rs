//! `istio-hsm-ca log`: verifies and shows the issuance log, and proves inclusion, without the daemon or a token.

mod rows;

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Subcommand;
use serde::Serialize;

use self::rows::{ceremony_row, crl_row, heading, outcome, printable, revocation_row, row};
use super::configured::ConfigArgs;
use audit_log::{
    Confirmation,
    checkpoint::VerifierKeys,
    prove,
    record::{Line, OutcomeLine, hex},
    show::{self, Books, Entry, Filter, Follow, Shown},
    tree::leaf_hash,
    verify::{self, Report},
};
use pki::pem;
use process::{
    clock,
    files::read_input,
    output::{Output, Refused},
};

/// Interval at which `show --follow` checks for new lines.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// Maximum size of files that are read as a whole: a checkpoint, a list of keys, a certificate.
const FILE_MAX: usize = 1 << 20;

/// Where the log is.
#[derive(Debug, clap::Args)]
pub struct Location {
    /// The log's directory, as in the configuration of `serve`.
    #[arg(long, value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Verify, show and prove what is in the issuance log.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Check whether exactly this certificate was recorded in the log before it was signed.
    CheckCertificate {
        /// The log.
        #[command(flatten)]
        log: Location,
        /// The certificate, PEM (its first certificate) or DER.
        #[arg(value_name = "FILE")]
        certificate: PathBuf,
    },
    /// Record that the clock is right although the log's newest record is in the future, or long ago, so that `serve`
    /// issues again. The times of the log's records stay as they are.
    ConfirmClock {
        /// The configuration that `serve` uses.
        #[command(flatten)]
        config: Box<ConfigArgs>,
        /// Why the record's time is wrong, or why there is none since.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// A proof that the certificate with a serial number is in the log, which others can check (c2sp.org/tlog-proof).
    Prove {
        /// The log.
        #[command(flatten)]
        log: Location,
        /// The serial number in hexadecimal.
        #[arg(long, value_name = "HEX")]
        serial: String,
    },
    /// Show the recorded certificates and their outcomes.
    Show(ShowArgs),
    /// Verify the log: its lines, its tree, its checkpoints and their signatures.
    Verify(VerifyArgs),
}

/// What `show` shows.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    log: Location,
    /// Not before this time (2026-01-31T23:59:59Z, or a date), UTC.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Before this time, UTC.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// The caller, or a name in the certificate.
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// The serial number in hexadecimal.
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Show only the last entries, up to this number.
    #[arg(long, value_name = "COUNT", conflicts_with = "follow")]
    last: Option<usize>,
    /// Follow new lines; with `--output json` print the log's own lines.
    #[arg(long)]
    follow: bool,
}

/// What `verify` verifies with.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    log: Location,
    /// An older checkpoint, or a copy kept elsewhere; may be repeated.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// A trusted verifier key (NAME+ID+KEY, from the receipt), or a file with one per line.
    #[arg(long, value_name = "KEY|FILE", required_unless_present = "without_signatures")]
    verifier_key: Vec<String>,
    /// Verify without keys; anyone who can write the directory could have forged the whole log
    #[arg(long, conflicts_with = "verifier_key")]
    without_signatures: bool,
}

fn time(text: &str) -> Result<SystemTime, String> {
    show::parse_time(text).ok_or_else(|| "a time is written 2026-01-31T23:59:59Z, a date 2026-01-31".to_owned())
}

/// Runs a `log` command.
///
/// # Errors
/// If the log cannot be read, is not valid, or does not contain what was requested.
pub fn run(command: LogCommand, output: Output) -> anyhow::Result<()> {
    match command {
        LogCommand::CheckCertificate { log, certificate } => check_certificate(&log.directory, &certificate, output),
        LogCommand::ConfirmClock { config, reason } => confirm_clock(&config, &reason, output),
        LogCommand::Prove { log, serial } => prove(&log.directory, &serial, output),
        LogCommand::Show(args) => show(args, output),
        LogCommand::Verify(args) => verify(&args, output),
    }
}

fn confirm_clock(config: &ConfigArgs, reason: &str, output: Output) -> anyhow::Result<()> {
    anyhow::ensure!(!reason.trim().is_empty(), "--reason is empty; say why the clock is right and the record is not");
    let settings = config.read()?.log;
    let uid = nix::unistd::getuid().as_raw();
    let recorded = Confirmation::record(&settings, clock::now(), uid, reason)?;
    output.print(&recorded, |recorded| {
        format!(
            "recorded: the clock is right at {}, and the times of the {} records until now (newest: {}) are not compared with it; start the daemon again\n",
            recorded.time,
            recorded.lines,
            recorded.newest_record.as_deref().unwrap_or("none"),
        )
    })
}

#[derive(Serialize)]
struct Verified {
    sound: bool,
    lines: u64,
    root: Option<String>,
    intents: u64,
    outcomes: u64,
    without_outcome: u64,
    intents_per_ca_key: std::collections::BTreeMap<String, u64>,
    segments: u64,
    retired: u64,
    checkpoints: u64,
    checkpointed: u64,
    signatures_checked: bool,
    findings: Vec<String>,
    notes: Vec<String>,
}

impl From<Report> for Verified {
    fn from(report: Report) -> Self {
        Self {
            sound: report.findings.is_empty(),
            lines: report.lines,
            root: report.root.map(|root| BASE64_STANDARD.encode(root)),
            intents: report.intents,
            outcomes: report.outcomes,
            without_outcome: report.without_outcome,
            intents_per_ca_key: report.intents_per_ca_key,
            segments: report.segments,
            retired: report.retired,
            checkpoints: report.checkpoints,
            checkpointed: report.checkpointed,
            signatures_checked: report.signatures,
            findings: report.findings.iter().map(|finding| printable(&finding.to_string())).collect(),
            notes: report.notes.iter().map(|note| printable(note)).collect(),
        }
    }
}

fn verify(args: &VerifyArgs, output: Output) -> anyhow::Result<()> {
    let mut keys = Vec::new();
    for key in &args.verifier_key {
        if key.contains('+') {
            keys.push(key.clone());
        } else {
            let bytes = read(Path::new(key)).with_context(|| {
                format!(
                    "--verifier-key {key} is neither a key (NAME+HASH+KEY, as `import --log-origin` writes it into its \
                     receipt) nor a file that holds one"
                )
            })?;
            let text = String::from_utf8(bytes).with_context(|| format!("{key}: it is not a text"))?;
            keys.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
    }
    let keys = if args.without_signatures { None } else { Some(VerifierKeys::parse(&keys)?) };
    let mut checkpoints = Vec::new();
    for path in &args.checkpoint {
        checkpoints.push((path.display().to_string(), read(path)?));
    }
    let request = verify::Request { directory: args.log.directory.clone(), keys, checkpoints };
    let verified = Verified::from(verify::verify(&request)?);
    output.print(&verified, report)?;
    if verified.sound {
        return Ok(());
    }
    let what =
        format!("{}: the issuance log is not sound; what is wrong first comes first", request.directory.display());
    Err(Refused { what, reasons: verified.findings }.into())
}

fn report(verified: &Verified) -> String {
    let mut text = format!(
        "lines         {} ({} intents, {} outcomes; {} intents without an outcome)\n\
         segments      {} (of {} retention has removed the lines)\n\
         checkpoints   {} agree; the newest covers {} lines\n",
        verified.lines,
        verified.intents,
        verified.outcomes,
        verified.without_outcome,
        verified.segments,
        verified.retired,
        verified.checkpoints,
        verified.checkpointed,
    );
    text.push_str(&format!("signatures    {}\n", if verified.signatures_checked { "checked" } else { "not checked" }));
    if let Some(root) = &verified.root {
        text.push_str(&format!("root          {root}\n"));
    }
    for (key, count) in &verified.intents_per_ca_key {
        text.push_str(&format!("CA key        {} {count} intents\n", printable(key)));
    }
    for note in &verified.notes {
        text.push_str(&format!("note          {note}\n"));
    }
    text.push_str(if verified.sound { "the log is sound\n" } else { "the log is NOT sound\n" });
    text
}

fn show(args: ShowArgs, output: Output) -> anyhow::Result<()> {
    let ShowArgs { log, since, until, identity, serial, last, follow } = args;
    let filter = Filter { since, until, identity, serial };
    if follow {
        return self::follow(&log.directory, filter, output);
    }
    let mut entries = show::records(&log.directory, &filter)?;
    if let Some(last) = last {
        entries.drain(..entries.len().saturating_sub(last));
    }
    output.print(&entries, |entries| {
        let mut text = heading();
        for entry in entries {
            let ended = |line: &Option<OutcomeLine>| line.as_ref().map_or("open".to_owned(), outcome);
            text.push_str(&match entry {
                Shown::Certificate(entry) => row(&entry.intent, &ended(&entry.outcome)),
                Shown::Ceremony { ceremony } => ceremony_row(ceremony),
                Shown::Crl { crl, outcome } => crl_row(crl, &ended(outcome)),
                Shown::Revocation { revocation } => revocation_row(revocation),
            });
        }
        text
    })
}

fn follow(directory: &Path, filter: Filter, output: Output) -> anyhow::Result<()> {
    let mut lines = Follow::new(directory, filter)?;
    let mut out = std::io::stdout();
    if output == Output::Text {
        out.write_all(heading().as_bytes())?;
    }
    loop {
        while let Some((line, text)) = lines.next_line()? {
            let shown = match (output, line) {
                (Output::Json, _) => [text.as_slice(), b"\n"].concat(),
                (Output::Text, Line::Ceremony(ceremony)) => ceremony_row(&ceremony).into_bytes(),
                (Output::Text, Line::Crl(crl)) => crl_row(&crl, "open").into_bytes(),
                (Output::Text, Line::Intent(intent)) => row(&intent, "open").into_bytes(),
                (Output::Text, Line::Outcome(line)) => {
                    format!("{:>9}  {:24}  {}\n", line.index, printable(&line.time), outcome(&line)).into_bytes()
                }
                (Output::Text, Line::Revocation(revocation)) => revocation_row(&revocation).into_bytes(),
                (Output::Text, Line::Retired(_) | Line::Sealed(_)) => Vec::new(),
            };
            out.write_all(&shown)?;
        }
        out.flush()?;
        std::thread::sleep(FOLLOW_EVERY);
    }
}

#[derive(Serialize)]
struct Proven {
    line: u64,
    text: String,
    leaf_hash: String,
    path: Vec<String>,
    checkpoint: String,
    proof: String,
}

fn prove(directory: &Path, serial: &str, output: Output) -> anyhow::Result<()> {
    let proof = prove::by_serial(directory, serial)?;
    let proven = Proven {
        line: proof.line,
        text: String::from_utf8_lossy(&proof.text).into_owned(),
        leaf_hash: BASE64_STANDARD.encode(leaf_hash(&proof.text)),
        path: proof.path.iter().map(|hash| BASE64_STANDARD.encode(hash)).collect(),
        checkpoint: String::from_utf8_lossy(&proof.checkpoint).into_owned(),
        proof: proof.to_tlog_proof(),
    };
    output.note(&format!("the leaf is line {}, without its newline; `--output json` prints it as well", proven.line));
    output.print(&proven, |proven| proven.proof.clone())
}

#[derive(Serialize)]
struct Checked<'a> {
    recorded: bool,
    entry: Option<&'a Entry>,
}

fn check_certificate(directory: &Path, file: &Path, output: Output) -> anyhow::Result<()> {
    let bytes = read(file)?;
    let shown = file.display();
    let der = if bytes.starts_with(b"0") {
        bytes
    } else {
        let blocks = pem::blocks(&bytes).with_context(|| format!("{shown}: it is neither PEM nor DER"))?;
        let certificate = blocks.into_iter().find(|block| block.label == "CERTIFICATE");
        certificate.with_context(|| format!("{shown}: it holds no certificate"))?.der.to_vec()
    };
    let books = show::check_certificate(directory, &der)?.with_context(|| shown.to_string())?;
    match &books {
        Books::Recorded(entry) => output.print(&Checked { recorded: true, entry: Some(entry) }, |_| {
            let outcome = entry.outcome.as_ref().map_or("open".to_owned(), outcome);
            format!(
                "{shown} is in the books as intent {}\n{}{}",
                entry.intent.index,
                heading(),
                row(&entry.intent, &outcome)
            )
        }),
        Books::SerialOfAnother(entry) => anyhow::bail!(
            "{shown} is NOT in the books: intent {} has its serial number and another content; \
             keep the certificate and find out who signed it",
            entry.intent.index
        ),
        Books::Absent { incomplete: true } => anyhow::bail!(
            "{shown} is not in the lines that are kept; retention has removed older ones, so look in their copies"
        ),
        Books::Absent { incomplete: false } => anyhow::bail!(
            "{shown} is NOT in the books (SHA-256 {}); keep it and find out who signed it",
            hex(&audit_log::tree::sha256(&[&der]))
        ),
    }
}

/// Reads a small file.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || path.display().to_string();
    let content = read_input(path, FILE_MAX).with_context(context)?;
    anyhow::ensure!(
        content.len() <= FILE_MAX,
        "{}: it is longer than 1 MiB, so that it is not what is asked for",
        context()
    );
    Ok(content)
}
