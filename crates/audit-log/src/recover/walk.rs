//! Iterates over a log's segments in order and checks that all lines are present and unchanged.

use std::{fs::OpenOptions, io, path::Path};

use super::super::{
    record::Line,
    segment::{Counters, Directory, Next, Part, Seal},
    tree::{Frontier, leaf_hash},
};
use super::{Heads, Open, OpenError, Tail, io_error};

/// Iterator over the segments in order.
pub(super) struct Walk<'a> {
    directory: &'a Directory,
    heads: Heads,
    /// The size of the newest checkpoint.
    signed: u64,
    pub(super) tree: Frontier,
    pub(super) counters: Counters,
    /// The line from which times are compared with the clock.
    since: u64,
    /// The time of the newest line from there on.
    pub(super) newest_since: Option<String>,
    pub(super) open: Option<Open>,
    pub(super) tail: Option<Tail>,
    missing: Vec<u64>,
    /// Whether to complete what a failing disk prevented.
    repair: bool,
}

impl<'a> Walk<'a> {
    /// Reads every segment and compares the tree with every signed head. `since` is the line from which times count.
    pub(super) fn over(
        directory: &'a Directory,
        segments: &[u64],
        heads: Heads,
        signed: u64,
        since: u64,
        repair: bool,
    ) -> Result<Self, OpenError> {
        let (tree, counters) = (Frontier::default(), Counters::default());
        let mut walk = Self {
            directory,
            heads,
            signed,
            tree,
            counters,
            since,
            newest_since: None,
            open: None,
            tail: None,
            missing: Vec::new(),
            repair,
        };
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
                if first >= self.since {
                    self.newest(seal.counters.newest.as_deref());
                } else if tree.size() > self.since && length.is_some() {
                    self.newest_of_part(&seal)?;
                }
                self.tree = tree;
                self.counters.add(&seal.counters);
                self.check_head(&path)
            }
            (None, Some(length)) => self.unsealed(first, next, length),
            (None, None) => Err(OpenError::Missing(path)),
        }
    }

    /// Reads a segment line by line. Seals it if it is not the last one: a failing disk had prevented that.
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
            // Beyond the newest checkpoint, the file of hashes may be incomplete, too.
            if line < self.signed && recorded.get(open.hashes.len()).is_some_and(|recorded| *recorded != hash) {
                return Err(OpenError::Changed { path, line });
            }
            let parsed = Line::parse(text).map_err(|source| OpenError::Line { path: path.clone(), line, source })?;
            let in_place = match &parsed {
                Line::Crl(_) | Line::Intent(_) => parsed.intent_index() == Some(self.counters.intents),
                Line::Outcome(outcome) => outcome.index < self.counters.intents,
                Line::Ceremony(_) | Line::Retired(_) | Line::Revocation(_) | Line::Sealed(_) => true,
            };
            if parsed.number() != line || !in_place {
                return Err(OpenError::Number { path, line });
            }
            if line >= self.since {
                self.newest(Some(parsed.time()));
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
                if !self.repair {
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

    fn newest(&mut self, time: Option<&str>) {
        if self.newest_since.as_deref() < time {
            self.newest_since = time.map(ToOwned::to_owned);
        }
    }

    /// Reads the lines that count of a complete segment; its seal has the time of the newest of all.
    fn newest_of_part(&mut self, seal: &Seal) -> Result<(), OpenError> {
        let path = self.directory.part(seal.first, Part::Lines);
        let mut reader = self.directory.lines(seal.first).map_err(io_error(&path))?;
        for line in seal.first..seal.first.saturating_add(seal.lines) {
            let Next::Line(text) = reader.next().map_err(io_error(&path))? else { break };
            if line >= self.since {
                let parsed =
                    Line::parse(text).map_err(|source| OpenError::Line { path: path.clone(), line, source })?;
                self.newest(Some(parsed.time()));
            }
        }
        Ok(())
    }

    /// Truncates what a failed write left after a segment's end, if the next segment records that a write failed there.
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
        if !self.repair {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path))?;
        file.set_len(end).and_then(|()| file.sync_all()).map_err(io_error(&path))
    }

    /// Compares the tree with the checkpoints of its current size.
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
