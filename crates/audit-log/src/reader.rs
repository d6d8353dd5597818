//! Reads the log's lines for display, from the oldest that retention has kept; also while the log is being written.

use std::{
    fs::File,
    io::{self, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    record::Line,
    segment::{Directory, LineReader, Next, Part},
    verify::{ReadError, io_error, segments},
};

/// A line with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) text: Vec<u8>,
    pub(super) line: Line,
}

/// The segment being read.
#[derive(Debug)]
struct Current {
    first: u64,
    /// Offset of this segment's end if a next segment exists; bytes after it, left by a failed write, are ignored.
    end: Option<u64>,
    lines: LineReader<BufReader<File>>,
}

/// A position in the log from which reading can continue later.
#[derive(Debug)]
pub(super) struct Reader {
    directory: Directory,
    path: PathBuf,
    current: Option<Current>,
    /// Number of the first unread line.
    next: u64,
}

impl Reader {
    /// Starts at the oldest line.
    pub(super) fn new(path: &Path) -> Result<Self, ReadError> {
        let directory = Directory::new(path);
        if segments(&directory, path)?.is_empty() {
            return Err(ReadError::NoLog(path.to_owned()));
        }
        Ok(Self { directory, path: path.to_owned(), current: None, next: 0 })
    }

    /// Whether retention has removed lines that have not been read.
    pub(super) fn incomplete(&self) -> Result<bool, ReadError> {
        let firsts = segments(&self.directory, &self.path)?;
        Ok(firsts.iter().any(|first| !self.directory.part(*first, Part::Lines).exists()))
    }

    /// The next line; `None` when there is none yet.
    pub(super) fn next(&mut self) -> Result<Option<Read>, ReadError> {
        loop {
            let Some(Current { first, end, lines }) = &mut self.current else {
                match self.following()? {
                    Some(first) => {
                        self.current = Some(self.open(first, 0)?);
                        self.next = first;
                    }
                    None => return Ok(None),
                }
                continue;
            };
            if end.is_some_and(|end| self.next >= end) {
                self.current = None;
                continue;
            }
            let (first, path) = (*first, self.directory.part(*first, Part::Lines));
            match lines.next().map_err(io_error(&path))? {
                Next::Line(text) => {
                    let text = text.to_vec();
                    let line = Line::parse(&text)
                        .map_err(|error| io_error(&path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
                    self.next += 1;
                    return Ok(Some(Read { text, line }));
                }
                Next::End | Next::Unterminated(_) => {
                    let offset = lines.offset;
                    // If the following line begins a new segment, anything else after this segment's end is ignored.
                    match self.following()? {
                        Some(following) if following > first => self.current = None,
                        Some(_) | None => {
                            self.current = Some(self.open(first, offset)?);
                            return Ok(None);
                        }
                    }
                }
            }
        }
    }

    /// The first segment with unread lines.
    fn following(&self) -> Result<Option<u64>, ReadError> {
        let there = |first: &u64| self.directory.part(*first, Part::Lines).exists();
        let firsts = segments(&self.directory, &self.path)?;
        Ok(firsts.into_iter().filter(there).find(|first| *first >= self.next))
    }

    fn open(&self, first: u64, offset: u64) -> Result<Current, ReadError> {
        let end = segments(&self.directory, &self.path)?.into_iter().find(|other| *other > first);
        let path = self.directory.part(first, Part::Lines);
        let mut file = File::open(&path).map_err(io_error(&path))?;
        file.seek(SeekFrom::Start(offset)).map_err(io_error(&path))?;
        let mut lines = LineReader::new(BufReader::with_capacity(1 << 16, file));
        lines.offset = offset;
        Ok(Current { first, end, lines })
    }
}
