//! Why a log was not opened, each with what to do about it.

use std::{borrow::Cow, io, path::PathBuf};

use super::super::{checkpoint::CheckpointError, record::LineError};
use process::error::{Advice, Remedy};

/// What to do about a log that is not as it was written.
const REMEDY: &str = "run `istio-hsm-ca log verify` to see how far it is sound; restore the directory from a copy, or \
                      move it away as a whole (keep it: it is evidence) and start a new log under a new origin";

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A line is not the one that a checkpoint was signed for.
    #[error("{path}: line {line} is not the line that was recorded under that number{advice}", advice = Advice(self))]
    Changed {
        /// The segment.
        path: PathBuf,
        /// The line.
        line: u64,
    },
    /// A checkpoint file is malformed.
    #[error("{path}: {source}{advice}", advice = Advice(self))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CheckpointError,
    },
    /// Lines between two segments are missing.
    #[error("{path}: this segment should begin with line {expected}, so that lines are missing before it{advice}", advice = Advice(self))]
    Gap {
        /// The segment.
        path: PathBuf,
        /// The line with which it should begin.
        expected: u64,
    },
    /// The operating system refused.
    #[error("{path}: {source}{advice}", advice = Advice(self))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not one of ours.
    #[error("{path}: line {line}: {source}{advice}", advice = Advice(self))]
    Line {
        /// The segment.
        path: PathBuf,
        /// The number that the line should have.
        line: u64,
        /// Why.
        source: LineError,
    },
    /// Another process writes this log.
    #[error("{0}: another process has this log open{advice}", advice = Advice(self))]
    Locked(PathBuf),
    /// A segment is gone and the log does not say that retention removed it.
    #[error("{0}: this segment is missing and no line says that it was retired{advice}", advice = Advice(self))]
    Missing(PathBuf),
    /// A line bears another number than its place.
    #[error("{path}: the line in the place of line {line} bears another number{advice}", advice = Advice(self))]
    Number {
        /// The segment.
        path: PathBuf,
        /// The number that the line should have.
        line: u64,
    },
    /// The log belongs to another origin.
    #[error("{path}: this log's origin is {found:?}, and now it would be {expected:?}{advice}", advice = Advice(self))]
    Origin {
        /// The checkpoint's file.
        path: PathBuf,
        /// What the checkpoint says.
        found: String,
        /// What is configured.
        expected: String,
    },
    /// A segment is not as long as it was when it was sealed.
    #[error("{path}: the segment has {found} bytes and was sealed at {expected}{advice}", advice = Advice(self))]
    SegmentLength {
        /// The segment.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// The configuration is not one that a log can have.
    #[error("{0}")]
    Settings(String),
    /// The log ends before its newest checkpoint.
    #[error("{path}: a checkpoint was signed for {expected} lines and the log has {found}{advice}", advice = Advice(self))]
    Shorter {
        /// The checkpoint's file.
        path: PathBuf,
        /// How many lines are there.
        found: u64,
        /// How many there should be.
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
