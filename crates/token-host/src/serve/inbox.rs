//! The reading end of a connection: one read takes all available bytes, up to 64 KiB, and frames are returned one by
//! one. The buffer grows for the time of a larger frame, which only a long CRL has.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::ConnectionError;
use crate::protocol::Frame;

/// Size of one read; every frame fits but that of a long CRL.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Inbox {
    socket: UnixStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    read_at: Instant,
}

impl Inbox {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0, read_at: Instant::now() }
    }

    /// Waits for the next frame; returns it with the time at which its last byte was read. `None` if the daemon
    /// disconnected.
    pub(super) fn next(&mut self, timeout: Option<Duration>) -> Result<Option<(Frame, Instant)>, ConnectionError> {
        loop {
            if let Some(next) = self.next_read()? {
                return Ok(Some(next));
            }
            if self.fill(timeout)? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next frame that the last read has completed, if any, without waiting.
    pub(super) fn next_read(&mut self) -> Result<Option<(Frame, Instant)>, ConnectionError> {
        Ok(Frame::split(&self.buffer[self.start..self.end])?.map(|(frame, length)| {
            self.start += length;
            (frame, self.read_at)
        }))
    }

    fn fill(&mut self, timeout: Option<Duration>) -> Result<usize, ConnectionError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let needed = Frame::length(&self.buffer[..self.end])?.unwrap_or_default().max(BUFFER);
        // What is held is a part of one frame, and thus shorter.
        if needed != self.buffer.len() {
            let mut resized = vec![0; needed];
            resized[..self.end].copy_from_slice(&self.buffer[..self.end]);
            self.buffer = resized.into_boxed_slice();
        }
        let timeout = timeout.map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        let count = loop {
            // A blocking read(2) would also be woken when the daemon has read a reply.
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => continue,
                Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                result => result.map_err(io::Error::from)?,
            };
            match self.socket.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.end += count;
        self.read_at = Instant::now();
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::protocol::{Kind, Request, Sign};

    #[test]
    fn buffer_grows_for_a_large_frame_and_shrinks_again() {
        let (mut daemon, host) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(host);
        let message = vec![7; pki::crl::TBS_MAX];
        let mut bytes = Vec::new();
        for (correlation, kind, message) in
            [(1, Kind::Leaf, &b"m"[..]), (2, Kind::Crl, &message), (3, Kind::Leaf, b"m")]
        {
            let sign = Sign { kind, key: [7; 32], request_id: "r", deadline_ms: 9, message };
            Request::Sign(sign).encode(correlation, &mut bytes).unwrap();
        }
        let writer = std::thread::spawn(move || {
            daemon.write_all(&bytes).unwrap();
            daemon
        });
        for expected in 1..=3 {
            let (frame, _) = inbox.next(None).unwrap().unwrap();
            assert_eq!(frame.correlation, expected);
        }
        drop(writer.join().unwrap());
        assert!(inbox.next(None).unwrap().is_none());
        assert_eq!(inbox.buffer.len(), BUFFER);
    }

    #[test]
    fn deadline_counts_from_the_read_that_completes_the_frame() {
        let (mut daemon, host) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(host);
        let mut bytes = Vec::new();
        for correlation in [1, 2] {
            let sign = Sign { kind: Kind::Leaf, key: [7; 32], request_id: "r", deadline_ms: 9, message: b"message" };
            Request::Sign(sign).encode(correlation, &mut bytes).unwrap();
        }
        let (front, rest) = bytes.split_at(bytes.len() - 3);
        daemon.write_all(front).unwrap();
        let (first, read_at) = inbox.next(None).unwrap().unwrap();
        assert_eq!(first.correlation, 1);
        assert!(inbox.next_read().unwrap().is_none(), "the second frame is incomplete");
        let between = Instant::now();
        assert!(read_at < between);
        daemon.write_all(rest).unwrap();
        let (second, read_at) = inbox.next(None).unwrap().unwrap();
        assert_eq!(second.correlation, 2);
        assert!(read_at >= between);
        drop(daemon);
        assert!(inbox.next(None).unwrap().is_none());
    }
}
