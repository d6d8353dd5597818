//! Verifies a log offline: its lines, its tree, its checkpoints and their signatures.
//!
//! All files are read. Each line's leaf hash is compared with the stored one, which locates a changed line; at the size
//! of each checkpoint the root is compared, which detects any change, truncation or insertion below it. With a
//! checkpoint kept elsewhere, this also holds against an attacker who can write to the log's directory. Read-only;
//! needs no lock.

mod lines;
mod walk;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{
    checkpoint::{Checkpoint, VerifierKeys},
    segment::{CHECKPOINT, Directory, Part, read_optional},
    tree::Hash,
};
use walk::Walk;

/// Input of the verification.
#[derive(Debug)]
pub struct Request {
    /// Directory of the log.
    pub directory: PathBuf,
    /// Trusted keys; with `None`, signatures are not verified, and the report states that.
    pub keys: Option<VerifierKeys>,
    /// Older checkpoints, or copies kept elsewhere, as name and content.
    pub checkpoints: Vec<(String, Vec<u8>)>,
}

/// Result of the verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of lines.
    pub lines: u64,
    /// Root of the tree over the lines; `None` if it cannot be computed.
    pub root: Option<Hash>,
    /// Number of intents.
    pub intents: u64,
    /// Number of outcomes.
    pub outcomes: u64,
    /// Intents without an outcome in the log: interrupted by a crash, or in progress.
    pub without_outcome: u64,
    /// Number of intents by the fingerprint of their CA key.
    pub intents_per_ca_key: BTreeMap<String, u64>,
    /// Number of segments, including those whose lines retention has removed.
    pub segments: u64,
    /// Number of segments whose lines retention has removed.
    pub retired: u64,
    /// Number of checkpoints that match the log.
    pub checkpoints: u64,
    /// Lines covered by the newest of them.
    pub checkpointed: u64,
    /// Whether signatures were verified.
    pub signatures: bool,
    /// What is wrong, the first bad line first; empty for an intact log.
    pub findings: Vec<Finding>,
    /// Remarks that are not errors.
    pub notes: Vec<String>,
}

/// An error in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File with the error.
    pub file: String,
    /// Number of the line with the error, or of the first such line.
    pub line: Option<u64>,
    /// Description of the error.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}: line {line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// A log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// I/O error, or a file so malformed that reading cannot continue.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// There is no log.
    #[error("{0}: there is no issuance log here; name the directory that `serve` is configured with")]
    NoLog(PathBuf),
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ReadError {
    let path = path.to_owned();
    |source| ReadError::Io { path, source }
}

/// A signed head and its source.
#[derive(Debug)]
struct Head {
    file: String,
    checkpoint: Checkpoint,
}

/// Verifies a log.
///
/// # Errors
/// If it cannot be read. Errors in the log itself are part of the report.
pub fn verify(request: &Request) -> Result<Report, ReadError> {
    let directory = Directory::new(&request.directory);
    let mut report = Report { signatures: request.keys.is_some(), ..Report::default() };
    // Heads are read before lines: the log may grow meanwhile, and then has more lines than the heads cover.
    let firsts = segments(&directory, &request.directory)?;
    let heads = heads(&directory, &firsts, request, &mut report)?;
    let firsts = match segments(&directory, &request.directory) {
        Ok(again) => again,
        Err(_) => firsts,
    };
    if firsts.is_empty() && heads.is_empty() {
        return Err(ReadError::NoLog(request.directory.clone()));
    }
    let mut walk = Walk::new(&directory, heads, &mut report);
    let mut rest = firsts.iter().peekable();
    while let Some(first) = rest.next() {
        walk.segment(*first, rest.peek().map(|next| **next))?;
    }
    walk.finish();
    if request.keys.is_none() {
        report.notes.push("the signatures of the checkpoints were not checked, since no verifier key was given".into());
    }
    report.findings.sort_by_key(|finding| finding.line.unwrap_or(u64::MAX));
    Ok(report)
}

pub(super) fn segments(directory: &Directory, path: &Path) -> Result<Vec<u64>, ReadError> {
    directory.segments().map_err(io_error(path))
}

/// Reads all checkpoints, verifies their signatures, and checks whether the newest was rolled back.
fn heads(
    directory: &Directory,
    firsts: &[u64],
    request: &Request,
    report: &mut Report,
) -> Result<Vec<Head>, ReadError> {
    let mut heads: Vec<Head> = Vec::new();
    let mut read = |file: String, note: &[u8]| -> Option<u64> {
        let finding = |what: String| Finding { file: file.clone(), line: None, what };
        match Checkpoint::parse_note(note) {
            Ok(checkpoint) => {
                if let Some(keys) = &request.keys
                    && let Err(error) = Checkpoint::verify_note(note, keys)
                {
                    report.findings.push(finding(error.to_string()));
                }
                if let Some(other) = heads.first().map(|head| &head.checkpoint.origin)
                    && *other != checkpoint.origin
                {
                    let what = format!("its origin is {:?}, that of {other:?} is another log", checkpoint.origin);
                    report.findings.push(finding(what));
                }
                let size = checkpoint.size;
                heads.push(Head { file, checkpoint });
                Some(size)
            }
            Err(error) => {
                report.findings.push(finding(error.to_string()));
                None
            }
        }
    };
    let path = directory.path(CHECKPOINT);
    let own = read_optional(&path).map_err(io_error(&path))?;
    let there = own.is_some();
    let own = own.and_then(|note| read(CHECKPOINT.to_owned(), &note));
    let mut newest: Option<(u64, String)> = None;
    for first in firsts {
        let path = directory.part(*first, Part::Checkpoint);
        if let Some(note) = read_optional(&path).map_err(io_error(&path))? {
            let file = name(&path);
            let size = read(file.clone(), &note);
            newest = newest.max(size.map(|size| (size, file)));
        }
    }
    for (file, note) in &request.checkpoints {
        let size = read(file.clone(), note);
        newest = newest.max(size.map(|size| (size, file.clone())));
    }
    let what = match (&newest, own) {
        (Some((size, file)), Some(own)) if own < *size => {
            Some(format!("it was rolled back: it covers {own} lines, but {file} covers {size}"))
        }
        (Some((size, file)), None) if !there => Some(format!("it is missing, but {file} covers {size} lines")),
        (Some(_) | None, Some(_) | None) => None,
    };
    report.findings.extend(what.map(|what| Finding { file: CHECKPOINT.to_owned(), line: None, what }));
    Ok(heads)
}

/// Name of a file for the report.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
