//! The four files of a plug-in CA, read and checked as a whole.

use std::{
    fs::File,
    io::Read,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::libc::O_NOFOLLOW;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{cluster, shown};
use crate::bundle_files::{BundlePaths, unreadable};
use pki::{
    Bundle, PublicKey,
    private_key::{PrivateKey, PrivateKeyError},
};
use process::{clock, files::open_input_with, output};
use token::{
    import::{How, ImportReport, Level},
    pin,
};

/// Maximum size of a key file in bytes; an RSA-4096 key in PEM has 3.3 KiB.
const KEY_MAX: usize = 64 * 1024;

/// Where the files come from.
#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// A directory with ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, or tls.crt, tls.key and ca.crt
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present_all = ["ca_cert", "ca_key", "root_cert"],
        required_unless_present_any = ["from_secret"]
    )]
    from: Option<PathBuf>,
    /// The CA certificate, instead of the directory's
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// The CA's private key: PKCS#1, SEC 1 or PKCS#8, also encrypted; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    ca_key: Option<PathBuf>,
    /// The roots
    #[arg(long, value_name = "FILE")]
    root_cert: Option<PathBuf>,
    /// The intermediate certificates; may be empty
    #[arg(long, value_name = "FILE")]
    cert_chain: Option<PathBuf>,
    /// A file with the passphrase of an encrypted key [default: a prompt]
    #[arg(long, value_name = "FILE")]
    key_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    secret: cluster::SecretArgs,
}

/// A plug-in CA whose key matches its certificate.
pub(super) struct Source {
    pub(super) bundle: Bundle,
    pub(super) key: PrivateKey,
    /// The key's file, as it was read; none for standard input.
    pub(super) key_file: Option<KeyFile>,
    /// The Secret that the key came from.
    pub(super) secret: Option<cluster::KeySecret>,
    key_warning: Option<String>,
}

/// The file that a key was read from. The descriptor remains what was read, whatever the path names later.
#[derive(Debug)]
pub(super) struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("key_file", &self.key_file).finish_non_exhaustive()
    }
}

impl Source {
    /// Remarks that do not prevent the import.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.bundle.warnings().iter().map(ToString::to_string).chain(self.key_warning.clone()).collect()
    }
}

impl SourceArgs {
    /// The kubeconfig, if not the pod's service account is used.
    pub(super) fn kubeconfig(&self) -> Option<&Path> {
        self.secret.kubeconfig()
    }

    /// Reads and checks everything. Every reason to refuse is reported, independently of the others, and the public key of the
    /// key or, where that cannot be read, of the certificate, so that the token can be looked at all the same. `removable`
    /// is whether the key's file will be removed.
    pub(super) fn read(&self, removable: bool) -> Result<Source, (Vec<String>, Option<PublicKey>)> {
        if let Some(from) = self.from.as_deref().filter(|from| !from.is_dir()) {
            let reason = "is not a directory; name the one that holds the plug-in CA's files";
            return Err((vec![format!("--from {}: {reason}", from.display())], None));
        }
        let (files, unread, text, origin) = match self.secret.fetch() {
            Some(Ok(fetched)) => {
                let read = KeyText { text: fetched.key, file: None, warning: None };
                (fetched.files, Vec::new(), Ok(read), Origin::Secret(fetched.secret))
            }
            Some(Err(reason)) => return Err((vec![reason], None)),
            None => {
                let paths = self.paths();
                let (files, unread) = paths.read_what_is_there();
                (files, unread, read_key(&paths.ca_key, removable), Origin::File(paths.ca_key))
            }
        };
        let name = origin.key_name();
        let key = text.and_then(|read| Ok((self.key(&name, &read.text)?, read)));
        let public_key = key.as_ref().ok().map(|(key, _)| (name.as_str(), key.public_key()));
        let of_certificate = files.ca_key();
        let bundle = Bundle::check_read(files, unread, public_key, clock::now());
        let found = bundle.as_ref().err().into_iter().flatten();
        let mut problems: Vec<String> = found.map(ToString::to_string).collect();
        let (bundle, key) = (bundle.ok(), key.map_err(|reason| problems.push(reason)).ok());
        match (bundle, key) {
            (Some(bundle), Some((key, read))) if problems.is_empty() => {
                let (key_file, secret) = match origin {
                    Origin::File(path) => (read.file.map(|file| KeyFile { path, file }), None),
                    Origin::Secret(secret) => (None, Some(secret)),
                };
                Ok(Source { bundle, key, key_file, secret, key_warning: read.warning })
            }
            (_, key) => Err((problems, key.map(|(key, _)| key.public_key().clone()).or(of_certificate))),
        }
    }

    /// Whether the key is read from standard input.
    pub(super) fn is_standard_input(&self) -> bool {
        self.ca_key.as_deref() == Some(Path::new("-"))
    }

    /// Path of the key file, if there is one.
    pub(super) fn key_path(&self) -> Option<PathBuf> {
        (!self.secret.is_named() && !self.is_standard_input()).then(|| self.paths().ca_key)
    }

    fn paths(&self) -> BundlePaths {
        let found = self.from.as_deref().map(BundlePaths::in_directory);
        let take = |given: &Option<PathBuf>, found: Option<PathBuf>| given.clone().or(found).unwrap_or_default();
        BundlePaths {
            ca_cert: take(&self.ca_cert, found.as_ref().map(|paths| paths.ca_cert.clone())),
            ca_key: take(&self.ca_key, found.as_ref().map(|paths| paths.ca_key.clone())),
            root_cert: take(&self.root_cert, found.as_ref().map(|paths| paths.root_cert.clone())),
            cert_chain: self.cert_chain.clone().or(found.and_then(|paths| paths.cert_chain)),
        }
    }

    /// Parses the key.
    fn key(&self, name: &str, text: &[u8]) -> Result<PrivateKey, String> {
        parse_key(name, text, self.key_passphrase_file.as_deref())
    }
}

/// Reads and parses the private key in a file, and returns also a remark about its permissions.
///
/// # Errors
/// Why it cannot be used, with a remedy.
pub(in crate::cli) fn private_key(
    path: &Path,
    passphrase: Option<&Path>,
) -> Result<(PrivateKey, Option<String>), String> {
    let read = read_key(path, false)?;
    Ok((parse_key(&shown(path), &read.text, passphrase)?, read.warning))
}

/// Parses a private key. `passphrase` is the file with the passphrase of an encrypted one.
fn parse_key(name: &str, text: &[u8], passphrase: Option<&Path>) -> Result<PrivateKey, String> {
    let failed = |error: PrivateKeyError| error.in_file(name, text).to_string();
    let passphrase = match PrivateKey::needs_passphrase(text).map_err(failed)? {
        true => Some(read_passphrase(name, passphrase)?),
        false => None,
    };
    PrivateKey::from_pem(text, passphrase.as_ref()).map_err(failed)
}

fn read_passphrase(name: &str, file: Option<&Path>) -> Result<SecretString, String> {
    match file {
        Some(path) => pin::read_secret(path, "passphrase")
            .map_err(|error| format!("--key-passphrase-file: {}", super::chain(&error))),
        None if output::interactive() => {
            let typed = rpassword::prompt_password(format!("Passphrase of {name}: "));
            let typed = Zeroizing::new(typed.map_err(|error| format!("no passphrase could be read: {error}"))?);
            Ok(SecretString::from(Box::<str>::from(typed.as_str())))
        }
        None => Err(format!("{name}: the key is encrypted; give --key-passphrase-file, or run it at a terminal")),
    }
}

/// Source of the key.
enum Origin {
    File(PathBuf),
    Secret(cluster::KeySecret),
}

impl Origin {
    fn key_name(&self) -> String {
        match self {
            Self::File(path) => shown(path),
            Self::Secret(secret) => secret.key_name(),
        }
    }
}

/// A key's text, in one buffer that is zeroized and never grows, and the file that it was read from.
struct KeyText {
    text: Zeroizing<Vec<u8>>,
    /// None for standard input.
    file: Option<File>,
    warning: Option<String>,
}

/// Reads the key's file. One that will be removed is opened so that it can be overwritten, and a link to it is refused:
/// the key would survive under its own name.
fn read_key(path: &Path, removable: bool) -> Result<KeyText, String> {
    let name = shown(path);
    let failed = |error: std::io::Error| {
        let (reason, remedy) = unreadable(&error);
        format!("{name}: {reason}; {remedy}")
    };
    let mut buffer = Zeroizing::new(vec![0; KEY_MAX + 1]);
    let mut warning = None;
    let is_file = path != Path::new("-");
    let mut file = if is_file {
        if removable && path.is_symlink() {
            return Err(format!("{name}: a symbolic link; --remove-key-file needs the name of the file itself"));
        }
        let flags = if removable { O_NOFOLLOW } else { 0 };
        let file = open_input_with(path, File::options().read(true).write(removable), flags).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if removable && !metadata.is_file() {
            return Err(format!("{name}: not a regular file, which --remove-key-file cannot remove; leave that out"));
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o044 != 0 {
            warning = Some(format!("{name}: the private key can be read by others (mode {mode:03o}); chmod 600 it"));
        }
        file
    } else {
        // A descriptor of its own: the library's standard input would keep the key in a buffer that is not zeroized.
        File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)
    };
    let mut filled = 0;
    while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
        match file.read(space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if filled > KEY_MAX {
        return Err(format!("{name}: larger than 64 KiB; this is no private key"));
    }
    buffer.truncate(filled);
    Ok(KeyText { text: buffer, file: is_file.then_some(file), warning })
}

/// Describes how a key was imported.
pub(in crate::cli) fn how(report: &ImportReport) -> &'static str {
    match report.private_key {
        How::AlreadyThere => "it was there already and was not touched",
        How::Clear => "handed over in the clear",
        How::Wrapped { level: Level::AesKeyGeneratedInToken, .. } => {
            "it crossed the boundary wrapped, under a key that the token revealed to this program"
        }
        How::Wrapped { .. } => "it crossed the boundary wrapped",
    }
}
