//! `ceremony split-pin`: one file for each holder of a share.

use std::{
    fs::{DirBuilder, File},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use zeroize::Zeroizing;

use super::shares;
use process::output::{self, Output};
use token::pin;

/// Arguments of `ceremony split-pin`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of shares, one for each holder
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(2..=100))]
    shares: u8,
    /// How many of them are needed to restore the PIN
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(2..=100))]
    threshold: u8,
    /// A new directory for the files share-1.txt and so on
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the PIN is for, in each file: the token's label and place
    #[arg(long, value_name = "TEXT", default_value = "a token")]
    name: String,
    /// A file with the PIN [default: a prompt, twice]
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    /// An open descriptor from which the PIN is read
    #[arg(long, value_name = "NUMBER", conflicts_with = "pin_file")]
    pin_fd: Option<u32>,
}

/// Result of the command.
#[derive(Debug, Serialize)]
struct Split {
    threshold: u8,
    files: Vec<PathBuf>,
}

/// Splits the PIN.
///
/// # Errors
/// If the numbers do not fit, there is no PIN, or the files cannot be written.
pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<()> {
    if args.shares < args.threshold {
        bail!(
            "--shares {} is less than --threshold {}, and the PIN could never be restored; make at least as many shares as are \
             needed",
            args.shares,
            args.threshold
        );
    }
    if args.name.chars().any(char::is_control) {
        bail!("--name must be one line without control characters");
    }
    let directory = args.out.display();
    if args.out.exists() {
        bail!(
            "--out {directory}: exists already, and shares of another PIN are not mixed with these; name a new directory"
        );
    }
    let pin = read(args)?;
    let shares = shares::split(&pin, args.threshold, args.shares)?;
    DirBuilder::new().mode(0o700).create(&args.out).with_context(|| format!("--out {directory}: cannot be created"))?;
    let mut files = Vec::new();
    for share in &shares {
        let path = args.out.join(format!("share-{}.txt", share.number()));
        let head = format!(
            "# Share {} of {} of the PIN of {}. {} shares restore the PIN.\n# Keep it apart from the others.\n",
            share.number(),
            shares.len(),
            args.name,
            args.threshold
        );
        let write = || -> std::io::Result<()> {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(head.as_bytes())?;
            file.write_all(share.to_text().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().with_context(|| format!("{}: cannot be written", path.display()))?;
        files.push(path);
    }
    output.print(&Split { threshold: args.threshold, files }, |split| {
        format!(
            "{} shares are in {directory}, {} of which restore the PIN\ngive one file to each holder, and remove the directory \
             afterwards\n",
            split.files.len(),
            split.threshold
        )
    })
}

fn read(args: &Args) -> anyhow::Result<SecretString> {
    if let Some(number) = args.pin_fd {
        let path = PathBuf::from(format!("/dev/fd/{number}"));
        let file = File::open(&path).with_context(|| format!("--pin-fd {number} cannot be read"))?;
        return Ok(pin::read_open(file, &path)?);
    }
    if let Some(path) = &args.pin_file {
        return Ok(pin::read(path)?);
    }
    if !output::interactive() {
        bail!("no PIN to be split; give --pin-file, or run it at a terminal");
    }
    let ask = |prompt| -> anyhow::Result<SecretString> {
        let typed = Zeroizing::new(rpassword::prompt_password(prompt)?);
        Ok(SecretString::from(Box::<str>::from(typed.as_str())))
    };
    let (first, second) = (ask("PIN to be split: ")?, ask("The same PIN again: ")?);
    if first.expose_secret() != second.expose_secret() {
        bail!("the two PINs differ; type the same PIN twice");
    }
    if first.expose_secret().is_empty() {
        bail!("the PIN is empty; type the PIN of the token");
    }
    Ok(first)
}
