//! Removes the key file, or the key from its Secret, once every proof has passed.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::unistd::{AccessFlags, eaccess};

use super::{Source, Under};
use token::key;

/// Why the key's file could not be removed, found before the import. Changes nothing.
pub(super) fn unremovable(path: &Path) -> Option<String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = File::options().write(true).open(path).map(drop);
    let error = opened.and_then(|()| Ok(eaccess(parent, AccessFlags::W_OK | AccessFlags::X_OK)?)).err()?;
    Some(format!(
        "--remove-key-file: {} could not be removed: {error}; let this user write it and its directory, or leave the flag out",
        path.display()
    ))
}

/// Overwrites and removes the key's file. Each token is asked once more whether it holds the key.
pub(super) fn remove(source: &Source, tokens: &[Under<'_>]) -> anyhow::Result<PathBuf> {
    let Some(path) = &source.key_file else {
        bail!("the key came by standard input; there is no file to remove");
    };
    proven(source, tokens, &path.display().to_string())?;
    let kept = || format!("{} could not be removed; remove it by hand", path.display());
    // Overwriting helps on plain disks and does no harm on others; it is no promise.
    let mut file = File::options().write(true).open(path).with_context(kept)?;
    let length = file.metadata().with_context(kept)?.len();
    file.seek(SeekFrom::Start(0)).with_context(kept)?;
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), length), &mut file).with_context(kept)?;
    file.flush().and_then(|()| file.sync_all()).with_context(kept)?;
    std::fs::remove_file(path).with_context(kept)?;
    Ok(path.clone())
}

/// Takes the key out of its Secret. Each token is asked once more whether it holds the key.
pub(super) fn remove_from_secret(source: &Source, tokens: &[Under<'_>]) -> anyhow::Result<()> {
    let Some(secret) = &source.secret else { bail!("the key came from files; there is no Secret to take it out of") };
    proven(source, tokens, &format!("the key in {secret}"))?;
    secret.remove_key()
}

fn proven(source: &Source, tokens: &[Under<'_>], what: &str) -> anyhow::Result<()> {
    for (uri, opened) in tokens {
        let session = opened.login(false)?;
        key::find_private_key(&session, source.key.public_key())
            .with_context(|| format!("{what} is kept: {uri} does not show the key"))?;
    }
    Ok(())
}
