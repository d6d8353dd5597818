//! `import`: imports a plug-in CA's key into one or several tokens, and writes its public files to a bundle.
//!
//! All checks run before a token is modified, and all problems are reported at once. A token that fails later is
//! reported on its own; the import into the others continues.

mod cluster;
mod config_map;
mod removal;
pub(super) mod source;

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::{
    bundle_dir,
    token::{Opened, TokensArgs, WeaknessArgs, label_problem},
    with_advice,
};
use audit_log::checkpoint;
use process::{
    error::chain,
    output::{Output, Refused},
};
use source::Source;
use token::{
    TokenUri,
    import::{self, ImportReport, Options, Ready, WrapAttempt},
};

/// CKM_VENDOR_DEFINED, the first number of a vendor's mechanisms.
const VENDOR_DEFINED: import::Number = 0x8000_0000;

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    tokens: TokensArgs,
    #[command(flatten)]
    source: source::SourceArgs,
    /// Directory for the public files and the receipts; `serve` reads them from there
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// ConfigMap to write the same files to, for pods to mount
    #[arg(long, value_name = "NAMESPACE/NAME")]
    bundle_configmap: Option<config_map::Target>,
    /// CKA_LABEL of the key's objects
    #[arg(long, default_value = "istio-ca")]
    label: String,
    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Import the key in the clear if the token cannot unwrap it (Ed25519 on SoftHSM)
    #[arg(long)]
    allow_plaintext_import: bool,
    /// The vendor's mechanism number for AES key wrap with padding (RFC 5649), such as 0x8000216f for AWS CloudHSM
    #[arg(long, value_name = "NUMBER", value_parser = mechanism_number)]
    kwp_mechanism: Option<import::Number>,
    #[command(flatten)]
    weaknesses: WeaknessArgs,
    /// Remove the key file after every proof; asks for a second token that holds the key, or --i-have-a-backup
    #[arg(long, group = "removal", conflicts_with = "from_secret")]
    remove_key_file: bool,
    /// Remove the private key from the Secret after all checks; requires a second token with the key, or
    /// --i-have-a-backup
    #[arg(long, group = "removal", requires = "from_secret")]
    remove_key_from_secret: bool,
    /// Confirm that a backup of the key exists, so losing the only token does not lose the key
    #[arg(long, requires = "removal")]
    i_have_a_backup: bool,
    /// The origin of the log's checkpoints, with which the receipt lists complete verifier keys
    #[arg(long, value_name = "NAME")]
    log_origin: Option<String>,
}

/// Result of an import.
#[derive(Debug, Serialize)]
struct Summary {
    dry_run: bool,
    algorithm: String,
    key_sha256: String,
    bundle: PathBuf,
    warnings: Vec<String>,
    tokens: Vec<TokenSummary>,
    key_file_removed: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_removed_from_secret: Option<bool>,
}

/// Result of an import in one token.
#[derive(Debug, Serialize)]
struct TokenSummary {
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<PathBuf>,
    #[serde(flatten)]
    report: Option<Receipt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The receipt: the report, and the verifier key of the log's checkpoints.
#[derive(Clone, Debug, Serialize)]
struct Receipt {
    #[serde(flatten)]
    report: ImportReport,
    /// The log key as a signed note verifier key, if the origin was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_verifier_key: Option<String>,
}

/// Runs the import.
///
/// # Errors
/// All reasons to refuse; or what failed, by token.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let options = Options {
        label: args.label.clone(),
        allow_plaintext: args.allow_plaintext_import,
        kwp_mechanism: args.kwp_mechanism,
        accepted: args.weaknesses.accepted(),
    };
    let removal = match (args.remove_key_file, args.remove_key_from_secret) {
        (true, _) => Some("--remove-key-file"),
        (false, true) => Some("--remove-key-from-secret"),
        (false, false) => None,
    };
    if let Some(flag) = removal
        && args.tokens.tokens.len() < 2
        && !args.i_have_a_backup
    {
        anyhow::bail!(
            "{flag} with one token would leave the key there alone, and it would be lost with it; \
             give a second --token, or --i-have-a-backup"
        );
    }
    if args.remove_key_file && args.source.is_standard_input() {
        anyhow::bail!(
            "the key comes by standard input, so that there is no file to remove; leave --remove-key-file out"
        );
    }
    let mut reasons = Vec::new();
    reasons.extend(label_problem(&args.label).map(str::to_owned));
    reasons.extend(unfit_bundle(&args.bundle, args.source.key_path().as_deref()));
    if args.remove_key_file {
        reasons
            .extend(args.source.key_path().filter(|path| path.exists()).and_then(|path| removal::unremovable(&path)));
    }
    if let Some(target) = &args.bundle_configmap {
        reasons.extend(config_map::unwritable(target, args.source.kubeconfig()));
    }
    let (source, public_key) = match args.source.read(args.remove_key_file) {
        Ok(source) => (Some(source), None),
        Err((problems, public_key)) => {
            reasons.extend(problems);
            (None, public_key)
        }
    };
    if args.remove_key_from_secret {
        let secret = source.as_ref().and_then(|source| source.secret.as_ref());
        reasons.extend(secret.and_then(cluster::KeySecret::unremovable));
    }
    let tokens = args.tokens.open()?;
    let mut opened = Vec::new();
    for (uri, token) in args.tokens.tokens.iter().zip(tokens) {
        match token {
            Ok(token) => opened.push((uri, token)),
            Err(error) => reasons.push(with_advice(error.as_ref())),
        }
    }
    let mut ready = Vec::new();
    // Errors in the files do not hide errors of the token.
    let key = source.as_ref().map(|source| source.key.public_key()).or(public_key.as_ref());
    for (uri, opened) in &opened {
        let planned = match key {
            Some(key) => import::plan(&opened.module, uri, opened.pin.as_ref(), key, &options).map(Some),
            None => import::reach(&opened.module, uri, opened.pin.as_ref()).map(|()| None),
        };
        match planned {
            Ok(plan) => ready.extend(plan.map(|plan| (uri.to_string(), plan))),
            Err(problems) => reasons.extend(problems.iter().map(|problem| with_advice(problem))),
        }
    }
    let Some(source) = source.filter(|_| reasons.is_empty()) else {
        return Err(Refused { what: "nothing was imported:".to_owned(), reasons }.into());
    };
    let mut summary = Summary {
        dry_run: args.dry_run,
        algorithm: source.key.public_key().algorithm().to_string(),
        key_sha256: token::key::hex(&source.key.public_key().fingerprint()),
        bundle: args.bundle.clone(),
        warnings: source.warnings(),
        tokens: Vec::new(),
        key_file_removed: None,
        secret: source.secret.as_ref().map(ToString::to_string),
        key_removed_from_secret: source.secret.as_ref().map(|_| false),
    };
    for warning in &summary.warnings {
        output.warn(warning);
    }
    if args.dry_run {
        summary.tokens = ready.into_iter().map(|(token, _)| untouched(token)).collect();
        return output.print(&summary, text);
    }
    import_all(&args, &source, ready, &mut summary)?;
    let failed = summary.tokens.iter().any(|token| token.error.is_some());
    if args.remove_key_file && !failed {
        summary.key_file_removed = Some(removal::remove(&source, &opened)?);
    }
    let mut kept = None;
    if args.remove_key_from_secret && !failed {
        match removal::remove_from_secret(&source, &opened) {
            Ok(()) => summary.key_removed_from_secret = Some(true),
            Err(error) => kept = Some(error),
        }
    }
    output.print(&summary, text)?;
    if let Some(error) = kept {
        return Err(error);
    }
    if failed {
        anyhow::bail!("not every token took the key; fix the errors above and import again (completed steps are kept)");
    }
    Ok(())
}

fn import_all(args: &Args, source: &Source, ready: Vec<(String, Ready)>, summary: &mut Summary) -> anyhow::Result<()> {
    let mut receipts = Vec::new();
    for (token, plan) in ready {
        let certificate = source.bundle.issuer().certificate();
        let done = import::run(plan, &source.key, certificate);
        let (report, error) = match done {
            Ok(report) => (Some(receipt(report, args.log_origin.as_deref())), None),
            Err(error) => (None, Some(with_advice(&error))),
        };
        let name = report.as_ref().map(|receipt| receipt_name(&receipt.report));
        if let (Some(name), Some(report)) = (&name, &report) {
            let mut content = serde_json::to_vec_pretty(report)?;
            content.push(b'\n');
            receipts.push((name.clone(), content));
        }
        let receipt = name.map(|name| args.bundle.join(name));
        summary.tokens.push(TokenSummary { token, receipt, report, error });
    }
    if receipts.is_empty() {
        return Ok(());
    }
    let files = source.bundle.files();
    let mut written: Vec<(&str, &[u8])> = vec![
        ("cert-chain.pem", &files.cert_chain.bytes),
        ("root-cert.pem", &files.root_cert.bytes),
        ("ca-cert.pem", &files.ca_cert.bytes),
    ];
    written.extend(receipts.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
    bundle_dir::write(&args.bundle, &written).with_context(|| {
        "the key is in the token, but its public files could not be written; make --bundle a directory that this user \
         may write, and import again: what is done stays done"
    })?;
    args.bundle_configmap
        .as_ref()
        .map_or(Ok(()), |target| config_map::write(target, args.source.kubeconfig(), &written))
}

fn receipt(report: ImportReport, origin: Option<&str>) -> Receipt {
    let key = report.service_keys.log_public_key();
    let log_verifier_key = origin.zip(key).and_then(|(origin, key)| checkpoint::verifier_key(origin, &key).ok());
    Receipt { report, log_verifier_key }
}

/// One receipt per token, named by its serial number, which is made safe for a file name.
fn receipt_name(report: &ImportReport) -> String {
    let serial: String = report.token.serial.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("import-receipt-{}.json", if serial.is_empty() { "token" } else { &serial })
}

/// A mechanism number of the vendor's range, decimal or hexadecimal with 0x.
fn mechanism_number(text: &str) -> Result<import::Number, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => import::Number::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.map_err(|error| format!("{error}; write a number such as 0x8000216f"))?;
    if number < VENDOR_DEFINED {
        return Err("standard mechanisms are tried anyway; write a vendor's number, 0x80000000 or above".to_owned());
    }
    Ok(number)
}

fn untouched(token: String) -> TokenSummary {
    TokenSummary { token, receipt: None, report: None, error: None }
}

fn text(summary: &Summary) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for token in &summary.tokens {
        let _ = match (&token.report, &token.error) {
            (Some(receipt), _) => writeln!(
                text,
                "{}: {} key {} is in the token ({}); {}",
                token.token,
                summary.algorithm,
                receipt.report.label,
                source::how(&receipt.report),
                match receipt.report.wrap_attempt {
                    WrapAttempt::Accepted => "it can be wrapped out, which was accepted",
                    WrapAttempt::NotTried { .. } | WrapAttempt::Refused { .. } => "it cannot be read or wrapped out",
                },
            ),
            (None, Some(error)) => writeln!(text, "{}: FAILED: {error}", token.token),
            (None, None) => writeln!(text, "{}: would take the key; nothing was changed", token.token),
        };
        for note in token.report.iter().flat_map(|receipt| receipt.report.notes.iter().chain(&receipt.report.cleared)) {
            let _ = writeln!(text, "  note: {note}");
        }
        if let Some(receipt) = &token.receipt {
            let _ = writeln!(text, "  receipt: {}", receipt.display());
        }
    }
    if summary.tokens.iter().any(|token| token.report.is_some()) {
        let _ = writeln!(text, "bundle: {}", summary.bundle.display());
    }
    match (&summary.key_file_removed, &summary.secret, summary.key_removed_from_secret) {
        (Some(path), ..) => {
            let _ = writeln!(
                text,
                "removed {}; a copy may live on in backups and in the file system's past",
                path.display()
            );
        }
        (None, Some(secret), Some(true)) => {
            let _ = writeln!(
                text,
                "took the private key out of {secret}; a copy may live on in backups and in the past of etcd"
            );
        }
        (None, Some(secret), _) if !summary.dry_run => {
            let _ = writeln!(text, "the private key is still in {secret}; --remove-key-from-secret takes it out");
        }
        (None, None, _) if !summary.dry_run => {
            text.push_str("the key file is still there; keep it offline or remove it\n");
        }
        (None, ..) => {}
    }
    text
}

/// An opened token and its URI.
type Under<'a> = (&'a TokenUri, Opened);

/// The path of a file for messages.
fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// Why the public files cannot be written to the given directory.
fn unfit_bundle(bundle: &Path, key: Option<&Path>) -> Option<String> {
    let place = |path: &Path| Path::new(".").join(path).canonicalize().ok();
    let key_at = key.filter(|key| key.exists()).and_then(Path::parent).and_then(place);
    if key_at.is_some() && key_at == place(bundle) {
        let reason = "the private key's file lies there, and the bundle is public; name another directory";
        return Some(format!("--bundle {}: {reason}", bundle.display()));
    }
    bundle_dir::check(bundle).err().map(|error| format!("--bundle {}", chain(&error)))
}
