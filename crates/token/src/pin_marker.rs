//! Records that a PIN was rejected, so that it is not tried again: not by another session, another host, or the next
//! start of the daemon. Otherwise a crash loop or a few replicas would lock a token within a minute.
//!
//! The marker is a small file (next to the issuance log) that identifies the rejected state of the PIN file: device,
//! inode, size and time of change, but nothing of the PIN. Once the PIN file changes, the marker has no effect. The
//! token host checks it before each login.

use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc::O_NOFOLLOW;
use process::{
    error::{Advice, Remedy},
    files,
};

/// Maximum size of a marker in bytes.
const MOST: u64 = 4096;

/// The file that records a rejected PIN.
#[derive(Clone, Debug)]
pub struct PinMarker {
    path: PathBuf,
}

/// A PIN must not be tried, or this cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// The marker cannot be read or written.
    #[error("{path} cannot be used, which keeps a refused PIN from being tried again{advice}", advice = Advice(self))]
    Io {
        /// Path of the marker.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The PIN file does not exist or is not accessible.
    #[error("the PIN's file {path} cannot be found, so that no PIN is tried{advice}", advice = Advice(self))]
    PinFile {
        /// Path of the PIN file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// This PIN was rejected before.
    #[error(
        "the token refused the PIN in {pin_file}, and it is not tried again ({reason}){advice}",
        advice = Advice(self)
    )]
    Refused {
        /// Path of the PIN file.
        pin_file: PathBuf,
        /// Path of the marker.
        marker: PathBuf,
        /// The token's error.
        reason: String,
    },
}

impl Remedy for MarkerError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Io { .. } => Some("check its directory".into()),
            Self::Refused { marker, .. } => Some(
                format!("write the right PIN into that file, or delete {} if it is right by now", marker.display())
                    .into(),
            ),
            Self::PinFile { .. } => Some("put it back".into()),
        }
    }
}

impl PinMarker {
    /// A marker at a path; its directory must exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Checks whether the PIN in a file may be tried.
    ///
    /// # Errors
    /// If it was rejected in this very state of the file, or if that cannot be determined.
    pub fn check(&self, pin_file: &Path) -> Result<(), MarkerError> {
        let marked = match self.read() {
            Ok(marked) => marked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(MarkerError::Io { path: self.path.clone(), source }),
        };
        let (state, reason) = marked.split_once('\n').unwrap_or((&marked, ""));
        if state != state_of(pin_file)? {
            return Ok(());
        }
        Err(MarkerError::Refused {
            pin_file: pin_file.to_owned(),
            marker: self.path.clone(),
            reason: reason.trim_end().to_owned(),
        })
    }

    /// Makes sure that a rejection can be recorded before a PIN is tried; otherwise the next process would try it
    /// again.
    ///
    /// # Errors
    /// If no file can be written in the marker's directory.
    pub fn ready(&self) -> Result<(), MarkerError> {
        // Not the name that `mark` uses, which another process may be about to write.
        let probe = self.sibling(".probe");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(O_NOFOLLOW)
                .open(&probe)?;
            file.write_all(&[b'\n'; 1024])?;
            drop(file);
            match fs::remove_file(&probe) {
                // Another process probed at the same time.
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        write().map_err(|source| MarkerError::Io { path: self.path.clone(), source })
    }

    /// Durably records that the PIN in a file was rejected; `state` was taken with [`state_of`] before the file was
    /// read, so that a PIN written in between is not treated as rejected.
    ///
    /// # Errors
    /// If the marker cannot be written.
    pub fn mark(&self, state: &str, reason: &str) -> Result<(), MarkerError> {
        let io = |source| MarkerError::Io { path: self.path.clone(), source };
        let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect();
        files::replace(&self.path, format!("{state}\n{reason}\n").as_bytes()).map_err(io)
    }

    /// Removes the marker after the PIN was accepted.
    ///
    /// # Errors
    /// If the marker exists and cannot be removed.
    pub fn clear(&self) -> Result<(), MarkerError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(MarkerError::Io { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// A file for this marker only: the markers of several tokens share a directory.
    fn sibling(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    fn read(&self) -> io::Result<String> {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(File::open(&self.path)?, MOST), &mut text)?;
        Ok(text)
    }
}

/// Identifies the state of a file without its content, which is a secret.
///
/// # Errors
/// If the file does not exist.
pub fn state_of(pin_file: &Path) -> Result<String, MarkerError> {
    let metadata =
        fs::metadata(pin_file).map_err(|source| MarkerError::PinFile { path: pin_file.to_owned(), source })?;
    Ok(format!(
        "dev={} ino={} size={} mtime={}.{:09} ctime={}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, PathBuf, PinMarker) {
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path().join("pin");
        fs::write(&pin, "1234").unwrap();
        let marker = PinMarker::new(directory.path().join("token.pin-refused"));
        (directory, pin, marker)
    }

    #[test]
    fn a_refused_pin_is_refused_until_its_file_changes() {
        let (_directory, pin, marker) = files();
        marker.check(&pin).unwrap();
        marker.mark(&state_of(&pin).unwrap(), "CKR_PIN_INCORRECT\nand more").unwrap();
        let error = marker.check(&pin).unwrap_err();
        assert!(matches!(&error, MarkerError::Refused { reason, .. } if reason == "CKR_PIN_INCORRECT and more"));
        assert!(!error.to_string().contains("1234"));
        // Another process or another start: only the file matters.
        assert!(PinMarker::new(marker.path.clone()).check(&pin).is_err());
        fs::write(&pin, "4321").unwrap();
        marker.check(&pin).unwrap();
    }

    #[test]
    fn a_replaced_file_counts_as_changed() {
        let (directory, pin, marker) = files();
        marker.mark(&state_of(&pin).unwrap(), "").unwrap();
        let other = directory.path().join("other");
        fs::write(&other, "1234").unwrap();
        fs::rename(other, &pin).unwrap();
        marker.check(&pin).unwrap();
    }

    #[test]
    fn a_right_pin_clears_the_marker() {
        let (_directory, pin, marker) = files();
        marker.clear().unwrap();
        marker.mark(&state_of(&pin).unwrap(), "").unwrap();
        marker.clear().unwrap();
        marker.check(&pin).unwrap();
    }

    #[test]
    fn marker_that_cannot_be_written_is_reported_before_the_login() {
        let (directory, pin, marker) = files();
        marker.ready().unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names().count(), 1, "it leaves nothing behind: {:?}", names().collect::<Vec<_>>());
        marker.mark(&state_of(&pin).unwrap(), "refused").unwrap();
        marker.ready().unwrap();
        assert!(marker.check(&pin).is_err(), "the marker was removed");
        let nowhere = PinMarker::new(directory.path().join("nowhere/pin-refused"));
        assert!(matches!(nowhere.ready(), Err(MarkerError::Io { .. })));
    }

    #[test]
    fn tokens_that_are_refused_at_the_same_time_have_each_its_mark() {
        let (directory, pin, _) = files();
        let state = state_of(&pin).unwrap();
        let markers = ["pin-refused.a", "pin-refused.b"].map(|name| PinMarker::new(directory.path().join(name)));
        std::thread::scope(|scope| {
            for marker in &markers {
                let (state, pin) = (&state, &pin);
                scope.spawn(move || {
                    for _ in 0..100 {
                        marker.ready().unwrap();
                        marker.mark(state, &marker.path.display().to_string()).unwrap();
                        let error = marker.check(pin).unwrap_err();
                        assert!(matches!(&error, MarkerError::Refused { reason, .. }
                            if *reason == marker.path.display().to_string()));
                    }
                });
            }
        });
    }

    #[test]
    fn pin_is_not_tried_when_the_marker_is_unreadable() {
        let (_directory, pin, marker) = files();
        marker.mark(&state_of(&pin).unwrap(), "").unwrap();
        fs::remove_file(&pin).unwrap();
        assert!(matches!(marker.check(&pin), Err(MarkerError::PinFile { .. })));
        fs::create_dir(marker.path.with_extension("d")).unwrap();
        let directory = PinMarker::new(marker.path.with_extension("d"));
        assert!(matches!(directory.check(&pin), Err(MarkerError::Io { .. })));
    }
}
