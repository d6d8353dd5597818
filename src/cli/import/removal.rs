//! Removes the key file, or the key from its Secret, after all checks have passed.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::unistd::{AccessFlags, eaccess};

use super::{Source, Under, source::KeyFile};
use process::files;
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
    let Some(key_file) = &source.key_file else {
        bail!("the key came by standard input; there is no file to remove");
    };
    proven(source, tokens, &key_file.path.display().to_string())?;
    erase(key_file)?;
    Ok(key_file.path.clone())
}

/// Overwrites and removes a file. Overwriting helps on plain disks and does no harm on others; it is no promise. It reaches
/// what was read, also where that has another name by now.
fn erase(KeyFile { path, file }: &KeyFile) -> anyhow::Result<()> {
    let shown = path.display();
    overwrite(file).with_context(|| format!("{shown} could not be overwritten; remove it by hand"))?;
    if !files::is_at(path, file).unwrap_or(false) {
        bail!(
            "the key was overwritten, but {shown} is not the file that it was read from: somebody has moved or replaced it \
             since; see who did, and whether there is a copy of the key"
        );
    }
    files::remove(path, file).with_context(|| format!("{shown} could not be removed; remove it by hand"))
}

/// Puts zeros in the place of a file's content.
fn overwrite(mut file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.sync_all()
}

/// Removes the key from its Secret, after each token has proven again that it holds the key.
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_the_file_that_was_read_is_erased() {
        let directory = tempfile::tempdir().unwrap();
        let [path, moved, other] = ["ca-key.pem", "moved", "other"].map(|name| directory.path().join(name));
        fs::write(&path, "the key").unwrap();
        fs::write(&other, "not ours").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let key_file = KeyFile { path: path.clone(), file };
        fs::rename(&path, &moved).unwrap();
        symlink(&other, &path).unwrap();
        let error = erase(&key_file).unwrap_err().to_string();
        assert!(error.contains("moved or replaced"), "{error}");
        assert_eq!(fs::read(&other).unwrap(), b"not ours");
        assert_eq!(fs::read(&moved).unwrap(), [0; 7]);
        assert!(path.is_symlink());
        fs::rename(&moved, &path).unwrap();
        erase(&key_file).unwrap();
        assert!(!path.exists());
    }
}
