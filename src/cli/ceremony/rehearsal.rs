//! A rehearsal: the ceremony on a temporary SoftHSM token, whose keys stand in for those of the CA.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use secrecy::SecretString;

use crate::cli::token::Opened;
use token::{Module, TokenUri, key::hex, rehearsal::new_token};

/// Where distributions install SoftHSM.
const SOFTHSM: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];

/// Runs the same command again with a configuration of SoftHSM in a temporary directory, which the library reads from its
/// environment alone. Returns whether it succeeded; if not, it has said why.
///
/// # Errors
/// If the command cannot be run.
pub(super) fn in_own_process() -> anyhow::Result<bool> {
    let directory = tempfile::Builder::new().prefix("istio-hsm-ca-rehearsal-").tempdir()?;
    let tokens = directory.path().join("tokens");
    fs::create_dir(&tokens)?;
    let configuration = directory.path().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(&configuration, text)?;
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--rehearsal-directory")
        .arg(directory.path())
        .env("SOFTHSM2_CONF", &configuration)
        .status()
        .context("the rehearsal cannot be started")?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(code == 0),
        (None, signal) => bail!("the rehearsal was ended by signal {}", signal.unwrap_or_default()),
    }
}

/// The temporary token, with a PIN that only this process knows.
///
/// # Errors
/// If SoftHSM is missing or fails.
pub(super) fn token(softhsm: Option<&Path>) -> anyhow::Result<(TokenUri, Opened)> {
    let found = || SOFTHSM.iter().map(PathBuf::from).find(|path| path.exists());
    let path = softhsm.map(Path::to_owned).or_else(found).context(
        "SoftHSM is missing, on whose token the rehearsal is performed; install the package softhsm2, or name its library \
         with --softhsm",
    )?;
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no random numbers are available"))?;
    let pin = SecretString::from(hex(&random));
    let uri: TokenUri = format!("pkcs11:token=rehearsal?module-path={}", path.display()).parse()?;
    let module = Module::load(&path)?;
    let token = new_token(&module, &uri, &pin)?;
    Ok((uri, Opened { token, module, pin: Some(pin) }))
}
