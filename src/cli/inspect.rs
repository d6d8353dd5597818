//! `inspect`: lists the tokens of a module, or what one token contains and whether it matches a bundle. Read-only.

mod show;

use std::path::PathBuf;

use serde::Serialize;

use super::token::{PinArgs, TokenArgs, module_path};
use crate::bundle_files::check_directory;
use pki::PublicKey;
use process::clock;
use process::output::{Output, Refused};
use token::{
    Module, Session, TokenUri,
    inspect::{self, CertificateView, Contents, KeyView, ModuleView},
    key::{CaKey, FoundBy, Hints, Locator, Search, hex},
    module::Info,
};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["token", "module"])))]
pub struct Args {
    /// The token: pkcs11:token=LABEL?module-path=/path/to/module.so (RFC 7512)
    #[arg(long, value_name = "URI")]
    token: Option<TokenUri>,
    #[command(flatten)]
    pin: PinArgs,
    /// List all tokens of a PKCS#11 library, without a login
    #[arg(long, value_name = "PATH", conflicts_with_all = ["token", "bundle", "pin_file", "pin_fd"])]
    module: Option<PathBuf>,
    /// Directory of a bundle; reports whether the key of its ca-cert.pem is in the token
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

/// A module and its tokens.
#[derive(Debug, Serialize)]
struct Listing {
    module: PathBuf,
    #[serde(flatten)]
    view: ModuleView,
}

/// Content of a token.
#[derive(Debug, Serialize)]
struct View {
    token: Info,
    /// Without a login, private keys are hidden.
    logged_in: bool,
    keys: Vec<Key>,
    certificates: Vec<CertificateView>,
    unreadable: usize,
    bundle: Option<BundleView>,
}

#[derive(Debug, Serialize)]
struct Key {
    #[serde(flatten)]
    view: KeyView,
    /// Whether it is the key of the bundle's ca-cert.pem, verified by a signature; `None` without a bundle.
    pairs_with_bundle: Option<bool>,
}

#[derive(Debug, Serialize)]
struct BundleView {
    directory: PathBuf,
    /// SHA-256 of the CA key's SubjectPublicKeyInfo, hexadecimal.
    key_sha256: String,
    /// CKA_ID of the key that was found, hexadecimal.
    id: Option<String>,
    /// Whether a key in the token pairs with it; none without a login.
    key_in_token: Option<bool>,
    /// How the key was found.
    found_by: Option<FoundBy>,
    /// Further private key objects of the same key.
    copies: Vec<Locator>,
}

/// Runs the command.
///
/// # Errors
/// If the module, token or bundle cannot be read, or the PIN is rejected.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    // The parser requires one of the two.
    let Some(token) = args.token else { return list(args.module.unwrap_or_default(), output) };
    one(&TokenArgs { token, pin: args.pin }, args.bundle, output)
}

fn list(module: PathBuf, output: Output) -> anyhow::Result<()> {
    let view = inspect::module(&Module::load(&module)?)?;
    output.print(&Listing { module, view }, show::listing)
}

fn one(args: &TokenArgs, bundle: Option<PathBuf>, output: Output) -> anyhow::Result<()> {
    let bundle = bundle.map(read_bundle).transpose()?;
    let view = if args.names_pin() || process::output::interactive() {
        let opened = args.open()?;
        let session = opened.login(false)?;
        let contents = inspect::contents(&session)?;
        let hints = Hints::from(&args.token);
        view(opened.token.info().clone(), Some((&session, hints)), contents, bundle)
    } else {
        let module = Module::load_with(module_path(&args.token)?, args.token.library_parameters())?;
        let token = module.find_token(&args.token)?;
        let session = token.open_session(false)?;
        let contents = inspect::contents(&session)?;
        if token.skips_login(false) {
            let hints = Hints::from(&args.token);
            view(token.info().clone(), Some((&session, hints)), contents, bundle)
        } else {
            output.note("without a PIN private keys stay hidden; give --pin-file");
            view(token.info().clone(), None, contents, bundle)
        }
    };
    output.print(&view, |view| show::view(view, clock::now()))
}

/// The CA key of the bundle's certificate. An invalid bundle is reported with all its problems.
fn read_bundle(directory: PathBuf) -> anyhow::Result<(PathBuf, PublicKey)> {
    match check_directory(&directory, clock::now()) {
        Ok(bundle) => Ok((directory, bundle.issuer().public_key().clone())),
        Err(problems) => {
            let reasons = problems.iter().map(ToString::to_string).collect();
            Err(Refused { what: "the bundle is refused:".to_owned(), reasons }.into())
        }
    }
}

/// Puts what was read together; the session is a logged-in one.
fn view(
    token: Info,
    session: Option<(&Session, Hints)>,
    contents: Contents,
    bundle: Option<(PathBuf, PublicKey)>,
) -> View {
    let Contents { keys, certificates, unreadable } = contents;
    let logged_in = session.is_some();
    let searched = session.zip(bundle.as_ref()).map(|((session, hints), (_, ca))| search(session, hints, ca));
    let found = searched.as_ref().and_then(Option::as_ref);
    let pairs = |view: &KeyView| {
        let copy = |copy: &Locator| copy.label == view.label && hex(&copy.id) == view.id;
        found.is_some_and(|found| found.handle == view.handle || found.copies.iter().any(copy))
    };
    let keys = keys.into_iter().map(|view| Key { pairs_with_bundle: bundle.as_ref().map(|_| pairs(&view)), view });
    View {
        token,
        logged_in,
        keys: keys.collect(),
        certificates,
        unreadable,
        bundle: bundle.as_ref().map(|(directory, ca)| BundleView {
            directory: directory.clone(),
            key_sha256: hex(&ca.fingerprint()),
            id: found.map(|found| hex(&found.locator.id)),
            key_in_token: searched.as_ref().map(Option::is_some),
            found_by: found.map(|found| found.by),
            copies: found.map(|found| found.copies.clone()).unwrap_or_default(),
        }),
    }
}

/// The private key that signs as the CA's.
fn search(session: &Session, hints: Hints, ca: &PublicKey) -> Option<CaKey> {
    Search::new(hints).find_all(session, ca).ok()
}
