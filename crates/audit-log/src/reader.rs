//! Reads the log's lines for people, from the oldest that retention has kept; also while the log is being written.

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

/// A line that was read: its text and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) text: Vec<u8>,
    pub(super) line: Line,
}

/// The segment that is being read.
#[derive(Debug)]
struct Current {
    first: u64,
    /// Where the next segment begins, if there was one: what a failed write left behind the end does not count.
    end: Option<u64>,
    lines: LineReader<BufReader<File>>,
}

/// A position in the log, from which reading can go on later.
#[derive(Debug)]
pub(super) struct Reader {
    directory: Directory,
    path: PathBuf,
    current: Option<Current>,
    /// The first line that has not been read.
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

    /// Whether lines have been removed by retention, so that not everything can be read.
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
                    // What begins with the line that follows is the next segment; what else is behind this one's end
                    // does not count.
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

    /// The first segment with lines that have not been read.
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
