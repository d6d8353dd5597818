//! The PIN, read from a file or a descriptor, and nowhere else: never from an argument, a variable or a URI.
//!
//! The bytes are zeroized from the first one read. Whoever can write the file can have the daemon try wrong PINs
//! until the token is locked, so that a file writable by others is refused; one that others can read is told.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use secrecy::SecretString;
use zeroize::Zeroizing;

/// Longest PIN that is read. Tokens that tell a maximum tell at most 255 bytes (PKCS#11 sets no bound).
const MAX_PIN: usize = 1024;

/// Why there is no PIN. Never carries any of it.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Nothing before the end of the line.
    #[error("the PIN in {0} is empty; write the PIN into it")]
    Empty(PathBuf),
    /// Not a regular file.
    #[error("{0} is not a regular file; name the file that holds the PIN")]
    NotAFile(PathBuf),
    /// Not text.
    #[error("the PIN in {0} is not UTF-8 text without control characters; write the PIN alone on one line")]
    NotText(PathBuf),
    /// Longer than any PIN.
    #[error("the PIN in {0} is longer than {MAX_PIN} bytes; write the PIN alone into it")]
    TooLong(PathBuf),
    /// Cannot be opened or read.
    #[error("the PIN file {path} cannot be read; check its path and permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may change it.
    #[error("the PIN file {path} can be written by its group or by others (mode {mode:04o}); chmod go-w it")]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Reads the PIN from a file: its first line, which must be the only one. A file that everybody can read is told in
/// the log.
///
/// # Errors
/// When the file cannot be read, is no regular file, may be written by group or others, is empty, has more than one
/// line or more than 1024 bytes, or is not UTF-8.
pub fn read(path: &Path) -> Result<SecretString, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.to_owned(), source };
    // Non-blocking, so that a FIFO in the file's place does not hold us up. Links are followed: a Kubernetes Secret's
    // files are links.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits() | nix::fcntl::OFlag::O_CLOEXEC.bits())
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(PinError::NotAFile(path.to_owned()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(PinError::Writable { path: path.to_owned(), mode });
    }
    if mode & 0o004 != 0 {
        tracing::warn!(path = %path.display(), "the PIN file can be read by everybody; chmod o-r it");
    }
    read_open(file, path)
}

/// Reads the PIN from an open descriptor, pipe or terminal (`--pin-fd`); `name` is what errors call it.
///
/// # Errors
/// As [`read`], without the checks of the file's mode.
pub fn read_open(mut source: File, name: &Path) -> Result<SecretString, PinError> {
    // One fixed buffer: a growing one would leave copies behind.
    let mut buffer = Zeroizing::new([0_u8; MAX_PIN + 2]);
    let mut filled = 0;
    while let Some(space) = buffer.get_mut(filled..).filter(|s| !s.is_empty()) {
        match source.read(space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(PinError::Unreadable { path: name.to_owned(), source }),
        }
    }
    let bytes = buffer.get(..filled).unwrap_or_default();
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").filter(|_| line.len() < bytes.len()).unwrap_or(line);
    if line.len() > MAX_PIN {
        return Err(PinError::TooLong(name.to_owned()));
    }
    if line.is_empty() {
        return Err(PinError::Empty(name.to_owned()));
    }
    let text = std::str::from_utf8(line).map_err(|_| PinError::NotText(name.to_owned()))?;
    if text.chars().any(char::is_control) {
        return Err(PinError::NotText(name.to_owned()));
    }
    // Boxed at its exact size, so that no byte is moved to another place on the way into the secret.
    Ok(SecretString::from(Box::<str>::from(text)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use secrecy::ExposeSecret;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn reads() {
        let longest = [b'1'; MAX_PIN];
        let cases: [(&[u8], &str); 6] = [
            (b"1234", "1234"),
            (b"1234\n", "1234"),
            (b"1234\r\n", "1234"),
            (b" 12 34 ", " 12 34 "),
            ("\u{e4}\n".as_bytes(), "\u{e4}"),
            (&longest, std::str::from_utf8(&longest).unwrap()),
        ];
        for (content, pin) in cases {
            for mode in [0o600, 0o400, 0o640, 0o644] {
                let (_directory, path) = file(content, mode);
                assert_eq!(read(&path).unwrap().expose_secret(), pin);
            }
        }
    }

    #[test]
    #[expect(clippy::type_complexity, reason = "a table")]
    fn refuses() {
        let long = [b'1'; MAX_PIN + 1];
        let endless = [b'1'; 4 * MAX_PIN];
        let cases: [(&[u8], u32, fn(&PinError) -> bool); 10] = [
            (b"", 0o600, |e| matches!(e, PinError::Empty(_))),
            (b"\n", 0o600, |e| matches!(e, PinError::Empty(_))),
            (b"\r\n", 0o600, |e| matches!(e, PinError::Empty(_))),
            (b"1\n2\n", 0o600, |e| matches!(e, PinError::NotText(_))),
            (b"1\0", 0o600, |e| matches!(e, PinError::NotText(_))),
            (b"\xff", 0o600, |e| matches!(e, PinError::NotText(_))),
            (&long, 0o600, |e| matches!(e, PinError::TooLong(_))),
            (&endless, 0o600, |e| matches!(e, PinError::TooLong(_))),
            (b"1234", 0o620, |e| matches!(e, PinError::Writable { mode: 0o620, .. })),
            (b"1234", 0o602, |e| matches!(e, PinError::Writable { mode: 0o602, .. })),
        ];
        for (content, mode, expected) in cases {
            let (_directory, path) = file(content, mode);
            let error = read(&path).unwrap_err();
            assert!(expected(&error), "{error}");
            assert!(!error.to_string().contains("1234"));
        }
    }

    #[test]
    fn refuses_what_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()), Err(PinError::NotAFile(_))));
        assert!(matches!(read(&directory.path().join("none")), Err(PinError::Unreadable { .. })));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&fifo), Err(PinError::NotAFile(_))));
    }

    #[test]
    fn a_descriptor_has_no_mode() {
        let (_directory, path) = file(b"1234\n", 0o666);
        let pin = read_open(File::open(&path).unwrap(), Path::new("descriptor 3")).unwrap();
        assert_eq!(pin.expose_secret(), "1234");
    }
}
