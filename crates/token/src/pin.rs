//! The PIN, read only from a file or a descriptor: never from an argument, an environment variable or a URI.
//!
//! The bytes are zeroized from the first one read. An attacker who can write the file could have wrong PINs tried until
//! the token is locked, so a file writable by others is rejected; one readable by others causes a warning.

use std::{
    borrow::Cow,
    error::Error,
    fmt,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use process::error::{Advice, Remedy};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Maximum length of a PIN. Tokens that report a maximum report at most 255 bytes (PKCS#11 sets no bound).
const MAX_PIN: usize = 1024;

/// A PIN or passphrase file cannot be used. Never contains any of its content.
#[derive(Debug)]
pub struct PinError {
    /// Type of content: `PIN` or `passphrase`.
    secret: &'static str,
    path: PathBuf,
    problem: PinProblem,
}

/// Problem of a PIN file.
#[derive(Debug)]
enum PinProblem {
    /// UTF-8 with a byte order mark, which would be sent as a part of the PIN.
    ByteOrderMark,
    /// Nothing before the end of the line.
    Empty,
    /// It is a directory, a FIFO or a device.
    NotAFile,
    /// It is not UTF-8, or has control characters such as a second line.
    NotText,
    /// It is longer than `MAX_PIN`.
    TooLong,
    /// It cannot be opened or read.
    Unreadable(io::Error),
    /// UTF-16, as some editors on Windows write it.
    Utf16,
    /// Group or others may write it; its permission bits.
    Writable(u32),
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret, path, problem } = self;
        let path = path.display();
        match problem {
            PinProblem::ByteOrderMark => write!(f, "the {secret} file {path} begins with a byte order mark"),
            PinProblem::Utf16 => write!(f, "the {secret} file {path} is encoded in UTF-16"),
            PinProblem::Empty => write!(f, "the {secret} in {path} is empty"),
            PinProblem::NotAFile => write!(f, "{path} is not a regular file"),
            PinProblem::NotText => write!(f, "the {secret} in {path} is not UTF-8 text without control characters"),
            PinProblem::TooLong => write!(f, "the {secret} in {path} is longer than {MAX_PIN} bytes"),
            PinProblem::Unreadable(_) => write!(f, "the {secret} file {path} cannot be read"),
            PinProblem::Writable(mode) => {
                write!(f, "the {secret} file {path} can be written by its group or by others (mode {mode:04o})")
            }
        }?;
        Advice(self).fmt(f)
    }
}

impl Error for PinError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            PinProblem::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

impl Remedy for PinError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        let Self { secret, path, .. } = self;
        let path = path.display();
        Some(match self.problem {
            PinProblem::ByteOrderMark => format!("remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' {path}").into(),
            PinProblem::Utf16 => {
                format!("convert it: (umask 077; iconv -f UTF-16 -t UTF-8 {path} > {path}.new && mv {path}.new {path})")
                    .into()
            }
            PinProblem::Empty => format!("write the {secret} into it").into(),
            PinProblem::NotAFile => format!("name the file that holds the {secret}").into(),
            PinProblem::NotText => format!("write the {secret} alone on one line").into(),
            PinProblem::TooLong => format!("write the {secret} alone into it").into(),
            PinProblem::Unreadable(_) => "check its path and permissions".into(),
            PinProblem::Writable(_) => "chmod go-w it".into(),
        })
    }
}

/// Reads the PIN from a file: its first line, which must be the only one. A file readable by all users is reported in
/// the log.
///
/// # Errors
/// If the file cannot be read, is not a regular file, is writable by group or others, is empty, has more than one line
/// or more than 1024 bytes, or is not UTF-8.
pub fn read(path: &Path) -> Result<SecretString, PinError> {
    read_secret(path, "PIN")
}

/// Like [`read`], for a file with another secret; `secret` is its name in errors.
///
/// # Errors
/// Those of [`read`].
pub fn read_secret(path: &Path, secret: &'static str) -> Result<SecretString, PinError> {
    let failed = |problem| PinError { secret, path: path.to_owned(), problem };
    let unreadable = |error| failed(PinProblem::Unreadable(error));
    // Non-blocking, so that opening a FIFO does not block. Symbolic links are followed: a Kubernetes Secret's files are
    // links.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits() | nix::fcntl::OFlag::O_CLOEXEC.bits())
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(failed(PinProblem::NotAFile));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(failed(PinProblem::Writable(mode)));
    }
    if mode & 0o004 != 0 {
        tracing::warn!(path = %path.display(), "the {secret} file is world-readable; chmod o-r it");
    }
    read_line(file).map_err(failed)
}

/// Reads the PIN from an open descriptor, pipe or terminal (`--pin-fd`), or a socket; `name` is its name in errors.
///
/// # Errors
/// Those of [`read`], without the checks of the file's mode.
pub fn read_open(source: impl Read, name: &Path) -> Result<SecretString, PinError> {
    read_line(source).map_err(|problem| PinError { secret: "PIN", path: name.to_owned(), problem })
}

/// A PIN in memory that is never written to swap space (mlock(2)); zeroized when it is dropped.
pub struct LockedPin {
    // Zeroized before its pages are unlocked.
    pin: SecretString,
    _pages: region::LockGuard,
}

impl fmt::Debug for LockedPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockedPin")
    }
}

impl LockedPin {
    /// Locks the memory of a PIN.
    ///
    /// # Errors
    /// If the operating system refuses, usually because of RLIMIT_MEMLOCK.
    pub fn new(pin: SecretString) -> Result<Self, io::Error> {
        let text = pin.expose_secret();
        let pages = region::lock(text.as_ptr(), text.len().max(1)).map_err(io::Error::other)?;
        Ok(Self { pin, _pages: pages })
    }

    /// The PIN.
    #[must_use]
    pub fn pin(&self) -> &SecretString {
        &self.pin
    }
}

fn read_line(mut source: impl Read) -> Result<SecretString, PinProblem> {
    // One fixed buffer: a reallocated one would leave copies behind.
    let mut buffer = Zeroizing::new([0_u8; MAX_PIN + 2]);
    // Not in swap space either, unless the operating system refuses that.
    let _pages = region::lock(buffer.as_ptr(), buffer.len());
    let mut filled = 0;
    while let Some(space) = buffer.get_mut(filled..).filter(|s| !s.is_empty()) {
        match source.read(space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PinProblem::Unreadable(error)),
        }
    }
    let bytes = buffer.get(..filled).unwrap_or_default();
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(PinProblem::ByteOrderMark);
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(PinProblem::Utf16);
    }
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").filter(|_| line.len() < bytes.len()).unwrap_or(line);
    if line.len() > MAX_PIN {
        return Err(PinProblem::TooLong);
    }
    if line.is_empty() {
        return Err(PinProblem::Empty);
    }
    let text = std::str::from_utf8(line).map_err(|_| PinProblem::NotText)?;
    if text.chars().any(char::is_control) {
        return Err(PinProblem::NotText);
    }
    // Boxed with its exact size, so that the conversion does not move any byte.
    Ok(SecretString::from(Box::<str>::from(text)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use process::error::Report;

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
        let cases: [(&[u8], u32, fn(&PinProblem) -> bool); 13] = [
            (b"\xef\xbb\xbf1234\n", 0o600, |e| matches!(e, PinProblem::ByteOrderMark)),
            (b"\xff\xfe1\x002\x00", 0o600, |e| matches!(e, PinProblem::Utf16)),
            (b"\xfe\xff\x001\x002", 0o600, |e| matches!(e, PinProblem::Utf16)),
            (b"", 0o600, |e| matches!(e, PinProblem::Empty)),
            (b"\n", 0o600, |e| matches!(e, PinProblem::Empty)),
            (b"\r\n", 0o600, |e| matches!(e, PinProblem::Empty)),
            (b"1\n2\n", 0o600, |e| matches!(e, PinProblem::NotText)),
            (b"1\0", 0o600, |e| matches!(e, PinProblem::NotText)),
            (b"\xff", 0o600, |e| matches!(e, PinProblem::NotText)),
            (&long, 0o600, |e| matches!(e, PinProblem::TooLong)),
            (&endless, 0o600, |e| matches!(e, PinProblem::TooLong)),
            (b"1234", 0o620, |e| matches!(e, PinProblem::Writable(0o620))),
            (b"1234", 0o602, |e| matches!(e, PinProblem::Writable(0o602))),
        ];
        for (content, mode, expected) in cases {
            let (_directory, path) = file(content, mode);
            let error = read(&path).unwrap_err();
            assert!(expected(&error.problem), "{error}");
            assert!(!error.to_string().contains("1234"));
        }
    }

    #[test]
    fn refuses_what_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()).unwrap_err().problem, PinProblem::NotAFile));
        assert!(matches!(read(&directory.path().join("none")).unwrap_err().problem, PinProblem::Unreadable(_)));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&fifo).unwrap_err().problem, PinProblem::NotAFile));
    }

    #[test]
    fn errors_name_the_secret_and_the_remedy() {
        let (_directory, path) = file(b"", 0o600);
        let report = Report::from(&read_secret(&path, "passphrase").unwrap_err());
        assert_eq!(report.problem, format!("the passphrase in {} is empty", path.display()));
        assert_eq!(report.remedy.as_deref(), Some("write the passphrase into it"));
    }

    #[test]
    fn locked_pin_is_in_locked_memory() {
        let locked_kib = || -> u64 {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let pin = LockedPin::new(SecretString::from("1234")).unwrap();
        assert!(locked_kib() > 0);
        assert_eq!(pin.pin().expose_secret(), "1234");
        assert!(!format!("{pin:?}").contains("1234"));
    }

    #[test]
    fn a_descriptor_has_no_mode() {
        let (_directory, path) = file(b"1234\n", 0o666);
        let pin = read_open(fs::File::open(&path).unwrap(), Path::new("descriptor 3")).unwrap();
        assert_eq!(pin.expose_secret(), "1234");
    }
}
