//! The segment's open file: creating and ending it, and serialising lines so that they are written at once.
//!
//! It makes no decisions.

use std::{
    fs::File,
    io::{self, Write},
};

use tokio::sync::oneshot;

use super::super::{
    LogError,
    record::{Line, SealedLine, VERSION},
    recover::Open,
    segment::{Directory, Part, Seal},
    timestamp,
    tree::{Hash, leaf_hash},
};

/// A line and the request that waits for it; outcomes have none.
pub(super) type Waiting = (Line, Option<oneshot::Sender<Result<u64, LogError>>>);

/// A segment that a failed write ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) first: u64,
    pub(super) bytes: u64,
    pub(super) reason: String,
    /// The seal to be written once the disk works again; `None` if the segment had no lines.
    pub(super) seal: Option<(Seal, Vec<Hash>)>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) file: File,
    pub(super) open: Open,
    /// The file of leaf hashes and the number of hashes in it; `None` until it is first written.
    pub(super) hashes: Option<(File, usize)>,
}

/// A serialised line with its hash and the request that waits for it.
pub(super) struct Staged {
    pub(super) line: Line,
    pub(super) hash: Hash,
    pub(super) waiter: Option<oneshot::Sender<Result<u64, LogError>>>,
}

/// Numbers and serialises lines into the buffer.
pub(super) fn stage(first: u64, lines: Vec<Waiting>, buffer: &mut Vec<u8>) -> Vec<Staged> {
    buffer.clear();
    let mut staged = Vec::with_capacity(lines.len());
    for ((mut line, waiter), number) in lines.into_iter().zip(first..) {
        line.set_number(number);
        let start = buffer.len();
        line.write(buffer);
        let hash = leaf_hash(buffer.get(start..).unwrap_or_default());
        buffer.push(b'\n');
        staged.push(Staged { line, hash, waiter });
    }
    staged
}

/// Creates a segment's file. An existing one can only be from a failed attempt and has no acknowledged line.
pub(super) fn create(directory: &Directory, first: u64, reserved: u64) -> io::Result<Segment> {
    let path = directory.part(first, Part::Lines);
    let file = match Directory::create(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(&path)?;
            Directory::create(&path)?
        }
        other => other?,
    };
    reserve(&file, reserved);
    file.sync_all()?;
    directory.sync()?;
    Ok(Segment { file, open: Open { first, ..Open::default() }, hashes: None })
}

/// Begins a segment. After a failure, its first line records where the last segment ended.
///
/// The file gets its name when that line is durable: a crash in between must not leave a segment that does not account
/// for the bytes that the failed write left after the end of the last one.
pub(super) fn begin(
    directory: &Directory,
    first: u64,
    reserved: u64,
    ended: Option<&Ended>,
    buffer: &mut Vec<u8>,
) -> io::Result<(Segment, Option<(Line, Hash)>)> {
    let Some(Ended { first: segment, bytes, reason, .. }) = ended else {
        return Ok((create(directory, first, reserved)?, None));
    };
    let time = timestamp::format(process::clock::now());
    let line = SealedLine { v: VERSION, line: 0, time, segment: *segment, bytes: *bytes, reason: reason.clone() };
    let mut staged = stage(first, vec![(Line::Sealed(line), None)], buffer);
    let path = directory.part(first, Part::Lines);
    directory.replace(&path, buffer)?;
    let file = Directory::append(&path)?;
    reserve(&file, reserved);
    let bytes = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
    let open = Open { first, bytes, ..Open::default() };
    Ok((Segment { file, open, hashes: None }, staged.pop().map(|staged| (staged.line, staged.hash))))
}

/// Durably appends the missing leaf hashes to the segment's file of hashes.
pub(super) fn save_hashes(directory: &Directory, segment: &mut Segment) -> io::Result<()> {
    let path = directory.part(segment.open.first, Part::Hashes);
    let all = &segment.open.hashes;
    match &mut segment.hashes {
        Some((file, held)) => {
            file.write_all(all.get(*held..).unwrap_or_default().as_flattened())?;
            file.sync_data()?;
            *held = all.len();
        }
        None => {
            directory.replace(&path, all.as_flattened())?;
            segment.hashes = Some((Directory::append(&path)?, all.len()));
        }
    }
    Ok(())
}

/// Preallocates space without changing the length, so that flushes need not allocate. Failure is harmless.
pub(super) fn reserve(file: &File, bytes: u64) {
    if let Ok(bytes) = i64::try_from(bytes) {
        let _ = nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes);
    }
}
