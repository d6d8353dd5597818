//! Errors of opening a log, each with its remedy.

use std::{borrow::Cow, io, path::PathBuf};

use super::super::{checkpoint::CheckpointError, record::LineError};
use process::error::{Advice, Remedy};

/// Remedy for a log that was modified.
const REMEDY: &str = "run `istio-hsm-ca log verify` to see how far it is sound; restore the directory from a copy, or \
                      move it away as a whole (keep it: it is evidence) and start a new log under a new origin";

/// The log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A line differs from the one that a checkpoint covers.
    #[error("{path}: line {line} is not the line that was recorded under that number{advice}", advice = Advice(self))]
    Changed {
        /// File of the segment.
        path: PathBuf,
        /// Number of the line.
        line: u64,
    },
    /// A checkpoint file is malformed.
    #[error("{path}: {source}{advice}", advice = Advice(self))]
    Checkpoint {
        /// The checkpoint's file.
        path: PathBuf,
        /// The parser's error.
        source: CheckpointError,
    },
    /// Lines between two segments are missing.
    #[error("{path}: this segment should begin with line {expected}, so that lines are missing before it{advice}", advice = Advice(self))]
    Gap {
        /// File of the later segment.
        path: PathBuf,
        /// Expected number of its first line.
        expected: u64,
    },
    /// A file operation failed.
    #[error("{path}: {source}{advice}", advice = Advice(self))]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A line is malformed.
    #[error("{path}: line {line}: {source}{advice}", advice = Advice(self))]
    Line {
        /// File of the segment.
        path: PathBuf,
        /// Expected number of the line.
        line: u64,
        /// The parser's error.
        source: LineError,
    },
    /// Another process is writing to this log.
    #[error("{0}: another process has this log open{advice}", advice = Advice(self))]
    Locked(PathBuf),
    /// A segment is missing, and the log has no record that retention removed it.
    #[error("{0}: this segment is missing and no line says that it was retired{advice}", advice = Advice(self))]
    Missing(PathBuf),
    /// The number in a line differs from its position.
    #[error("{path}: the line in the place of line {line} bears another number{advice}", advice = Advice(self))]
    Number {
        /// File of the segment.
        path: PathBuf,
        /// Expected number of the line.
        line: u64,
    },
    /// The log belongs to another origin.
    #[error("{path}: this log's origin is {found:?}, and now it would be {expected:?}{advice}", advice = Advice(self))]
    Origin {
        /// The checkpoint's file.
        path: PathBuf,
        /// Origin in the checkpoint.
        found: String,
        /// Configured origin.
        expected: String,
    },
    /// The length of a segment differs from its length when it was sealed.
    #[error("{path}: the segment has {found} bytes and was sealed at {expected}{advice}", advice = Advice(self))]
    SegmentLength {
        /// File of the segment.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// Its length in bytes when it was sealed.
        expected: u64,
    },
    /// The configuration is invalid for a log.
    #[error("{0}")]
    Settings(String),
    /// The log ends before its newest checkpoint.
    #[error("{path}: a checkpoint was signed for {expected} lines and the log has {found}{advice}", advice = Advice(self))]
    Shorter {
        /// The checkpoint's file.
        path: PathBuf,
        /// Number of lines found.
        found: u64,
        /// Number of lines covered by the checkpoint.
        expected: u64,
    },
}

impl Remedy for OpenError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Checkpoint { .. } => {
                Some("restore the file from a copy, such as the one that was shipped elsewhere".into())
            }
            Self::Io { .. } => Some("the log's directory must be readable and writable for this user".into()),
            Self::Locked(_) => Some("stop it, or ask the running daemon (its admin socket) instead".into()),
            // A default origin changes with the host's name.
            Self::Origin { found, .. } => Some(
                format!(
                    "if it is this replica's own log, whose host was renamed, write `origin = {found:?}` in [log] (`generate`: \
                     --log-origin {found}); otherwise configure another directory"
                )
                .into(),
            ),
            Self::Settings(_) => None,
            Self::Changed { .. }
            | Self::Gap { .. }
            | Self::Line { .. }
            | Self::Missing(_)
            | Self::Number { .. }
            | Self::SegmentLength { .. }
            | Self::Shorter { .. } => Some(REMEDY.into()),
        }
    }
}
