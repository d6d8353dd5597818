//! `install` and `adopt`: take a key that is in the token already into service, with its certificate.
//!
//! `install` is for a key that `generate --csr` made, and for a renewed certificate of a key in use; `adopt` for a key
//! that other tools have made or imported. Both prove the key, store with it what the token allows, and write bundle and
//! receipt.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use super::{
    bundle_dir,
    token::{TokenArgs, WeaknessArgs},
};
use crate::bundle_files::BundlePaths;
use audit_log::{checkpoint, timestamp, tree::sha256};
use pki::{Bundle, PublicKey, bundle::Problem};
use process::clock;
use process::error::chain;
use process::output::{Output, Refused};
use token::{
    adopt::{self, Access, Adopted, Adoption, Origin},
    generate::GenerateError,
    key::{Accepted, Hints, KeyError, Search, hex},
    module::Info,
};

/// Arguments of `install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    token: TokenArgs,
    /// A directory with ca-cert.pem, root-cert.pem and cert-chain.pem, or tls.crt and ca.crt
    #[arg(long, value_name = "DIR", required_unless_present = "ca_cert", conflicts_with_all = ["ca_cert", "root_cert", "cert_chain"])]
    from: Option<PathBuf>,
    /// The CA's certificate
    #[arg(long, value_name = "FILE", requires = "root_cert")]
    ca_cert: Option<PathBuf>,
    /// The roots
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    root_cert: Option<PathBuf>,
    /// The intermediate certificates [default: those after the CA certificate in its file]
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    cert_chain: Option<PathBuf>,
    /// Directory for the public files and the receipt; `serve` reads them from there
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The origin under which the log's checkpoints will be signed: makes the receipt list the verifier key in full
    #[arg(long, value_name = "NAME")]
    log_origin: Option<String>,
}

/// Arguments of `adopt`.
#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    install: Args,
    #[command(flatten)]
    weaknesses: WeaknessArgs,
}

/// The receipt.
#[derive(Debug, Serialize)]
struct Receipt {
    at: String,
    algorithm: String,
    key_sha256: String,
    certificate_sha256: String,
    not_after: String,
    token: Info,
    #[serde(flatten)]
    adopted: Adopted,
    /// The log key as a signed note verifier key, if the origin was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_verifier_key: Option<String>,
    bundle: PathBuf,
    warnings: Vec<String>,
}

/// `install`.
///
/// # Errors
/// All problems of the files; or that the key is not in the token, or what failed.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    take(&args, None, output)
}

/// `adopt`.
///
/// # Errors
/// As [`run`], and weaknesses of the key that are not accepted.
pub fn adopt(args: AdoptArgs, output: Output) -> anyhow::Result<()> {
    take(&args.install, Some(args.weaknesses.accepted()), output)
}

/// Takes a key into service: one that `generate` made, or with accepted weaknesses one of other tools.
fn take(args: &Args, accepted: Option<Accepted>, output: Output) -> anyhow::Result<()> {
    let paths = match (&args.from, &args.ca_cert, &args.root_cert) {
        (Some(directory), _, _) => BundlePaths::in_directory(directory),
        (None, ca_cert, root_cert) => BundlePaths {
            ca_cert: ca_cert.clone().unwrap_or_default(),
            ca_key: PathBuf::new(),
            cert_chain: args.cert_chain.clone(),
            root_cert: root_cert.clone().unwrap_or_default(),
        },
    };
    let command = if accepted.is_some() { "adopt" } else { "install" };
    let refused = |problems: Vec<Problem>| Refused {
        what: format!("nothing was {command}ed:"),
        reasons: problems.iter().map(ToString::to_string).collect(),
    };
    if let Some(from) = args.from.as_deref().filter(|from| !from.is_dir()) {
        let remedy = "name the one that holds the CA's certificate and the roots";
        let problem = Problem::with_remedy(&format!("--from {}", from.display()), "is not a directory", remedy);
        return Err(refused(vec![problem]).into());
    }
    let (files, mut unread) = paths.read_what_is_there();
    if let Err(error) = bundle_dir::check(&args.bundle) {
        unread.push(Problem::new("--bundle", chain(&error)));
    }
    let bundle = Bundle::check_read(files, unread, None, clock::now()).map_err(refused)?;
    for warning in bundle.warnings() {
        output.warn(&warning.to_string());
    }
    let issuer = bundle.issuer();
    let key = issuer.public_key();
    let opened = args.token.open()?;
    let info = opened.token.info();
    let (session, read_only) = opened.login_to_write()?;
    let access = Access { session: &session, read_only: read_only.as_deref() };
    let hints = Hints::from(&args.token.token);
    let adoption = match accepted {
        Some(accepted) => Adoption { hints, accepted, origin: Origin::OtherTools },
        None => {
            let accepted = Accepted::in_bundle(&args.bundle, &key.fingerprint(), &info.serial);
            Adoption { hints, accepted, origin: Origin::Generated }
        }
    };
    let adopted = adopt::run(&opened.token, access, key, issuer.certificate(), &adoption);
    let adopted = adopted.map_err(|error| match error {
        GenerateError::Key(error @ KeyError::NoneSigns { .. }) => {
            let file = &bundle.files().ca_cert.name;
            let found = |(_, public): &(String, PublicKey)| {
                Search::new(Hints::default()).find_related(&session, public).is_ok()
            };
            let missing = match bundle.files().keys().into_iter().find(found) {
                Some((other, _)) => format!(
                    "{file}: its key is not in the token {}, but that of {other} is; put that certificate first in {file}",
                    info.label
                ),
                None => format!("{file}: its key is not in the token {}", info.label),
            };
            anyhow::Error::from(error).context(missing)
        }
        error => anyhow::Error::from(error).context(format!("the key was not {command}ed")),
    })?;
    let log_key = adopted.service_keys.log_public_key().zip(args.log_origin.as_deref());
    let receipt = Receipt {
        at: timestamp::format(clock::now()),
        algorithm: issuer.key_algorithm().to_string(),
        key_sha256: hex(&key.fingerprint()),
        certificate_sha256: hex(&sha256(&[issuer.certificate()])),
        not_after: timestamp::format(issuer.not_after()),
        token: info.clone(),
        adopted,
        log_verifier_key: log_key.and_then(|(key, origin)| checkpoint::verifier_key(origin, &key).ok()),
        bundle: args.bundle.clone(),
        warnings: bundle.warnings().iter().map(ToString::to_string).collect(),
    };
    let mut content = serde_json::to_vec_pretty(&receipt)?;
    content.push(b'\n');
    let name = bundle_dir::receipt_name(command, &receipt.token.serial);
    let files = bundle.files();
    let written: [(&str, &[u8]); 4] = [
        ("cert-chain.pem", &files.cert_chain.bytes),
        ("root-cert.pem", &files.root_cert.bytes),
        ("ca-cert.pem", &files.ca_cert.bytes),
        (&name, &content),
    ];
    bundle_dir::write(&args.bundle, &written)
        .context("the key is proven, but the bundle was not written; run the same command again")?;
    output.print(&receipt, text)
}

fn text(receipt: &Receipt) -> String {
    use std::fmt::Write;
    let adopted = &receipt.adopted;
    let mut text = format!(
        "the {} key `{}` of the certificate is in the token {}, found {}; good until {}\n",
        receipt.algorithm,
        adopted.label,
        receipt.token.label,
        adopted.found_by.in_words(),
        receipt.not_after,
    );
    for note in adopted.notes.iter().chain(&adopted.disabled()) {
        let _ = writeln!(text, "  note: {note}");
    }
    let _ = writeln!(text, "bundle: {}", receipt.bundle.display());
    text
}
