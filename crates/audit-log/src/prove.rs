//! Proves that a line is in the log, so that third parties can verify it without the log (C2SP tlog-proof).
//!
//! The proof contains a leaf, its audit path (RFC 6962, section 2.1.1) and the signed checkpoint whose root the path
//! leads to. Before it is returned, an independent implementation (`tlog_tiles`) verifies it.

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

/// A line and the proof that it is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Number of the line, which is the index of its leaf.
    pub line: u64,
    /// The line without its newline; its hash is the leaf.
    pub text: Vec<u8>,
    /// The audit path, from the leaf upwards.
    pub path: Vec<Hash>,
    /// The signed note with the root that the path leads to.
    pub checkpoint: Vec<u8>,
}

/// No proof can be made.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// No intent has that serial number.
    #[error("no line of the log has the serial number {0}")]
    Absent(String),
    /// The checkpoint is malformed.
    #[error("the log's newest checkpoint: {0}; run `istio-hsm-ca log verify`")]
    Checkpoint(#[source] CheckpointError),
    /// No checkpoint covers the line yet.
    #[error("line {line} is not under a checkpoint yet, the newest covers {signed} lines; try again after the next")]
    NotYet {
        /// Number of the line.
        line: u64,
        /// Number of lines covered by the newest checkpoint.
        signed: u64,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log has no checkpoint.
    #[error("the log has no checkpoint; it makes them once the token holds a log key")]
    Unsigned,
    /// The tree over the lines differs from the one that was signed.
    #[error("the lines are not those that the checkpoint was signed for; run `istio-hsm-ca log verify`")]
    Unsound,
}

impl Proof {
    /// The proof in the format of c2sp.org/tlog-proof.
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

/// Proves by the newest checkpoint that the intent with a serial number is in the log. Needs 32 bytes of memory per
/// line.
///
/// # Errors
/// If the line does not exist, no checkpoint covers it, or the log does not verify.
pub fn by_serial(path: &Path, serial: &str) -> Result<Proof, ProveError> {
    let mut reader = Reader::new(path)?;
    let found = loop {
        match reader.next()? {
            None => return Err(ProveError::Absent(serial.to_owned())),
            Some(read) => match &read.line {
                Line::Intent(intent) if same_serial(&intent.serial, serial) => break read,
                Line::Ceremony(_)
                | Line::Crl(_)
                | Line::Intent(_)
                | Line::Outcome(_)
                | Line::Retired(_)
                | Line::Revocation(_)
                | Line::Sealed(_) => {}
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

/// The first leaf hashes of the log: the stored ones for sealed segments, otherwise computed from the lines.
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
            // Bytes after the segment's end, left by a failed write, are not part of the tree.
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
