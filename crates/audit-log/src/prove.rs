//! Proves that a line is in the log, so that others can check it without the log (C2SP tlog-proof).
//!
//! The proof names a leaf, its audit path (RFC 6962, section 2.1.1) and the signed checkpoint up to whose root it
//! leads. It is checked by another implementation (`tlog_tiles`) before it is given away.

use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    reader::Reader,
    record::Line,
    segment::{CHECKPOINT, Directory, Next, Part, read_optional},
    show::same_serial,
    tree::{Hash, inclusion_path, leaf_hash, root},
    verify::{ReadError, io_error, segments},
};

/// A line with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The number of the line: the index of its leaf.
    pub line: u64,
    /// The line, without its newline: what the leaf is the hash of.
    pub text: Vec<u8>,
    /// The audit path, from the leaf upwards.
    pub path: Vec<Hash>,
    /// The signed note up to whose root it leads.
    pub checkpoint: Vec<u8>,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// No intent has that serial number.
    #[error("no line of the log has the serial number {0}")]
    Absent(String),
    /// The checkpoint is malformed.
    #[error("the log's newest checkpoint: {0}; run `istio-hsm-ca log verify`")]
    Checkpoint(#[source] CheckpointError),
    /// The line is not yet under a checkpoint.
    #[error("line {line} is not under a checkpoint yet, the newest covers {signed} lines; try again after the next")]
    NotYet {
        /// The line.
        line: u64,
        /// Lines under the newest checkpoint.
        signed: u64,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log has no checkpoint, so that nothing can be proven to others.
    #[error("the log has no checkpoint; it makes them once the token holds a log key")]
    Unsigned,
    /// The tree over the lines is not the one that was signed.
    #[error("the lines are not those that the checkpoint was signed for; run `istio-hsm-ca log verify`")]
    Unsound,
}

impl Proof {
    /// The proof in the form of c2sp.org/tlog-proof.
    #[must_use]
    pub fn to_tlog_proof(&self) -> String {
        let mut text = format!("c2sp.org/tlog-proof@v1\nindex {}\n", self.line);
        for hash in &self.path {
            text.push_str(&BASE64_STANDARD.encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&self.checkpoint));
        text
    }
}

/// Proves that the intent with a serial number is in the log, by its newest checkpoint. Takes 32 bytes of memory a line.
///
/// # Errors
/// When the line does not exist, no checkpoint covers it, or the log does not verify.
pub fn by_serial(path: &Path, serial: &str) -> Result<Proof, ProveError> {
    let mut reader = Reader::new(path)?;
    let found = loop {
        match reader.next()? {
            None => return Err(ProveError::Absent(serial.to_owned())),
            Some(read) => match &read.line {
                Line::Intent(intent) if same_serial(&intent.serial, serial) => break read,
                Line::Intent(_) | Line::Outcome(_) | Line::Retired(_) | Line::Sealed(_) => {}
            },
        }
    };
    let directory = Directory::new(path);
    let file = directory.path(CHECKPOINT);
    let note = read_optional(&file).map_err(io_error(&file))?.ok_or(ProveError::Unsigned)?;
    let checkpoint = Checkpoint::parse_note(&note).map_err(ProveError::Checkpoint)?;
    let (line, signed) = (found.line.number(), checkpoint.size);
    if line >= signed {
        return Err(ProveError::NotYet { line, signed });
    }
    let leaves = leaves(&directory, path, signed)?;
    let at = usize::try_from(line).map_err(|_| ProveError::Unsound)?;
    let audit_path = inclusion_path(&leaves, at).ok_or(ProveError::Unsound)?;
    if root(&leaves) != checkpoint.root {
        return Err(ProveError::Unsound);
    }
    let judged: Vec<tlog_tiles::Hash> = audit_path.iter().copied().map(tlog_tiles::Hash).collect();
    let (head, leaf) = (tlog_tiles::Hash(checkpoint.root), tlog_tiles::Hash(leaf_hash(&found.text)));
    tlog_tiles::check_record(&judged, signed, head, line, leaf).map_err(|_| ProveError::Unsound)?;
    Ok(Proof { line, text: found.text, path: audit_path, checkpoint: note })
}

/// The first leaf hashes of the log: of sealed segments those that were kept, else those of the lines.
fn leaves(directory: &Directory, path: &Path, size: u64) -> Result<Vec<Hash>, ProveError> {
    let size = usize::try_from(size).map_err(|_| ProveError::Unsound)?;
    let mut leaves = Vec::new();
    let mut firsts = segments(directory, path)?.into_iter().peekable();
    while let Some(first) = firsts.next() {
        if u64::try_from(leaves.len()) != Ok(first) {
            return Err(ProveError::Unsound);
        }
        if directory.part(first, Part::Seal).exists() {
            leaves.extend(directory.hashes(first).map_err(io_error(path))?);
        } else {
            let file = directory.part(first, Part::Lines);
            let mut reader = directory.lines(first).map_err(io_error(&file))?;
            // What a failed write left behind the segment's end is not of the tree.
            let end = firsts.peek().and_then(|next| usize::try_from(*next).ok());
            while end.is_none_or(|end| leaves.len() < end) {
                let Next::Line(text) = reader.next().map_err(io_error(&file))? else { break };
                leaves.push(leaf_hash(text));
            }
        }
    }
    if leaves.len() < size {
        return Err(ProveError::Unsound);
    }
    leaves.truncate(size);
    Ok(leaves)
}
