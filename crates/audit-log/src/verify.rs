//! Verifies a log offline: its lines, its tree, its checkpoints and their signatures.
//!
//! Everything is read. Line by line the leaf hashes are compared with those that were kept, which names a changed line;
//! at the size of each checkpoint the root is compared, which no change, cut or insertion below it survives. A
//! checkpoint that was kept elsewhere extends this to anyone who can write the log's directory. Reads only; needs no lock.

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

/// What is to be verified.
#[derive(Debug)]
pub struct Request {
    /// The log's directory.
    pub directory: PathBuf,
    /// The keys whose checkpoints are believed; `None` leaves signatures unchecked, which the report says.
    pub keys: Option<VerifierKeys>,
    /// Older checkpoints, or copies kept elsewhere: their names and contents.
    pub checkpoints: Vec<(String, Vec<u8>)>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines.
    pub lines: u64,
    /// The root of the tree over them; none when it cannot be known.
    pub root: Option<Hash>,
    /// Intents.
    pub intents: u64,
    /// Outcomes.
    pub outcomes: u64,
    /// Intents of which no outcome is in the log: cut short by a crash, or still under way.
    pub without_outcome: u64,
    /// Intents by the fingerprint of their CA key.
    pub intents_per_ca_key: BTreeMap<String, u64>,
    /// Segments, with those of which retention has removed the lines.
    pub segments: u64,
    /// Segments of which retention has removed the lines.
    pub retired: u64,
    /// Checkpoints that the log agrees with.
    pub checkpoints: u64,
    /// Lines under the newest of them.
    pub checkpointed: u64,
    /// Whether signatures were checked.
    pub signatures: bool,
    /// What is wrong, the first bad line first; nothing when the log is sound.
    pub findings: Vec<Finding>,
    /// What is worth knowing and not wrong.
    pub notes: Vec<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file in which it shows.
    pub file: String,
    /// The line, by its number in the log, where it shows or begins.
    pub line: Option<u64>,
    /// What is wrong, in words.
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

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused, or a file is not of the form that it must have to be read on.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
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

/// A signed head and where it was found.
#[derive(Debug)]
struct Head {
    file: String,
    checkpoint: Checkpoint,
}

/// Verifies a log.
///
/// # Errors
/// When it cannot be read; what is wrong with what was read is in the report.
pub fn verify(request: &Request) -> Result<Report, ReadError> {
    let directory = Directory::new(&request.directory);
    let mut report = Report { signatures: request.keys.is_some(), ..Report::default() };
    // Heads before lines: a log that is being written grows meanwhile, and its lines are always the longer.
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

/// Reads all checkpoints, checks their signatures, and whether the newest was rolled back.
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

/// A file's name, for people.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
