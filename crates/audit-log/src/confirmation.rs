//! What is known about the time besides the log's lines: the times at which an operator confirmed the clock, and the
//! trusted time.
//!
//! Confirmations are kept next to the log, one JSON object per line in `clock-confirmations.jsonl`, and never removed. The
//! log's own lines say at which times certificates were issued; this file says who decided that these times were wrong, or
//! that a long time passed without any. The trusted time ([`process::clock`]) is in `trusted-time`.

use std::{
    fs::{File, OpenOptions},
    io,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::Path,
    time::SystemTime,
};

use nix::libc::O_NOFOLLOW;
use process::clock::Known;
use serde::{Deserialize, Serialize};

use super::{
    log::Settings,
    recover::{self, OpenError, io_error},
    segment::{Directory, MODE, read_optional},
    timestamp,
};

/// The confirmations, in the log's directory.
const CONFIRMATIONS: &str = "clock-confirmations.jsonl";
/// The trusted time, in the log's directory.
const TRUSTED: &str = "trusted-time";

/// One confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// When: what the clock showed, which is right.
    pub time: String,
    /// The number of lines that the log had. Their times are not compared with the clock any more.
    pub lines: u64,
    /// The time of the newest one of them.
    pub newest_record: Option<String>,
    /// The user who confirmed.
    pub uid: u32,
    /// Why, in the operator's words.
    pub reason: String,
}

impl Confirmation {
    /// Records durably that the clock is right, for the log's next opening. The log may be open.
    ///
    /// # Errors
    /// When the log cannot be read, or the files not be written.
    pub fn record(settings: &Settings, now: SystemTime, uid: u32, reason: &str) -> Result<Self, OpenError> {
        let path = settings.directory.as_path();
        let directory = Directory::new(path);
        let examined = recover::look(&directory, path, &settings.origin)?;
        let confirmation = Self {
            time: timestamp::format(now),
            lines: examined.lines,
            newest_record: examined.newest_record.map(timestamp::format),
            uid,
            reason: reason.to_owned(),
        };
        confirmation.append(&directory).map_err(io_error(&directory.path(CONFIRMATIONS)))?;
        // The confirmed time replaces it. A daemon that runs stores it again only while it believes the confirmed clock.
        match std::fs::remove_file(directory.path(TRUSTED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&directory.path(TRUSTED))(error)),
            _ => Ok(confirmation),
        }
    }

    fn append(&self, directory: &Directory) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut options = OpenOptions::new();
        let path = directory.path(CONFIRMATIONS);
        let mut file = options.append(true).create(true).mode(MODE).custom_flags(O_NOFOLLOW).open(path)?;
        let owner = File::open(directory.path(""))?.metadata()?;
        if nix::unistd::geteuid().is_root() && file.metadata()?.uid() != owner.uid() {
            // The daemon has to read it.
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(&line)?;
        file.sync_all()?;
        directory.sync()
    }
}

/// The last confirmation. A line that is not understood says nothing.
pub(super) fn last(directory: &Directory) -> io::Result<Option<(SystemTime, u64)>> {
    let text = read_optional(&directory.path(CONFIRMATIONS))?.unwrap_or_default();
    let confirmations = text.split(|byte| *byte == b'\n').rev();
    let mut confirmations = confirmations.filter_map(|line| serde_json::from_slice::<Confirmation>(line).ok());
    Ok(confirmations.find_map(|last| Some((timestamp::parse(&last.time)?, last.lines))))
}

/// What the directory says about the time. `newest_since` is the time of the newest line since the last confirmation.
pub(super) fn known(
    directory: &Directory,
    last: Option<(SystemTime, u64)>,
    newest_since: Option<&str>,
) -> io::Result<Known> {
    let newest_record = newest_since.and_then(timestamp::parse).max(last.map(|(time, _)| time));
    let text = read_optional(&directory.path(TRUSTED))?.unwrap_or_default();
    let trusted = std::str::from_utf8(&text).ok().and_then(|text| timestamp::parse(text.trim_end()));
    Ok(Known { newest_record, trusted })
}

/// Stores the trusted time durably, in the directory of a log that this process has open.
///
/// # Errors
/// When the file cannot be written.
pub fn store_trusted_time(directory: &Path, time: SystemTime) -> io::Result<()> {
    let directory = Directory::new(directory);
    directory.replace(&directory.path(TRUSTED), format!("{}\n", timestamp::format(time)).as_bytes())
}
