//! Iterates over the segments in order with two trees: one over the lines present, one over the stored leaf hashes. If
//! a checkpoint matches only one of them, the other one was changed.

use std::{collections::BTreeMap, io, path::Path};

use super::{Finding, Head, ReadError, Report, io_error, lines::Seen, name};
use crate::{
    record::Line,
    segment::{Counters, Directory, Next, Part, Seal},
    tree::{Frontier, Hash, leaf_hash},
};

pub(super) struct Walk<'a> {
    directory: &'a Directory,
    heads: BTreeMap<u64, Vec<Head>>,
    report: &'a mut Report,
    /// Number of the next line.
    size: u64,
    /// The tree over the lines; `None` after a missing line.
    lines: Option<Frontier>,
    /// The tree over the stored hashes; `None` after a missing hash.
    kept: Option<Frontier>,
    seen: Seen,
    counters: Counters,
    /// Segments without lines: their ends and file names.
    gone: Vec<(u64, String)>,
    /// The first line since the last matching checkpoint whose hash differs from the stored one.
    differs: Option<(u64, String)>,
}

/// Findings of reading a segment's lines.
#[derive(Default)]
struct Scan {
    counters: Counters,
    hashes: Vec<Hash>,
    /// A finding in this segment was already reported.
    reported: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(directory: &'a Directory, heads: Vec<Head>, report: &'a mut Report) -> Self {
        let mut by_size: BTreeMap<u64, Vec<Head>> = BTreeMap::new();
        for head in heads {
            by_size.entry(head.checkpoint.size).or_default().push(head);
        }
        Self {
            directory,
            heads: by_size,
            report,
            size: 0,
            lines: Some(Frontier::default()),
            kept: Some(Frontier::default()),
            seen: Seen::default(),
            counters: Counters::default(),
            gone: Vec::new(),
            differs: None,
        }
    }

    pub(super) fn segment(&mut self, first: u64, next: Option<u64>) -> Result<(), ReadError> {
        let path = self.directory.part(first, Part::Lines);
        let file = name(&path);
        self.report.segments += 1;
        if first > self.size {
            let what = format!("the lines {} to {} are missing before it: a segment is gone", self.size, first - 1);
            self.tell(&file, Some(self.size), what);
            (self.lines, self.kept, self.size) = (None, None, first);
        }
        let kept = self.directory.hashes(first).map_err(io_error(&path))?;
        let seal = match Seal::read(self.directory, first) {
            Ok(seal) => seal.map(|(seal, _)| seal),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.tell(&name(&self.directory.part(first, Part::Seal)), Some(first), error.to_string());
                None
            }
            Err(source) => return Err(io_error(&path)(source)),
        };
        if path.exists() {
            self.read(first, next, &path, &kept, seal.as_ref())
        } else {
            self.retired(first, next, &file, &kept, seal.as_ref());
            Ok(())
        }
    }

    /// Checks a segment of which only hashes and counters remain.
    fn retired(&mut self, first: u64, next: Option<u64>, file: &str, kept: &[Hash], seal: Option<&Seal>) {
        self.report.retired += 1;
        let held = first + u64::try_from(kept.len()).unwrap_or(u64::MAX - first);
        let Some(seal) = seal.filter(|seal| seal.first + seal.lines == held && next.is_none_or(|next| next == held))
        else {
            self.tell(
                file,
                Some(first),
                "the segment is missing, and its hashes and counters are not whole".to_owned(),
            );
            (self.lines, self.kept, self.size) = (None, None, next.unwrap_or(held));
            return;
        };
        self.gone.push((held, file.to_owned()));
        self.counters.add(&seal.counters);
        self.seen.intents += seal.counters.intents;
        self.seen.readable_from = self.seen.intents;
        for hash in kept {
            self.push(Some(*hash), Some(*hash), file);
        }
    }

    /// Checks a segment whose lines are present.
    fn read(
        &mut self,
        first: u64,
        next: Option<u64>,
        path: &Path,
        kept: &[Hash],
        seal: Option<&Seal>,
    ) -> Result<(), ReadError> {
        let file = name(path);
        let mut reader = self.directory.lines(first).map_err(io_error(path))?;
        let mut scan = Scan::default();
        let mut kept_hashes = kept.iter();
        while next.is_none_or(|next| self.size < next) {
            let number = self.size;
            let text = match reader.next() {
                Ok(Next::Line(text)) => text,
                Ok(Next::End) => break,
                Ok(Next::Unterminated(bytes)) => {
                    let bytes = bytes.len();
                    match next {
                        None => self.report.notes.push(format!(
                            "{file}: {bytes} bytes follow the last line: it is being written, or a crash cut it short"
                        )),
                        Some(_) => {
                            scan.tell(self, &file, number, "the line is cut short".to_owned());
                        }
                    }
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    scan.tell(self, &file, number, error.to_string());
                    break;
                }
                Err(source) => return Err(io_error(path)(source)),
            };
            let hash = leaf_hash(text);
            let kept_hash = kept_hashes.next();
            match Line::parse(text) {
                Ok(line) => {
                    scan.counters.count(&line);
                    self.counters.count(&line);
                    if let Err(what) = self.seen.check(&line, number) {
                        scan.tell(self, &file, number, what);
                    }
                }
                Err(error) => scan.tell(self, &file, number, error.to_string()),
            }
            if kept_hash.is_some_and(|kept| *kept != hash) && !scan.reported && self.differs.is_none() {
                self.differs = Some((number, file.clone()));
            }
            scan.hashes.push(hash);
            self.push(Some(hash), kept_hash.copied(), &file);
        }
        self.after(first, next, &file, &mut scan, kept_hashes.as_slice())?;
        // After a bad line every seal differs; only the line is reported.
        if let Some(seal) = seal.filter(|_| self.report.findings.is_empty() && self.differs.is_none()) {
            self.compare(seal, first, reader.offset, &scan);
        }
        self.leftover(first, next, path, reader.offset, &mut scan)
    }

    /// Reports lines that are missing after a segment.
    fn after(
        &mut self,
        first: u64,
        next: Option<u64>,
        file: &str,
        scan: &mut Scan,
        kept: &[Hash],
    ) -> Result<(), ReadError> {
        let held = self.size + u64::try_from(kept.len()).unwrap_or(u64::MAX - self.size);
        let end = next.unwrap_or(held);
        if self.size < end {
            let what = format!("the segment ends here; the lines {} to {} are missing", self.size, end - 1);
            scan.tell(self, file, self.size, what);
            for hash in kept {
                if self.size < end {
                    self.push(None, Some(*hash), file);
                }
            }
            if self.size < end {
                (self.lines, self.kept, self.size) = (None, None, end);
            }
        }
        if next.is_some() && held > end {
            let path = self.directory.part(first, Part::Hashes);
            self.tell(&name(&path), Some(end), "it holds more hashes than the segment has lines".to_owned());
        }
        Ok(())
    }

    /// Compares a segment's seal with what was read.
    fn compare(&mut self, seal: &Seal, first: u64, bytes: u64, scan: &Scan) {
        let Some(tree) = &self.lines else { return };
        let expected = Seal::new(first, bytes, &scan.counters, tree);
        if *seal != expected {
            let file = name(&self.directory.part(first, Part::Seal));
            self.tell(&file, Some(first), "it does not say what the segment's lines say".to_owned());
        }
    }

    /// Checks the bytes after the last valid line.
    fn leftover(
        &mut self,
        first: u64,
        next: Option<u64>,
        path: &Path,
        end: u64,
        scan: &mut Scan,
    ) -> Result<(), ReadError> {
        let Some(next) = next else { return Ok(()) };
        let length = std::fs::metadata(path).map_err(io_error(path))?.len();
        if length == end || scan.reported {
            return Ok(());
        }
        let file = name(path);
        let following = self.directory.part(next, Part::Lines);
        let line = match self.directory.lines(next) {
            Ok(mut reader) => match reader.next().map_err(io_error(&following))? {
                Next::Line(text) => Line::parse(text).ok(),
                Next::End | Next::Unterminated(_) => None,
            },
            Err(_) => None,
        };
        match line {
            Some(Line::Sealed(sealed)) if sealed.segment == first && sealed.bytes == end => {
                let more = length.saturating_sub(end);
                let note = format!("{file}: {more} bytes follow its end; a write failed there and nothing was signed");
                self.report.notes.push(note);
            }
            _ => scan.tell(self, &file, next, "something was inserted at the segment's end".to_owned()),
        }
        Ok(())
    }

    /// Appends a line to the trees and compares them with the checkpoints of the new size.
    fn push(&mut self, line: Option<Hash>, kept: Option<Hash>, file: &str) {
        self.size += 1;
        grow(&mut self.lines, line);
        // Beyond the last checkpoint no hash is stored yet; the line's own hash is used.
        grow(&mut self.kept, kept.or(line));
        let Some(heads) = self.heads.get(&self.size) else { return };
        let (lines, kept) = (self.lines.as_ref().map(Frontier::root), self.kept.as_ref().map(Frontier::root));
        let mut findings = Vec::new();
        for head in heads {
            let root = Some(head.checkpoint.root);
            if lines == root {
                self.report.checkpoints += 1;
                self.report.checkpointed = self.size;
                if let Some((line, file)) = self.differs.take() {
                    let what = "its kept leaf hash was changed; the line itself is the one that was signed for";
                    findings.push(Finding { file, line: Some(line), what: what.to_owned() });
                }
            } else if kept == root
                && let Some((line, file)) = self.differs.take()
            {
                let what = format!("the line was changed: {} was signed for another", head.file);
                findings.push(Finding { file, line: Some(line), what });
            } else if kept != root && !self.report.findings.iter().any(|f| f.line.is_some_and(|l| l < self.size)) {
                let from = self.report.checkpointed;
                let what =
                    format!("the lines {from} to {} are not those that {} was signed for", self.size - 1, head.file);
                findings.push(Finding { file: file.to_owned(), line: Some(from), what });
            }
        }
        self.report.findings.append(&mut findings);
    }

    pub(super) fn finish(self) {
        let Self { heads, report, size, lines, seen, counters, gone, differs, .. } = self;
        if let Some((line, file)) = differs {
            let what = "the line and its kept leaf hash differ, and no checkpoint says which was changed".to_owned();
            report.findings.push(Finding { file, line: Some(line), what });
        }
        for (end, file) in gone {
            if end > counters.retired_before {
                let what = "the segment is missing and no line says that it was retired".to_owned();
                report.findings.push(Finding { file, line: None, what });
            }
        }
        for (signed, heads) in heads.range(size + 1..) {
            for head in heads {
                let what =
                    format!("the log ends here, but {} was signed for {signed} lines: its end was cut off", head.file);
                report.findings.push(Finding { file: head.file.clone(), line: Some(size), what });
            }
        }
        report.lines = size;
        report.root = lines.map(|tree| tree.root());
        report.intents = counters.intents;
        report.outcomes = counters.outcomes;
        report.without_outcome = u64::try_from(seen.open.len()).unwrap_or(u64::MAX);
        report.intents_per_ca_key = counters.intents_per_ca_key;
    }

    fn tell(&mut self, file: &str, line: Option<u64>, what: String) {
        self.report.findings.push(Finding { file: file.to_owned(), line, what });
    }
}

impl Scan {
    /// Reports the first error in a segment only, since the others follow from it.
    fn tell(&mut self, walk: &mut Walk<'_>, file: &str, line: u64, what: String) {
        if !std::mem::replace(&mut self.reported, true) {
            walk.tell(file, Some(line), what);
        }
    }
}

fn grow(tree: &mut Option<Frontier>, leaf: Option<Hash>) {
    match (tree.as_mut(), leaf) {
        (Some(growing), Some(leaf)) => growing.push(leaf),
        (Some(_), None) => *tree = None,
        (None, _) => {}
    }
}
