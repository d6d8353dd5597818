//! What this host has signed, as far as the rules for the next message need it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Refusal,
    checkpoint::{Checkpoint, SignedHeads},
    limit::Limit,
    serials::SignedSerials,
};
use process::{error::chain, files};

/// Interval of reports about a limit that remains reached.
const ALARM_INTERVAL: Duration = Duration::from_secs(60);

/// The signed certificates.
#[derive(Debug)]
pub(super) struct SignedCertificates {
    serials: SignedSerials,
    limit: Limit,
    alarmed_at: Option<Instant>,
}

impl SignedCertificates {
    pub(super) fn new(limit: Limit) -> Self {
        Self { serials: SignedSerials::default(), limit, alarmed_at: None }
    }

    /// Counts a certificate that is about to be signed, unless its serial number or a limit forbids it.
    pub(super) fn admit(&mut self, serial: &[u8], tbs: &[u8], now: Instant) -> Result<(), Refusal> {
        if self.serials.is_new(serial, tbs)? {
            self.limit.take(now).inspect_err(|limit| self.alarm(limit, now))?;
            self.serials.insert(serial, tbs);
        }
        Ok(())
    }

    fn alarm(&mut self, limit: &Refusal, now: Instant) {
        if self.alarmed_at.is_none_or(|at| now.saturating_duration_since(at) >= ALARM_INTERVAL) {
            self.alarmed_at = Some(now);
            tracing::error!(reason = %limit, "ALARM: no further certificates are signed");
        }
    }
}

/// The signed heads, and the file that stores them.
#[derive(Debug)]
pub(super) struct KeptHeads {
    file: Option<PathBuf>,
    /// `None` until the file is read at the first checkpoint: an unreadable file does not affect certificates.
    heads: Option<SignedHeads>,
}

impl KeptHeads {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file, heads: None }
    }

    /// Stores a head that is about to be signed, unless an earlier one forbids it.
    pub(super) fn admit(&mut self, checkpoint: &Checkpoint<'_>) -> Result<(), Refusal> {
        let file = self.file.as_deref();
        let heads = match self.heads.take() {
            Some(heads) => heads,
            None => file.map_or(Ok(SignedHeads::default()), read)?,
        };
        let result = heads.followed_by(checkpoint, file).and_then(|next| {
            if let Some(file) = file.filter(|_| next != heads) {
                let unwritable = |error| state(file, &error, "make its directory writable for the token host");
                files::replace(file, next.text().as_bytes()).map_err(unwritable)?;
            }
            Ok(next)
        });
        match result {
            Ok(next) => {
                self.heads = Some(next);
                Ok(())
            }
            Err(refusal) => {
                self.heads = Some(heads);
                Err(refusal)
            }
        }
    }
}

fn state(file: &Path, error: &dyn std::error::Error, remedy: &str) -> Refusal {
    Refusal::State(format!("{}: {}; {remedy}", file.display(), chain(error)))
}

fn read(file: &Path) -> Result<SignedHeads, Refusal> {
    match fs::read_to_string(file) {
        Ok(text) => SignedHeads::parse(&text).map_err(|_| {
            let damaged = io::Error::other("it is damaged");
            state(
                file,
                &damaged,
                "restore it; without one, delete it: the host then takes any next checkpoint as the first",
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SignedHeads::default()),
        Err(error) => Err(state(file, &error, "make it readable for the token host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(origin: &str, size: u64) -> String {
        format!("{origin}\n{size}\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n")
    }

    fn admit(heads: &mut KeptHeads, origin: &str, size: u64) -> Result<(), Refusal> {
        heads.admit(&Checkpoint::parse(text(origin, size).as_bytes()).unwrap())
    }

    #[test]
    fn signed_head_is_known_to_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("signed-checkpoints");
        admit(&mut KeptHeads::new(Some(file.clone())), "a", 7).unwrap();
        admit(&mut KeptHeads::new(Some(file.clone())), "b", 1).unwrap();
        let mut next = KeptHeads::new(Some(file.clone()));
        let refused = admit(&mut next, "a", 6).unwrap_err();
        assert!(matches!(refused, Refusal::Smaller { signed: 7, .. }));
        let remedy = format!("remove the three lines of \"a\" (origin, size and root) from {}", file.display());
        assert!(refused.to_string().contains(&remedy), "{refused}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text("a", 7) + &text("b", 1), "a refusal changes nothing");
        admit(&mut next, "a", 8).unwrap();
        // Without a file, for the lifetime of the process.
        let mut memory = KeptHeads::new(None);
        admit(&mut memory, "a", 7).unwrap();
        let refused = admit(&mut memory, "a", 6).unwrap_err().to_string();
        assert!(refused.contains("restart the token host"), "{refused}");
    }

    #[test]
    fn head_that_cannot_be_kept_is_not_signed_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("missing/signed-checkpoints");
        let mut heads = KeptHeads::new(Some(file.clone()));
        let refused = admit(&mut heads, "a", 7).unwrap_err().to_string();
        assert!(refused.contains("missing/signed-checkpoints") && refused.contains("writable"), "{refused}");
        fs::create_dir(directory.path().join("missing")).unwrap();
        admit(&mut heads, "a", 7).unwrap();
        fs::write(&file, "damaged").unwrap();
        let mut heads = KeptHeads::new(Some(file.clone()));
        let refused = admit(&mut heads, "a", 7).unwrap_err().to_string();
        assert!(refused.contains("damaged") && refused.contains("delete it"), "{refused}");
        fs::remove_file(&file).unwrap();
        admit(&mut heads, "a", 7).unwrap();
    }
}
