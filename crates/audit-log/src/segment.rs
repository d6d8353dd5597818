//! The log's files: names, atomic writes, reading by lines, and what is kept of a segment.
//!
//! A segment is named after the number of its first line, in 20 digits, so that names sort in the order of lines:
//! `.jsonl` contains the lines, `.hashes` their leaf hashes (32 bytes each), `.seal` the counters once it is complete,
//! `.checkpoint` its newest signed tree head.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};
#[cfg(feature = "writer")]
use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt};

use base64::{Engine, prelude::BASE64_STANDARD};
#[cfg(feature = "writer")]
use nix::libc::O_NOFOLLOW;
use serde::{Deserialize, Serialize};

use super::{
    record::{LINE_MAX, Line, VERSION},
    tree::{Frontier, Hash},
};

/// Mode of the log's files. The group can read, so that a shipper can run as another user.
#[cfg(feature = "writer")]
pub(super) const MODE: u32 = 0o640;
/// Extension of incomplete files, which readers ignore.
#[cfg(feature = "writer")]
const UNFINISHED: &str = "tmp";
/// Name of the file with the log's newest checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// Name of the lock file; the process that holds the lock is the only writer.
#[cfg(feature = "writer")]
pub(super) const LOCK: &str = "lock";

/// Content type of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Checkpoint,
    Hashes,
    Lines,
    Seal,
}

impl Part {
    fn ending(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Hashes => "hashes",
            Self::Lines => "jsonl",
            Self::Seal => "seal",
        }
    }
}

/// The directory of a log.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn part(&self, first: u64, part: Part) -> PathBuf {
        self.0.join(format!("{first:020}.{}", part.ending()))
    }

    /// The first lines of all segments of which a file exists, in order.
    pub(super) fn segments(&self) -> io::Result<Vec<u64>> {
        let mut firsts = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let Some((stem, ending)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let known = [Part::Checkpoint, Part::Hashes, Part::Lines, Part::Seal].iter().any(|p| p.ending() == ending);
            if known && stem.len() == 20 && stem.bytes().all(|b| b.is_ascii_digit()) {
                firsts.extend(stem.parse::<u64>().ok());
            }
        }
        firsts.sort_unstable();
        firsts.dedup();
        Ok(firsts)
    }

    /// The leaf hashes of a segment, without an incomplete one at the end. Empty if there is no file.
    pub(super) fn hashes(&self, first: u64) -> io::Result<Vec<Hash>> {
        let bytes = read_optional(&self.part(first, Part::Hashes))?.unwrap_or_default();
        Ok(bytes.as_chunks().0.to_vec())
    }

    pub(super) fn lines(&self, first: u64) -> io::Result<LineReader<BufReader<File>>> {
        Ok(LineReader::new(BufReader::with_capacity(1 << 16, File::open(self.part(first, Part::Lines))?)))
    }
}

#[cfg(feature = "writer")]
impl Directory {
    /// Removes incomplete files left by a crash.
    pub(super) fn remove_unfinished(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == UNFINISHED) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Makes creations, renames and removals in the directory durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    /// Replaces a file atomically: after a crash, and for readers, it has the old or the new content.
    pub(super) fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".");
        name.push(UNFINISHED);
        let unfinished = PathBuf::from(name);
        let written = Self::write_whole(&unfinished, content).and_then(|()| std::fs::rename(&unfinished, path));
        if written.is_err() {
            // On a full disk, the space of the failed attempt is needed.
            let _ = std::fs::remove_file(&unfinished);
        }
        written?;
        self.sync()
    }

    fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .custom_flags(O_NOFOLLOW)
            .open(path)?;
        file.write_all(content)?;
        file.sync_all()
    }

    /// Creates a file that must not exist yet.
    pub(super) fn create(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create_new(true).mode(MODE).open(path)
    }

    /// Opens a file for appending, creating it if missing.
    pub(super) fn append(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(O_NOFOLLOW).open(path)
    }
}

/// The content of a file; `None` if it does not exist.
pub(super) fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Result of reading from a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    End,
    Line(&'a [u8]),
    /// Bytes after the last newline.
    Unterminated(&'a [u8]),
}

/// Reads a segment line by line; memory is bounded by the maximum length of a line.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    inner: R,
    line: Vec<u8>,
    /// Offset of the next line.
    pub(super) offset: u64,
}

impl<R: BufRead> LineReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, line: Vec::new(), offset: 0 }
    }

    pub(super) fn next(&mut self) -> io::Result<Next<'_>> {
        self.line.clear();
        let most = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
        let read = Read::by_ref(&mut self.inner).take(most + 1).read_until(b'\n', &mut self.line)?;
        if read > LINE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 1 MiB"));
        }
        match self.line.split_last() {
            None => Ok(Next::End),
            Some((b'\n', line)) => {
                self.offset += u64::try_from(read).unwrap_or(u64::MAX);
                Ok(Next::Line(line))
            }
            Some(_) => Ok(Next::Unterminated(&self.line)),
        }
    }
}

/// Counters over the lines of a segment or of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counters {
    /// Number of intents, of certificates and CRLs.
    pub(super) intents: u64,
    /// Number of outcomes.
    pub(super) outcomes: u64,
    /// Number of intents by the fingerprint of their CA key.
    pub(super) intents_per_ca_key: BTreeMap<String, u64>,
    /// Time of the newest line; times in this format sort as text.
    pub(super) newest: Option<String>,
    /// Number of the first line kept by retention.
    pub(super) retired_before: u64,
}

impl Counters {
    pub(super) fn count(&mut self, line: &Line) {
        match line {
            Line::Crl(crl) => self.intent(&crl.ca_key),
            Line::Intent(intent) => self.intent(&intent.ca_key),
            Line::Outcome(_) => self.outcomes += 1,
            Line::Retired(retired) => self.retired_before = self.retired_before.max(retired.before),
            Line::Ceremony(_) | Line::Revocation(_) | Line::Sealed(_) => {}
        }
        if self.newest.as_deref().is_none_or(|newest| newest < line.time()) {
            let newest = self.newest.get_or_insert_default();
            newest.clear();
            newest.push_str(line.time());
        }
    }

    fn intent(&mut self, ca_key: &str) {
        self.intents += 1;
        match self.intents_per_ca_key.get_mut(ca_key) {
            Some(count) => *count += 1,
            None => {
                self.intents_per_ca_key.insert(ca_key.to_owned(), 1);
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.intents += other.intents;
        self.outcomes += other.outcomes;
        for (key, count) in &other.intents_per_ca_key {
            *self.intents_per_ca_key.entry(key.clone()).or_default() += count;
        }
        if self.newest < other.newest {
            self.newest.clone_from(&other.newest);
        }
        self.retired_before = self.retired_before.max(other.retired_before);
    }
}

/// Summary of a complete segment, kept even after retention removes its lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    /// Version of the format.
    pub(super) v: u8,
    /// Number of the first line.
    pub(super) first: u64,
    /// Number of lines.
    pub(super) lines: u64,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// Counters of this segment only.
    pub(super) counters: Counters,
    /// The subtrees of the tree over all lines up to the end of the segment, in Base64.
    pub(super) tree: Vec<String>,
}

impl Seal {
    pub(super) fn new(first: u64, bytes: u64, counters: &Counters, tree: &Frontier) -> Self {
        let subtrees = tree.subtrees().iter().map(|hash| BASE64_STANDARD.encode(hash)).collect();
        Self { v: VERSION, first, lines: tree.size() - first, bytes, counters: counters.clone(), tree: subtrees }
    }

    /// The seal of a segment, if it has one.
    pub(super) fn read(directory: &Directory, first: u64) -> io::Result<Option<(Self, Frontier)>> {
        let Some(content) = read_optional(&directory.part(first, Part::Seal))? else { return Ok(None) };
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "it is not a segment's seal");
        let seal: Self = serde_json::from_slice(&content).map_err(|_| malformed())?;
        let end = seal.first.checked_add(seal.lines).ok_or_else(malformed)?;
        let mut subtrees = Vec::new();
        for text in &seal.tree {
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| malformed())?;
            subtrees.push(Hash::try_from(bytes).map_err(|_| malformed())?);
        }
        let tree = Frontier::from_parts(end, subtrees).ok_or_else(malformed)?;
        if seal.v == VERSION && seal.first == first { Ok(Some((seal, tree))) } else { Err(malformed()) }
    }

    /// Writes all leaf hashes of the segment, then the seal.
    #[cfg(feature = "writer")]
    pub(super) fn write(&self, directory: &Directory, hashes: &[Hash]) -> io::Result<()> {
        directory.replace(&directory.part(self.first, Part::Hashes), hashes.as_flattened())?;
        let content = serde_json::to_vec(self).map_err(io::Error::other)?;
        directory.replace(&directory.part(self.first, Part::Seal), &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_what_follows_them() {
        let mut reader = LineReader::new(&b"a\n\nbc\nd"[..]);
        assert_eq!(reader.next().unwrap(), Next::Line(b"a"));
        assert_eq!(reader.next().unwrap(), Next::Line(b""));
        assert_eq!(reader.next().unwrap(), Next::Line(b"bc"));
        assert_eq!(reader.offset, 6);
        assert_eq!(reader.next().unwrap(), Next::Unterminated(b"d"));
        assert_eq!(reader.next().unwrap(), Next::End);
        let long = vec![b'x'; LINE_MAX + 7];
        assert!(LineReader::new(&long[..]).next().is_err(), "memory is bounded");
    }

    #[test]
    fn only_our_names_are_segments() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::new(scratch.path());
        for name in ["lock", "checkpoint", "0.jsonl", "00000000000000000007.seal", "00000000000000000003.jsonl"] {
            std::fs::write(directory.path(name), "").unwrap();
        }
        std::fs::write(directory.path("00000000000000000003.seal.tmp"), "").unwrap();
        std::fs::write(directory.path("00000000000000000009-12.torn"), "").unwrap();
        assert_eq!(directory.segments().unwrap(), [3, 7]);
        directory.remove_unfinished().unwrap();
        assert!(!directory.path("00000000000000000003.seal.tmp").exists());
    }

    #[test]
    fn a_seal_comes_back() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::new(scratch.path());
        let mut tree = Frontier::default();
        let hashes = [[1; 32], [2; 32], [3; 32]];
        hashes.iter().for_each(|hash| tree.push(*hash));
        let seal = Seal::new(1, 99, &Counters::default(), &tree);
        seal.write(&directory, &hashes[1..]).unwrap();
        assert_eq!(Seal::read(&directory, 1).unwrap(), Some((seal, tree)));
        assert_eq!(directory.hashes(1).unwrap(), hashes[1..]);
        assert_eq!(Seal::read(&directory, 2).unwrap(), None);
        std::fs::rename(directory.part(1, Part::Seal), directory.part(2, Part::Seal)).unwrap();
        assert!(Seal::read(&directory, 2).is_err());
    }
}
