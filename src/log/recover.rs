//! What a log's directory holds when it is opened, and whether it may be written on.
//!
//! Complete segments are taken up at their seals; a segment without one is read line by line. Only an unterminated
//! last line beyond the newest checkpoint is what a crash leaves behind: it is set aside in a file of its own. Anything
//! else is somebody's doing, or a broken disk, and is refused. (`verify` reads every line; this must be fast.)

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    record::{Line, LineError},
    segment::{CHECKPOINT, Counters, Directory, LOCK, Next, Part, Seal, read_optional},
    tree::{Frontier, Hash, leaf_hash},
};

/// What to do about a log that is not as it was written.
const REMEDY: &str = "run `istio-hsm-ca log verify` to see how far it is sound; restore the directory from a copy, or \
                      move it away as a whole (keep it: it is evidence) and start a new log under a new origin";

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A line is not the one that a checkpoint was signed for.
    #[error("{path}: line {line} is not the line that was recorded under that number; {REMEDY}")]
    Changed {
        /// The segment.
        path: PathBuf,
        /// The line.
        line: u64,
    },
    /// A checkpoint file is malformed.
    #[error("{path}: {source}; restore the file from a copy, such as the one that was shipped elsewhere")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CheckpointError,
    },
    /// Lines between two segments are missing.
    #[error("{path}: this segment should begin with line {expected}, so that lines are missing before it; {REMEDY}")]
    Gap {
        /// The segment.
        path: PathBuf,
        /// The line with which it should begin.
        expected: u64,
    },
    /// The operating system refused.
    #[error("{path}: {source}; the log's directory must be readable and writable for this user")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not one of ours.
    #[error("{path}: line {line}: {source}; {REMEDY}")]
    Line {
        /// The segment.
        path: PathBuf,
        /// The number that the line should have.
        line: u64,
        /// Why.
        source: LineError,
    },
    /// Another process writes this log.
    #[error("{0}: another process has this log open; stop it, or ask the running daemon (its admin socket) instead")]
    Locked(PathBuf),
    /// A segment is gone and the log does not say that retention removed it.
    #[error("{0}: this segment is missing and no line says that it was retired; {REMEDY}")]
    Missing(PathBuf),
    /// A line bears another number than its place.
    #[error("{path}: the line in the place of line {line} bears another number; {REMEDY}")]
    Number {
        /// The segment.
        path: PathBuf,
        /// The number that the line should have.
        line: u64,
    },
    /// The log belongs to another origin.
    #[error("{path}: this log's origin is {found:?}, not {expected:?}; set the origin right, or give each its own log")]
    Origin {
        /// The checkpoint's file.
        path: PathBuf,
        /// What the checkpoint says.
        found: String,
        /// What is configured.
        expected: String,
    },
    /// A segment is not as long as it was when it was sealed.
    #[error("{path}: the segment has {found} bytes and was sealed at {expected}; {REMEDY}")]
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
    #[error("{path}: a checkpoint was signed for {expected} lines and the log has {found}; {REMEDY}")]
    Shorter {
        /// The checkpoint's file.
        path: PathBuf,
        /// How many lines are there.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
}

/// An unterminated last line that was moved out of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// How many bytes.
    pub bytes: u64,
}

/// What a log holds, looked at without being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// The time of the newest line.
    pub newest_record: Option<std::time::SystemTime>,
    /// Lines.
    pub lines: u64,
    /// Intents.
    pub intents: u64,
    /// The length of an unterminated last line, which a crash left and the next opening sets aside.
    pub torn_bytes: u64,
}

/// The segment that is written on.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) first: u64,
    pub(super) bytes: u64,
    pub(super) hashes: Vec<Hash>,
    pub(super) counters: Counters,
}

/// The state in which a log was found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) lock: File,
    pub(super) tree: Frontier,
    pub(super) counters: Counters,
    pub(super) open: Option<Open>,
    pub(super) segments: u64,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) set_aside: Option<SetAside>,
}

/// Locks the directory, making it if need be, and takes the log up.
pub(super) fn recover(directory: &Directory, path: &Path, origin: &str) -> Result<Recovered, OpenError> {
    DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(io_error(path))?;
    let lock = lock(&directory.path(LOCK))?;
    directory.remove_unfinished().map_err(io_error(path))?;
    let segments = directory.segments().map_err(io_error(path))?;
    let (checkpoint, heads) = heads(directory, &segments, origin)?;
    let signed = checkpoint.as_ref().map_or(0, |c| c.size);
    let walk = Walk::over(directory, &segments, heads, signed, true)?;
    let Walk { tree, counters, open, tail, .. } = walk;
    let set_aside = tail.map(|tail| set_aside(directory, &tail)).transpose()?;
    let segments = u64::try_from(segments.len()).unwrap_or(u64::MAX);
    Ok(Recovered { lock, tree, counters, open, segments, checkpoint, set_aside })
}

/// What [`recover`] would say and find, without changing anything: no file is made, cut or sealed.
pub(super) fn examine(directory: &Directory, path: &Path, origin: &str) -> Result<Examined, OpenError> {
    let lock = directory.path(LOCK);
    match File::open(&lock) {
        // Let go at once: whoever starts meanwhile gets it.
        Ok(file) => match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(lock)),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path: lock, source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::Io { path: lock, source }),
    }
    let segments = directory.segments().map_err(io_error(path))?;
    let (checkpoint, heads) = heads(directory, &segments, origin)?;
    let walk = Walk::over(directory, &segments, heads, checkpoint.as_ref().map_or(0, |c| c.size), false)?;
    Ok(Examined {
        newest_record: walk.counters.newest.as_deref().and_then(super::timestamp::parse),
        lines: walk.tree.size(),
        intents: walk.counters.intents,
        torn_bytes: walk.tail.map_or(0, |tail| u64::try_from(tail.bytes.len()).unwrap_or(u64::MAX)),
    })
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    |source| OpenError::Io { path, source }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let file = Directory::append(path).map_err(io_error(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path: path.to_owned(), source }),
    }
}

/// Tree heads that were signed, by their size: each root and the file that says it.
type Heads = BTreeMap<u64, Vec<(Hash, PathBuf)>>;

/// Reads the newest checkpoint and those of the segments.
fn heads(directory: &Directory, segments: &[u64], origin: &str) -> Result<(Option<Checkpoint>, Heads), OpenError> {
    let mut heads = Heads::new();
    let mut read = |path: PathBuf| -> Result<Option<Checkpoint>, OpenError> {
        let Some(note) = read_optional(&path).map_err(io_error(&path))? else { return Ok(None) };
        let checkpoint =
            Checkpoint::parse_note(&note).map_err(|source| OpenError::Checkpoint { path: path.clone(), source })?;
        if checkpoint.origin != origin {
            return Err(OpenError::Origin { path, found: checkpoint.origin, expected: origin.to_owned() });
        }
        heads.entry(checkpoint.size).or_default().push((checkpoint.root, path));
        Ok(Some(checkpoint))
    };
    let mut newest = read(directory.path(CHECKPOINT))?;
    for first in segments {
        let of_segment = read(directory.part(*first, Part::Checkpoint))?;
        if of_segment.as_ref().map(|c| c.size) > newest.as_ref().map(|c| c.size) {
            newest = of_segment;
        }
    }
    Ok((newest, heads))
}

/// The bytes at the end of a segment that no newline follows.
struct Tail {
    segment: u64,
    offset: u64,
    bytes: Vec<u8>,
}

/// Goes over the segments in order.
struct Walk<'a> {
    directory: &'a Directory,
    heads: Heads,
    /// The size of the newest checkpoint.
    signed: u64,
    tree: Frontier,
    counters: Counters,
    open: Option<Open>,
    tail: Option<Tail>,
    missing: Vec<u64>,
    /// Whether what a failing disk prevented is made good.
    mend: bool,
}

impl<'a> Walk<'a> {
    fn over(
        directory: &'a Directory,
        segments: &[u64],
        heads: Heads,
        signed: u64,
        mend: bool,
    ) -> Result<Self, OpenError> {
        let (tree, counters) = (Frontier::default(), Counters::default());
        let mut walk =
            Self { directory, heads, signed, tree, counters, open: None, tail: None, missing: Vec::new(), mend };
        let mut rest = segments.iter().peekable();
        while let Some(first) = rest.next() {
            walk.segment(*first, rest.peek().map(|next| **next))?;
        }
        walk.finish()?;
        Ok(walk)
    }

    fn segment(&mut self, first: u64, next: Option<u64>) -> Result<(), OpenError> {
        let path = self.directory.part(first, Part::Lines);
        if first != self.tree.size() {
            return Err(OpenError::Gap { path, expected: self.tree.size() });
        }
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => Some(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        let seal_path = self.directory.part(first, Part::Seal);
        match (Seal::read(self.directory, first).map_err(io_error(&seal_path))?, length) {
            (Some((seal, tree)), length) => {
                match length {
                    None => self.missing.push(first),
                    Some(found) if found > seal.bytes => self.cut(first, next, seal.bytes, found)?,
                    Some(found) if found < seal.bytes => {
                        return Err(OpenError::SegmentLength { path, found, expected: seal.bytes });
                    }
                    Some(_) => {}
                }
                self.tree = tree;
                self.counters.add(&seal.counters);
                self.check_head(&path)
            }
            (None, Some(length)) => self.unsealed(first, next, length),
            (None, None) => Err(OpenError::Missing(path)),
        }
    }

    /// Reads a segment line by line; one that is not the last is sealed then, which a failing disk had prevented.
    fn unsealed(&mut self, first: u64, next: Option<u64>, length: u64) -> Result<(), OpenError> {
        let path = self.directory.part(first, Part::Lines);
        let recorded = self.directory.hashes(first).map_err(io_error(&path))?;
        let mut reader = self.directory.lines(first).map_err(io_error(&path))?;
        let mut open = Open { first, ..Open::default() };
        while next.is_none_or(|next| self.tree.size() < next) {
            let line = self.tree.size();
            let offset = reader.offset;
            let text = match reader.next().map_err(io_error(&path))? {
                Next::End => break,
                Next::Unterminated(bytes) => {
                    self.tail = Some(Tail { segment: first, offset, bytes: bytes.to_vec() });
                    break;
                }
                Next::Line(text) => text,
            };
            let hash = leaf_hash(text);
            // Beyond the newest checkpoint the file of hashes may itself be half written.
            if line < self.signed && recorded.get(open.hashes.len()).is_some_and(|recorded| *recorded != hash) {
                return Err(OpenError::Changed { path, line });
            }
            let parsed = Line::parse(text).map_err(|source| OpenError::Line { path: path.clone(), line, source })?;
            let in_place = match &parsed {
                Line::Intent(intent) => intent.index == self.counters.intents,
                Line::Outcome(outcome) => outcome.index < self.counters.intents,
                Line::Retired(_) | Line::Sealed(_) => true,
            };
            if parsed.number() != line || !in_place {
                return Err(OpenError::Number { path, line });
            }
            self.tree.push(hash);
            self.counters.count(&parsed);
            open.counters.count(&parsed);
            open.hashes.push(hash);
            self.check_head(&path)?;
        }
        open.bytes = reader.offset;
        match next {
            None => self.open = Some(open),
            Some(next) if self.tree.size() == next => {
                self.cut(first, Some(next), open.bytes, length)?;
                if !self.mend {
                    return Ok(());
                }
                let seal = Seal::new(first, open.bytes, &open.counters, &self.tree);
                seal.write(self.directory, &open.hashes).map_err(io_error(&path))?;
            }
            Some(next) => {
                let path = self.directory.part(next, Part::Lines);
                return Err(OpenError::Gap { path, expected: self.tree.size() });
            }
        }
        Ok(())
    }

    /// Cuts off what a failed write left behind a segment's end, if the next segment says that one failed there.
    fn cut(&self, first: u64, next: Option<u64>, end: u64, length: u64) -> Result<(), OpenError> {
        let path = self.directory.part(first, Part::Lines);
        if length == end {
            return Ok(());
        }
        let accounted = match next {
            Some(next) => {
                let mut reader = self.directory.lines(next).map_err(io_error(&path))?;
                let line = match reader.next().map_err(io_error(&path))? {
                    Next::Line(text) => Line::parse(text).ok(),
                    Next::End | Next::Unterminated(_) => None,
                };
                matches!(line, Some(Line::Sealed(sealed)) if sealed.segment == first && sealed.bytes == end)
            }
            None => false,
        };
        if !accounted {
            return Err(OpenError::SegmentLength { path, found: length, expected: end });
        }
        if !self.mend {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path))?;
        file.set_len(end).and_then(|()| file.sync_all()).map_err(io_error(&path))
    }

    /// Compares the tree with the checkpoints of its present size.
    fn check_head(&self, path: &Path) -> Result<(), OpenError> {
        let Some(heads) = self.heads.get(&self.tree.size()) else { return Ok(()) };
        let root = self.tree.root();
        match heads.iter().any(|(signed, _)| *signed != root) {
            true => Err(OpenError::Changed { path: path.to_owned(), line: self.tree.size().saturating_sub(1) }),
            false => Ok(()),
        }
    }

    fn finish(&self) -> Result<(), OpenError> {
        if let Some(first) = self.missing.iter().find(|first| **first >= self.counters.retired_before) {
            return Err(OpenError::Missing(self.directory.part(*first, Part::Lines)));
        }
        let found = self.tree.size();
        match self.heads.iter().next_back() {
            Some((expected, files)) if *expected > found => {
                let path = files.first().map(|(_, path)| path.clone()).unwrap_or_default();
                Err(OpenError::Shorter { path, found, expected: *expected })
            }
            _ => Ok(()),
        }
    }
}

/// Moves an unterminated last line into a file of its own.
fn set_aside(directory: &Directory, tail: &Tail) -> Result<SetAside, OpenError> {
    let mut path = directory.path(&format!("{:020}-{}.torn", tail.segment, tail.offset));
    let mut copies = 1;
    let mut file = loop {
        match Directory::create(&path) {
            Ok(file) => break file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && copies < 1000 => {
                copies += 1;
                path = directory.path(&format!("{:020}-{}-{copies}.torn", tail.segment, tail.offset));
            }
            Err(source) => return Err(OpenError::Io { path, source }),
        }
    };
    file.write_all(&tail.bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| directory.sync())
        .map_err(io_error(&path))?;
    let segment = directory.part(tail.segment, Part::Lines);
    let cut = OpenOptions::new().write(true).open(&segment).map_err(io_error(&segment))?;
    cut.set_len(tail.offset).and_then(|()| cut.sync_all()).map_err(io_error(&segment))?;
    Ok(SetAside { path, bytes: u64::try_from(tail.bytes.len()).unwrap_or(u64::MAX) })
}
