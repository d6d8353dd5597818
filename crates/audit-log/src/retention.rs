//! Retention: which segments' lines are removed, and when. Whole segments, oldest first, never the one being written.
//!
//! A line of the log announces a removal before files are deleted, so that `verify` can distinguish retention from
//! tampering. Leaf hashes, counters and checkpoints are kept: 32 bytes per line, so the tree can be verified forever.

use std::{io, time::SystemTime};

use super::{
    Settings,
    record::{Line, RetiredLine, VERSION},
    segment::{Directory, Part, Seal},
    stats::Counts,
    timestamp,
};

/// First line to keep, if a segment is due for removal. Only lines covered by a checkpoint are removed.
pub(super) fn due(
    directory: &Directory,
    settings: &Settings,
    written: u64,
    signed: u64,
    now: SystemTime,
) -> io::Result<Option<u64>> {
    if settings.keep_for.is_none() && settings.keep_bytes.is_none() {
        return Ok(None);
    }
    let mut held = Vec::new();
    for first in directory.segments()? {
        if first < written && directory.part(first, Part::Lines).exists() {
            let Some((seal, _)) = Seal::read(directory, first)? else { break };
            held.push(seal);
        }
    }
    let mut bytes: u64 = held.iter().map(|seal| seal.bytes).sum();
    let mut before = None;
    for seal in held {
        let end = seal.first + seal.lines;
        let newest = seal.counters.newest.as_deref().and_then(timestamp::parse);
        let old = match (settings.keep_for, newest) {
            (Some(keep), Some(newest)) => now.duration_since(newest).is_ok_and(|age| age > keep),
            (Some(_), None) | (None, _) => false,
        };
        let much = settings.keep_bytes.is_some_and(|most| bytes > most);
        if end > signed || !(old || much) {
            break;
        }
        bytes -= seal.bytes;
        before = Some(end);
    }
    Ok(before)
}

/// The line that announces a removal.
pub(super) fn line(before: u64, now: SystemTime) -> Line {
    Line::Retired(RetiredLine { v: VERSION, line: 0, time: timestamp::format(now), before })
}

/// Removes the lines of the segments that were announced as retired, and subtracts their bytes in `counts`.
pub(super) fn remove(directory: &Directory, before: u64, counts: &Counts) -> io::Result<()> {
    for first in directory.segments()? {
        if first < before
            && let Some((seal, _)) = Seal::read(directory, first)?
            && first + seal.lines <= before
        {
            match std::fs::remove_file(directory.part(first, Part::Lines)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) => counts.removed(seal.bytes),
                Err(_) => {}
            }
        }
    }
    directory.sync()
}
