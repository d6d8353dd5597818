//! Writes the public bundle as a whole: a reader sees the old files or the new ones, never a mixture.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    libc::{O_NOFOLLOW, O_NONBLOCK},
};

/// Maximum size of other files in the directory that are kept: receipts are a few KiB.
const CARRY_MAX: u64 = 1024 * 1024;

/// A bundle directory could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct WriteError {
    path: PathBuf,
    what: &'static str,
    #[source]
    source: io::Error,
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError { path, what, source }
}

/// Checks in advance whether a bundle can be written there: the directory exists or can be created, and its parent is
/// writable. Leaves nothing behind.
///
/// # Errors
/// The obstacle.
pub fn check(directory: &Path) -> Result<(), WriteError> {
    if directory.exists() && !directory.is_dir() {
        let source = io::ErrorKind::NotADirectory.into();
        return Err(failed(directory, "is not a directory; name one, or a path where there is nothing yet")(source));
    }
    writable_above(directory)
}

/// Whether [`write_file`] could write there, before anything that cannot be undone is done for it. A file with
/// certificates alone may be replaced. Leaves nothing behind.
///
/// # Errors
/// What stands in the way.
pub fn check_file(path: &Path) -> Result<(), WriteError> {
    if path.is_dir() {
        return Err(failed(path, "is a directory; name a file")(io::ErrorKind::IsADirectory.into()));
    }
    if path.symlink_metadata().is_ok() && !holds_certificates_alone(path) {
        let reason = io::Error::other("it holds something else than certificates");
        return Err(failed(path, "is not overwritten; name another file")(reason));
    }
    writable_above(path)
}

fn holds_certificates_alone(path: &Path) -> bool {
    let small = path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= CARRY_MAX);
    let text = if small { fs::read_to_string(path).unwrap_or_default() } else { return false };
    let labels: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")).collect();
    text.trim().is_empty() || (!labels.is_empty() && labels.iter().all(|label| *label == "CERTIFICATE-----"))
}

/// Whether files can be made in the directory above a path, or in the nearest one above it that exists.
fn writable_above(path: &Path) -> Result<(), WriteError> {
    let above = path.ancestors().skip(1).find(|path| path.as_os_str().is_empty() || path.exists());
    let above = above.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // An unnamed file, if the file system supports it.
    let probed = tempfile::tempfile_in(above).map(drop);
    probed.map_err(failed(above, "cannot be written; this user must be allowed to create files there"))
}

/// Writes `files` (name and content) into `directory`, replacing those with the same name and keeping the others.
///
/// The files are written and flushed in a temporary directory next to it, which is then exchanged with it in one step
/// (`renameat2(RENAME_EXCHANGE)`). If that is impossible (a mount point, an unsupported file system), each file is
/// renamed into place separately, in the given order.
///
/// # Errors
/// If something cannot be written; the directory is unchanged then.
pub fn write(directory: &Path, files: &[(&str, &[u8])]) -> Result<(), WriteError> {
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(failed(parent, "cannot be created"))?;
    let staging = tempfile::Builder::new().prefix(".bundle-").tempdir_in(parent);
    let staging =
        staging.map_err(failed(parent, "cannot be written; the bundle's parent directory must be writable"))?;
    for (name, content) in files {
        let path = staging.path().join(name);
        put(&path, content).map_err(failed(&path, "cannot be written"))?;
    }
    if !directory.exists() {
        fs::set_permissions(staging.path(), fs::Permissions::from_mode(0o755))
            .and_then(|()| sync_dir(staging.path()))
            .and_then(|()| fs::rename(staging.path(), directory))
            .and_then(|()| sync_dir(parent))
            .map_err(failed(directory, "cannot be put in place"))?;
        let _gone = staging.keep();
        return Ok(());
    }
    let carried = carry_over(directory, staging.path(), files);
    if carried.is_ok() && exchange(staging.path(), directory).is_ok() {
        return sync_dir(parent).map_err(failed(parent, "cannot be flushed"));
    }
    for (name, _) in files {
        let path = directory.join(name);
        fs::read(staging.path().join(name))
            .and_then(|content| replace(directory, &path, &content, 0o644))
            .map_err(failed(&path, "cannot be put in place"))?;
    }
    sync_dir(directory).map_err(failed(directory, "cannot be flushed"))
}

fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Puts a whole file in the place of what is at a path, a link included.
fn replace(directory: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Carries the directory's other files over (receipts); anything but a small regular file forbids the exchange.
fn carry_over(from: &Path, to: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if files.iter().any(|(name, _)| entry.file_name() == *name) {
            continue;
        }
        let metadata = entry.metadata()?;
        if !metadata.is_file() || metadata.len() > CARRY_MAX {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // What it was a moment ago may be a link by now.
        let file = File::options().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(entry.path())?;
        let mut content = Vec::new();
        file.take(CARRY_MAX).read_to_end(&mut content)?;
        put(&to.join(entry.file_name()), &content)?;
    }
    let metadata = fs::metadata(from)?;
    fs::set_permissions(to, metadata.permissions())?;
    let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&metadata), std::os::unix::fs::MetadataExt::gid(&metadata));
    std::os::unix::fs::chown(to, Some(uid), Some(gid))?;
    sync_dir(to)
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).map_err(io::Error::from)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a single file (a receipt or a certificate request, neither of which contains a key) atomically.
///
/// # Errors
/// If it cannot be written.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .and_then(|()| replace(parent, path, content, mode))
        .and_then(|()| sync_dir(parent))
        .map_err(failed(path, "cannot be written"))
}

/// Name of a command's receipt, one per token, with the token's serial number made safe for a file name.
#[must_use]
pub fn receipt_name(command: &str, serial: &str) -> String {
    let serial: String = serial.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{command}-receipt-{}.json", if serial.is_empty() { "token" } else { &serial })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_its_own_files_and_keeps_the_others() {
        let temp = tempfile::tempdir().unwrap();
        let bundle = temp.path().join("a/bundle");
        write(&bundle, &[("ca-cert.pem", b"one"), ("root-cert.pem", b"root")]).unwrap();
        fs::write(bundle.join("receipt.json"), "{}").unwrap();
        let before = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&bundle).unwrap());
        write(&bundle, &[("ca-cert.pem", b"two"), ("root-cert.pem", b"root")]).unwrap();
        assert_eq!(fs::read(bundle.join("ca-cert.pem")).unwrap(), b"two");
        assert_eq!(fs::read(bundle.join("receipt.json")).unwrap(), b"{}");
        let after = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&bundle).unwrap());
        assert_ne!(after, before, "the directory was exchanged as a whole");
        assert_eq!(fs::read_dir(temp.path().join("a")).unwrap().count(), 1, "no leftovers next to it");
    }

    #[test]
    fn a_directory_that_cannot_be_exchanged_is_written_in_place() {
        let temp = tempfile::tempdir().unwrap();
        let bundle = temp.path().join("bundle");
        fs::create_dir_all(bundle.join("subdirectory")).unwrap();
        write(&bundle, &[("ca-cert.pem", b"one")]).unwrap();
        assert_eq!(fs::read(bundle.join("ca-cert.pem")).unwrap(), b"one");
        assert!(bundle.join("subdirectory").is_dir());
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let error = write(Path::new("/proc/nothing/bundle"), &[("a", b"")]).unwrap_err();
        assert!(error.to_string().contains("/proc"), "{error}");
    }

    #[test]
    fn file_is_checked_before_it_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        fs::write(path("chain.pem"), "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n").unwrap();
        fs::write(path("key.pem"), "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n").unwrap();
        fs::write(path("notes"), "something").unwrap();
        fs::write(path("empty"), "").unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
        for good in ["chain.pem", "empty", "new", "new/and/deeper"] {
            check_file(&path(good)).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, reason) in [
            (path(""), "is a directory; name a file"),
            (path("key.pem"), "holds something else than certificates"),
            (path("notes"), "holds something else than certificates"),
            (path("dangling"), "holds something else than certificates"),
            (path("notes/below"), "notes: cannot be written"),
            (PathBuf::from("/proc/nothing/chain.pem"), "/proc: cannot be written"),
        ] {
            let error = process::error::chain(&check_file(&bad).unwrap_err());
            assert!(error.contains(reason), "{reason}: {error}");
        }
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 5, "nothing is left");
    }

    #[test]
    fn a_place_is_checked_without_a_trace() {
        let temp = tempfile::tempdir().unwrap();
        for good in ["new", "new/and/deeper", "."] {
            check(&temp.path().join(good)).unwrap();
        }
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        for (bad, reason) in [
            (file.clone(), "file: is not a directory; name one"),
            (file.join("below"), "file: cannot be written"),
            (PathBuf::from("/proc/nothing/bundle"), "/proc: cannot be written"),
        ] {
            let error = check(&bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
