//! Signs a transcript with an operator's SSH key, by ssh-keygen: the key may be in an agent or on a security key, and this
//! program never sees it. `ssh-keygen -Y verify` verifies the signature.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

/// The namespace of the signatures (ssh-keygen(1), -n), which keeps them apart from those of commits and the like.
pub(super) const NAMESPACE: &str = "istio-hsm-ca-ceremony";

/// An operator's key.
#[derive(Debug)]
pub(super) struct SshKey {
    path: PathBuf,
    /// As `ssh-keygen -l` prints it: length, SHA-256, comment, type.
    pub(super) description: String,
}

impl SshKey {
    /// Takes the key of a file (a private key, or the public one of a key in the agent), and makes sure that it signs.
    ///
    /// # Errors
    /// If ssh-keygen is missing, or the key does not sign.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let listed = ssh_keygen(&["-l".as_ref(), "-f".as_ref(), path.as_os_str()], None)
            .with_context(|| format!("--sign-with {name}: it is not an SSH key"))?;
        let key = Self { path: path.to_owned(), description: listed.trim().to_owned() };
        let directory = tempfile::tempdir()?;
        let probe = directory.path().join("probe");
        std::fs::write(&probe, "a probe of the key that is to sign the transcript\n")?;
        key.sign(&probe).with_context(|| format!("--sign-with {name}: the key does not sign"))?;
        Ok(key)
    }

    /// Signs a file. Returns the path of the signature, which is verified.
    ///
    /// # Errors
    /// If ssh-keygen refuses.
    pub(super) fn sign(&self, file: &Path) -> anyhow::Result<PathBuf> {
        let mut signature = file.as_os_str().to_owned();
        signature.push(".sig");
        let signature = PathBuf::from(signature);
        if signature.exists() {
            bail!("{}: exists already and is not overwritten; move it away", signature.display());
        }
        let namespace = OsStr::new(NAMESPACE);
        let key = self.path.as_os_str();
        ssh_keygen(
            &["-Y".as_ref(), "sign".as_ref(), "-f".as_ref(), key, "-n".as_ref(), namespace, file.as_os_str()],
            None,
        )?;
        let check = ["-Y".as_ref(), "check-novalidate".as_ref(), "-n".as_ref(), namespace, "-s".as_ref()];
        ssh_keygen(&[check.as_slice(), &[signature.as_os_str()]].concat(), Some(file))?;
        Ok(signature)
    }
}

/// Runs ssh-keygen, which asks at the terminal for a passphrase or a touch.
fn ssh_keygen(arguments: &[&OsStr], input: Option<&Path>) -> anyhow::Result<String> {
    let stdin = match input {
        Some(path) => Stdio::from(File::open(path)?),
        None => Stdio::null(),
    };
    let output = Command::new("ssh-keygen").args(arguments).stdin(stdin).output();
    let output = output.context("ssh-keygen cannot be run; install OpenSSH 8.2 or newer")?;
    if !output.status.success() {
        let text = [output.stderr, output.stdout].concat();
        bail!("ssh-keygen: {}", String::from_utf8_lossy(&text).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
