//! The CSR for the root's owner.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::{Key, left_behind};
use crate::cli::{bundle_dir, ceremony::signing};
use pki::request::{CaRequest, Subject};
use process::output::Output;
use token::{Session, generate::Generated};

/// Result of the command.
#[derive(Debug, Serialize)]
struct Requested {
    #[serde(flatten)]
    key: Generated,
    csr: PathBuf,
}

pub(super) fn run(key: &Key<'_>, file: &Path, subject: &Subject, output: Output) -> anyhow::Result<()> {
    if file.exists() {
        bail!("{}: exists already and is not overwritten; name another file", file.display());
    }
    bundle_dir::check_file(file).context("no key was made: --csr")?;
    let opened = key.token.open()?;
    let session = opened.login(true)?;
    let made = key.make(&opened, &session)?;
    write(&session, &made, file, subject).with_context(|| left_behind(&made))?;
    output.print(&Requested { key: made, csr: file.to_owned() }, |done| {
        format!(
            "{} key {} (CKA_ID {}) was made in the token {}\n\
             request: {}; have the root's owner sign it as a CA, then run `istio-hsm-ca install`\n",
            done.key.algorithm,
            done.key.label,
            done.key.id,
            done.key.token.label,
            done.csr.display()
        )
    })
}

fn write(session: &Session, made: &Generated, file: &Path, subject: &Subject) -> anyhow::Result<()> {
    let request = CaRequest::new(subject, made.public_key.clone())?;
    let signature = signing::sign_request(session, &request)?;
    let pem = request.assemble(&signature)?;
    Ok(bundle_dir::write_file(file, pem.as_bytes(), 0o644)?)
}
