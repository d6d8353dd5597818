//! A thread's answers, held back for a moment so that several go in one write.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::token::protocol::{ProtocolError, Reply};

/// Most answers that are held back.
const MOST: usize = 16;

/// Longest time that an answer is held back: a few signatures of RSA, none of a slow token.
const LINGER: Duration = Duration::from_millis(3);

pub(super) struct Outbox<'a> {
    writer: &'a Mutex<UnixStream>,
    buffer: Vec<u8>,
    count: usize,
    since: Instant,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(writer: &'a Mutex<UnixStream>) -> Self {
        Self { writer, buffer: Vec::new(), count: 0, since: Instant::now() }
    }

    pub(super) fn push(&mut self, correlation: u64, reply: &Reply) -> io::Result<()> {
        if self.count == 0 {
            self.since = Instant::now();
        }
        let invalid = |error: ProtocolError| io::Error::new(io::ErrorKind::InvalidData, error);
        reply.encode(correlation, &mut self.buffer).map_err(invalid)?;
        self.count += 1;
        Ok(())
    }

    /// Whether what is held back must go before another request is taken that lasts as long as the last one.
    pub(super) fn is_due(&self, last: Duration) -> bool {
        self.count >= MOST || (self.count > 0 && self.since.elapsed() + last > LINGER)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        // Held over the whole write, so that frames of two threads do not mix.
        let mut socket = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(&self.buffer)?;
        drop(socket);
        self.buffer.clear();
        self.count = 0;
        Ok(())
    }
}
