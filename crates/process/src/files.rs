//! Small files that outlive a crash, and files at paths that others may change meanwhile: what was opened is what counts,
//! and links are not followed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc::{EISDIR, ENXIO, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_PATH},
    sys::statfs::{FsType, fstatfs},
};

/// Replaces a file durably with mode 0600: at any moment, also after a power failure, it has its old or its new content.
///
/// Uses the name of the file with `.new` appended; two processes must not replace the same file at the same time.
///
/// # Errors
/// If a step fails; the old content remains unless only flushing the directory failed.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with_mode(path, content, 0o600)
}

/// The same with another mode, before the umask.
///
/// # Errors
/// Those of [`replace`].
pub fn replace_with_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// File system type of pipes without a name (pipe(7)), as fstatfs(2) reports it; PIPEFS_MAGIC in linux/magic.h.
const PIPEFS_MAGIC: FsType = FsType(0x5049_5045);

/// Opens an operator's file for reading, without blocking: a regular file, or a pipe that has no name, which is what
/// `/dev/stdin` and the `/dev/fd/N` of a shell's process substitution are. Symbolic links are followed.
///
/// # Errors
/// If it cannot be opened or is a directory; [`io::ErrorKind::InvalidInput`] if it is a FIFO, a device or a socket.
pub fn open_input(path: &Path) -> io::Result<File> {
    open_input_with(path, OpenOptions::new().read(true), 0)
}

/// The same with other options and open(2) flags.
///
/// # Errors
/// Those of [`open_input`].
pub fn open_input_with(path: &Path, options: &mut OpenOptions, flags: i32) -> io::Result<File> {
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let opened = options.custom_flags(flags | O_NONBLOCK | O_NOCTTY).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        // What open(2) returns for a socket.
        Some(ENXIO) => not_regular("a socket or a device"),
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::from_raw_os_error(EISDIR));
    }
    if kind.is_fifo() && fstatfs(&file).map_err(io::Error::from)?.filesystem_type() == PIPEFS_MAGIC {
        // This descriptor's own flag: opening the pipe made another open file description.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(io::Error::from)?;
        return Ok(file);
    }
    match kind {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_fifo() => Err(not_regular("a FIFO")),
        _ => Err(not_regular("a device")),
    }
}

fn not_regular(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file"))
}

/// Reads an operator's file, up to one byte more than `most` bytes, so that the caller can refuse a larger one.
///
/// # Errors
/// Those of [`open_input`], and those of reading.
pub fn read_input(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let mut content = Vec::new();
    open_input(path)?.take(limit).read_to_end(&mut content)?;
    Ok(content)
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
    fn only_regular_files_and_nameless_pipes_are_inputs() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "content").unwrap();
        symlink(at("file"), at("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_input(&at(name), 7).unwrap(), b"content");
        }
        assert_eq!(read_input(&at("file"), 3).unwrap(), b"cont", "one byte more than the maximum");

        let (reader, mut writer) = io::pipe().unwrap();
        let pipe = format!("/dev/fd/{}", reader.as_raw_fd());
        let written = std::thread::spawn(move || {
            // Later than the reader, which has to wait for it.
            std::thread::sleep(std::time::Duration::from_millis(50));
            writer.write_all(b"from a pipe")
        });
        assert_eq!(read_input(Path::new(&pipe), 100).unwrap(), b"from a pipe");
        written.join().unwrap().unwrap();

        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink(at("fifo"), at("link to a fifo")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let refused = [
            (at("fifo"), "a FIFO"),
            (at("link to a fifo"), "a FIFO"),
            (at("socket"), "a socket"),
            ("/dev/zero".into(), "a device"),
        ];
        for (path, what) in refused {
            let error = open_input(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", path.display());
            assert!(error.to_string().contains(what), "{}: {error}", path.display());
        }
        assert_eq!(open_input(directory.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(open_input(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
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
