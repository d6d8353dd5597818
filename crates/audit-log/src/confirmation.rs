//! The times at which an operator confirmed that the clock is right, although the log's newest record says otherwise.
//!
//! They are kept next to the log, one JSON object per line in `clock-confirmations.jsonl`, and never removed. The log's own lines
//! say at which times certificates were issued; this file says who decided that these times were wrong, or that a long
//! time passed without any.

use std::{fs::OpenOptions, io, io::Write, os::unix::fs::OpenOptionsExt, time::SystemTime};

use nix::libc::O_NOFOLLOW;
use serde::{Deserialize, Serialize};

use super::{
    log::Settings,
    recover::{self, OpenError, io_error},
    segment::{Directory, MODE, read_optional},
    timestamp,
};

/// The file, in the log's directory.
const FILE: &str = "clock-confirmations.jsonl";

/// One confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// When: what the clock showed, which is right.
    pub time: String,
    /// The time of the log's newest record; the confirmation is about this record and holds until there is a newer one.
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
    /// When the log cannot be read, or the file not be written.
    pub fn record(settings: &Settings, now: SystemTime, uid: u32, reason: &str) -> Result<Self, OpenError> {
        let path = settings.directory.as_path();
        let directory = Directory::new(path);
        let examined = recover::look(&directory, path, &settings.origin)?;
        let confirmation = Self {
            time: timestamp::format(now),
            newest_record: examined.newest_record.map(timestamp::format),
            uid,
            reason: reason.to_owned(),
        };
        confirmation.append(&directory).map_err(io_error(&directory.path(FILE)))?;
        Ok(confirmation)
    }

    fn append(&self, directory: &Directory) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut options = OpenOptions::new();
        let path = directory.path(FILE);
        let mut file = options.append(true).create(true).mode(MODE).custom_flags(O_NOFOLLOW).open(path)?;
        file.write_all(&line)?;
        file.sync_all()?;
        directory.sync()
    }
}

/// When the clock was last confirmed with regard to this newest record. A line that is not understood says nothing.
pub(super) fn read(directory: &Directory, newest_record: Option<&str>) -> io::Result<Option<SystemTime>> {
    let text = read_optional(&directory.path(FILE))?.unwrap_or_default();
    let confirmations = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let about_this = confirmations.filter(|one: &Confirmation| one.newest_record.as_deref() == newest_record);
    Ok(about_this.filter_map(|one| timestamp::parse(&one.time)).next_back())
}
