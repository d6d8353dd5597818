//! A thread's answers, held back for a moment so that several go in one write.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::protocol::{ProtocolError, Reply};

/// Most answers that are held back.
const MOST: usize = 32;

/// Longest time that an answer is held back: a few signatures of RSA, none of a slow token.
const LINGER: Duration = Duration::from_millis(3);

/// The same while many requests wait, whose own wait is a multiple of it; not for a slow token, which has nothing to gain
/// from runs of signatures.
const LINGER_MANY: Duration = Duration::from_millis(40);

/// How many requests must wait for each answer that is held back for longer than [`LINGER`].
const MANY: usize = 2;

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

    /// Whether what is held back must go before another request is taken that lasts as long as the last one, of so
    /// many that wait. Runs of signatures are cheaper than the same signatures with other work in between.
    pub(super) fn is_due(&self, now: Instant, last: Duration, waiting: usize) -> bool {
        let held = now.saturating_duration_since(self.since) + last;
        let many = self.count.saturating_mul(MANY) < waiting && last < LINGER;
        let most = if many { LINGER_MANY } else { LINGER };
        self.count >= MOST || (self.count > 0 && held > most)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_back_for_a_moment_and_longer_only_where_many_wait() {
        let (near, _far) = UnixStream::pair().unwrap();
        let writer = Mutex::new(near);
        let ms = Duration::from_millis;
        let cases = [
            (0, ms(500), 100, false),
            (1, ms(0), 0, false),
            (1, ms(2), 0, true),
            (1, ms(2), 2, true),
            (1, ms(2), 3, false),
            (1, ms(5), 100, true),
            (16, ms(2), 32, true),
            (15, ms(2), 32, false),
            (MOST, ms(0), 1000, true),
        ];
        for (count, last, waiting, due) in cases {
            let mut outbox = Outbox::new(&writer);
            for correlation in 0..count {
                outbox.push(u64::try_from(correlation).unwrap(), &Reply::Opened).unwrap();
            }
            let now = outbox.since + ms(2);
            assert_eq!(outbox.is_due(now, last, waiting), due, "{count} held, {last:?}, {waiting} waiting");
        }
    }
}
