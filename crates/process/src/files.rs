//! Small files that outlive a crash, and files at paths that others may change meanwhile: what was opened is what counts,
//! and links are not followed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use nix::libc::{O_NOFOLLOW, O_PATH};

/// Replaces a file durably with mode 0600: at any moment, also after a power failure, it has its old or its new content.
///
/// Uses the name of the file with `.new` appended; two processes must not replace the same file at the same time.
///
/// # Errors
/// If a step fails; the old content remains unless only flushing the directory failed.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Whether a path still names an opened file itself, and no link to it.
///
/// # Errors
/// When the path or the file cannot be looked at.
pub fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let (there, opened) = (fs::symlink_metadata(path)?, file.metadata()?);
    Ok((there.dev(), there.ino()) == (opened.dev(), opened.ino()))
}

/// Removes a path that still names an opened file.
///
/// # Errors
/// When it names another one by now, or cannot be removed.
pub fn remove(path: &Path, file: &File) -> io::Result<()> {
    if is_at(path, file)? { fs::remove_file(path) } else { Err(io::Error::other("another file is there by now")) }
}

/// Removes the socket that a process which has ended left at a path, if there is one.
///
/// # Errors
/// When anything but a socket is there, or it cannot be removed.
pub fn remove_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "what is there is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets the mode of the socket at a path.
///
/// # Errors
/// When anything but a socket is there, or its mode cannot be set.
pub fn set_socket_mode(path: &Path, mode: u32) -> io::Result<()> {
    let socket = OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW).open(path)?;
    if !socket.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("what is there is not a socket"));
    }
    // fchmod(2) takes no descriptor that was opened with O_PATH, and a socket's path cannot be opened otherwise.
    fs::set_permissions(format!("/proc/self/fd/{}", socket.as_raw_fd()), fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn replaced_file_is_private_and_leaves_no_other_behind() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("file"), directory.path().join("elsewhere"));
        fs::write(&elsewhere, "untouched").unwrap();
        // A symbolic link left by an interrupted run or created by another process is not followed.
        symlink(&elsewhere, directory.path().join("file.new")).unwrap();
        for content in ["one", "another one", ""] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(replace(&directory.path().join("missing/file"), b"").is_err());
    }

    #[test]
    fn only_the_opened_file_is_removed() {
        let directory = std::env::temp_dir().join(format!("files-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (path, elsewhere) = (directory.join("key"), directory.join("elsewhere"));
        fs::write(&path, "key").unwrap();
        let file = File::open(&path).unwrap();
        fs::rename(&path, &elsewhere).unwrap();
        for replace in [|_: &Path, to: &Path| fs::write(to, "other"), |from: &Path, to: &Path| symlink(from, to)] {
            replace(&elsewhere, &path).unwrap();
            assert!(remove(&path, &file).is_err());
            fs::remove_file(&path).unwrap();
        }
        remove(&elsewhere, &file).unwrap();
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn nothing_but_a_socket_is_removed_or_changed() {
        let directory = std::env::temp_dir().join(format!("sockets-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (file, link, socket) = (directory.join("file"), directory.join("link"), directory.join("socket"));
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        let before = fs::metadata(&file).unwrap().permissions();
        for path in [&file, &link] {
            assert!(remove_socket(path).is_err() && set_socket_mode(path, 0o600).is_err(), "{}", path.display());
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions(), before);
        drop(UnixListener::bind(&socket).unwrap());
        set_socket_mode(&socket, 0o600).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        remove_socket(&socket).unwrap();
        remove_socket(&socket).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
