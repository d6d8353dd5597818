//! The reading end of a connection: one read takes what is there, up to 64 KiB, and is handed out frame by frame.

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    time::Instant,
};

use crate::token::protocol::{Frame, ProtocolError};

/// Room for one read; the largest frame fits.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Inbox {
    socket: UnixStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    read_at: Instant,
    over: bool,
}

impl Inbox {
    pub(super) fn new(socket: UnixStream) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { socket, buffer, start: 0, end: 0, read_at: Instant::now(), over: false }
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Whether a whole frame is there.
    pub(super) fn has_frame(&self) -> Result<bool, ProtocolError> {
        Ok(Frame::split(self.unread())?.is_some())
    }

    /// Moves the next whole frame, if there is one, into a buffer.
    pub(super) fn take(&mut self, into: &mut Vec<u8>) -> Result<(), ProtocolError> {
        into.clear();
        if let Some((_, length)) = Frame::split(self.unread())? {
            into.extend_from_slice(self.unread().get(..length).unwrap_or_default());
            self.start += length;
        }
        Ok(())
    }

    /// About how many frames are there, if they are as long as one that was taken.
    pub(super) fn waiting(&self, length: usize) -> usize {
        self.unread().len() / length.max(1)
    }

    /// When what is there was read: deadlines count from then.
    pub(super) fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Whether the other side has hung up.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Waits for bytes; 0 when the other side has hung up.
    pub(super) fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = loop {
            match self.socket.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.end += count;
        self.over = count == 0;
        self.read_at = Instant::now();
        Ok(count)
    }
}
