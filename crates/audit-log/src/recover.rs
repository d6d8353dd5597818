//! Examines the directory of a log when it is opened, and decides whether it can be continued.
//!
//! Complete segments are trusted by their seals; a segment without a seal is read line by line. After a crash, only an
//! unterminated last line beyond the newest checkpoint is expected; it is moved to a separate file. Anything else is
//! tampering or a defective disk, and is rejected. (`verify` reads every line; this must be fast.)

mod error;
mod walk;

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{
    checkpoint::Checkpoint,
    confirmation,
    segment::{CHECKPOINT, Counters, Directory, LOCK, Part, read_optional},
    tree::{Frontier, Hash},
};
pub use error::OpenError;
use walk::Walk;

/// An unterminated last line that was moved out of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The file it was moved to.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
}

/// State of a log that was examined without being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Time of the newest line.
    pub newest_record: Option<std::time::SystemTime>,
    /// What the directory says about the time.
    pub clock: process::clock::Known,
    /// Lines.
    pub lines: u64,
    /// Number of intents.
    pub intents: u64,
    /// Length in bytes of an unterminated last line left by a crash, which the next opening moves to a separate file.
    pub torn_bytes: u64,
}

/// The segment being written.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) first: u64,
    pub(super) bytes: u64,
    pub(super) hashes: Vec<Hash>,
    pub(super) counters: Counters,
}

/// State in which a log was found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) lock: File,
    pub(super) tree: Frontier,
    pub(super) counters: Counters,
    /// What the directory says about the time.
    pub(super) clock: process::clock::Known,
    pub(super) open: Option<Open>,
    pub(super) segments: u64,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Time at which the newest checkpoint's file was written.
    pub(super) checkpoint_time: Option<std::time::SystemTime>,
    /// Bytes of lines on disk.
    pub(super) bytes: u64,
    pub(super) set_aside: Option<SetAside>,
}

/// The right to write in a log's directory, for as long as the value lives. Nothing may be written there without it: the
/// files may be those of another daemon.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Locks a log's directory, making it if need be.
    ///
    /// # Errors
    /// When another process has it, or the directory cannot be made or written.
    pub fn take(path: &Path) -> Result<Self, OpenError> {
        DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(io_error(path))?;
        lock(&Directory::new(path).path(LOCK)).map(Self)
    }
}

/// Takes the log of a locked directory up.
pub(super) fn recover(lock: Lock, directory: &Directory, path: &Path, origin: &str) -> Result<Recovered, OpenError> {
    let Lock(lock) = lock;
    directory.remove_unfinished().map_err(io_error(path))?;
    let segments = directory.segments().map_err(io_error(path))?;
    let (checkpoint, heads) = heads(directory, &segments, origin)?;
    let signed = checkpoint.as_ref().map_or(0, |c| c.size);
    let confirmed = confirmation::last(directory).map_err(io_error(path))?;
    let walk = Walk::over(directory, &segments, heads, signed, confirmed.map_or(0, |(_, lines)| lines), true)?;
    let Walk { tree, counters, newest_since, open, tail, .. } = walk;
    let clock = confirmation::known(directory, confirmed, newest_since.as_deref()).map_err(io_error(path))?;
    let set_aside = tail.map(|tail| set_aside(directory, &tail)).transpose()?;
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let bytes = segments.iter().map(|first| length(&directory.part(*first, Part::Lines))).sum();
    let checkpoint_time = std::fs::metadata(directory.path(CHECKPOINT)).and_then(|metadata| metadata.modified()).ok();
    let segments = u64::try_from(segments.len()).unwrap_or(u64::MAX);
    Ok(Recovered { lock, tree, counters, clock, open, segments, checkpoint, checkpoint_time, bytes, set_aside })
}

/// Whether another process has the log open, without making its lock. Another one that starts meanwhile may take it.
pub(super) fn examine_lock(directory: &Directory) -> Result<(), OpenError> {
    let lock = directory.path(LOCK);
    match File::open(&lock).map_or_else(|error| Err(TryLockError::Error(error)), |file| file.try_lock()) {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(lock)),
        Err(TryLockError::Error(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(())
        }
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path: lock, source }),
    }
}

/// What [`recover`] would say and find, without changing anything: no file is made, cut or sealed.
pub(super) fn examine(directory: &Directory, path: &Path, origin: &str) -> Result<Examined, OpenError> {
    examine_lock(directory)?;
    look(directory, path, origin)
}

/// The same, also while another process writes.
pub(super) fn look(directory: &Directory, path: &Path, origin: &str) -> Result<Examined, OpenError> {
    let segments = directory.segments().map_err(io_error(path))?;
    let (checkpoint, heads) = heads(directory, &segments, origin)?;
    let confirmed = confirmation::last(directory).map_err(io_error(path))?;
    let since = confirmed.map_or(0, |(_, lines)| lines);
    let signed = checkpoint.as_ref().map_or(0, |c| c.size);
    let walk = Walk::over(directory, &segments, heads, signed, since, false)?;
    Ok(Examined {
        newest_record: walk.counters.newest.as_deref().and_then(super::timestamp::parse),
        clock: confirmation::known(directory, confirmed, walk.newest_since.as_deref()).map_err(io_error(path))?,
        lines: walk.tree.size(),
        intents: walk.counters.intents,
        torn_bytes: walk.tail.map_or(0, |tail| u64::try_from(tail.bytes.len()).unwrap_or(u64::MAX)),
    })
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
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

/// Signed tree heads by size: the roots and the files they are from.
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

/// The bytes after the last newline of a segment.
struct Tail {
    segment: u64,
    offset: u64,
    bytes: Vec<u8>,
}

/// Moves an unterminated last line into a separate file.
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
