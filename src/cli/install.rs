//! `install`: takes the signed certificate for a key that `generate --csr` made in the token.
//!
//! Also for a renewed certificate of a key that is in the token already: certificate object and bundle are replaced.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use super::{bundle_dir, token::TokenArgs};
use crate::bundle_files::BundlePaths;
use audit_log::{timestamp, tree::sha256};
use pki::{Bundle, PublicKey, bundle::Problem};
use process::clock;
use process::output::{Output, Refused};
use token::{
    generate::{self, GenerateError, Installed},
    key::{self, KeyError, hex},
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
    /// The certificates between the CA's and a root [default: those that follow the CA's in its own file]
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    cert_chain: Option<PathBuf>,
    /// Where the public files and the receipt go; `serve` reads them there
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
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
    installed: Installed,
    bundle: PathBuf,
    warnings: Vec<String>,
}

/// Installs the certificate.
///
/// # Errors
/// Every reason to refuse the files; or that the key is not in the token, or what failed.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let paths = match (&args.from, &args.ca_cert, &args.root_cert) {
        (Some(directory), _, _) => BundlePaths::in_directory(directory),
        (None, ca_cert, root_cert) => BundlePaths {
            ca_cert: ca_cert.clone().unwrap_or_default(),
            ca_key: PathBuf::new(),
            cert_chain: args.cert_chain.clone(),
            root_cert: root_cert.clone().unwrap_or_default(),
        },
    };
    let refused = |problems: Vec<Problem>| Refused {
        what: "nothing was installed:".to_owned(),
        reasons: problems.iter().map(ToString::to_string).collect(),
    };
    if let Some(from) = args.from.as_deref().filter(|from| !from.is_dir()) {
        let remedy = "name the one that holds the signed certificate and the roots";
        let problem = Problem::with_remedy(&format!("--from {}", from.display()), "is not a directory", remedy);
        return Err(refused(vec![problem]).into());
    }
    let (files, mut unread) = paths.read_what_is_there();
    if let Err(error) = bundle_dir::check(&args.bundle) {
        unread.push(Problem::new("--bundle", format!("{:#}", anyhow::Error::from(error))));
    }
    let bundle = Bundle::check_read(files, unread, None, clock::now()).map_err(refused)?;
    for warning in bundle.warnings() {
        output.warn(&warning.to_string());
    }
    let issuer = bundle.issuer();
    let opened = args.token.open()?;
    let session = opened.login(true)?;
    let installed = generate::install(&session, issuer.public_key(), issuer.certificate());
    let installed = installed.map_err(|error| match error {
        GenerateError::Key(KeyError::NotFound(what)) => {
            let (file, token) = (&bundle.files().ca_cert.name, &opened.token.info().label);
            let missing = format!("{file}: its key is not in the token {token} (no private key with {what})");
            let is_there = |(_, public): &(String, PublicKey)| key::find_private_key(&session, public).is_ok();
            match bundle.files().keys().into_iter().find(is_there) {
                Some((certificate, _)) => {
                    anyhow::anyhow!("{missing}, but that of {certificate} is; put that certificate first in {file}")
                }
                None => anyhow::anyhow!(
                    "{missing}; is this the token that the request came from? A key from a file comes in by `import`"
                ),
            }
        }
        error => anyhow::Error::from(error).context("the certificate was not installed"),
    })?;
    let receipt = Receipt {
        at: timestamp::format(clock::now()),
        algorithm: issuer.key_algorithm().to_string(),
        key_sha256: hex(&issuer.public_key().fingerprint()),
        certificate_sha256: hex(&sha256(&[issuer.certificate()])),
        not_after: timestamp::format(issuer.not_after()),
        token: opened.token.info().clone(),
        installed,
        bundle: args.bundle.clone(),
        warnings: bundle.warnings().iter().map(ToString::to_string).collect(),
    };
    let mut content = serde_json::to_vec_pretty(&receipt)?;
    content.push(b'\n');
    let name = bundle_dir::receipt_name("install", &receipt.token.serial);
    let files = bundle.files();
    let written: [(&str, &[u8]); 4] = [
        ("cert-chain.pem", &files.cert_chain.bytes),
        ("root-cert.pem", &files.root_cert.bytes),
        ("ca-cert.pem", &files.ca_cert.bytes),
        (&name, &content),
    ];
    bundle_dir::write(&args.bundle, &written)
        .context("the certificate is in the token, but the bundle was not written; run the same command again")?;
    output.print(&receipt, |receipt| {
        format!(
            "the certificate of {} key {} is in the token {}, good until {}\nbundle: {}\n",
            receipt.algorithm,
            receipt.installed.label,
            receipt.token.label,
            receipt.not_after,
            receipt.bundle.display()
        )
    })
}
