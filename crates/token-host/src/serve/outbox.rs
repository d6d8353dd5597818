//! The replies of a session thread, collected so that several are sent in one write.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::lock;
use crate::protocol::{ProtocolError, Reply};

/// Maximum number of replies in one write.
const MAX_ANSWERS: usize = 32;

/// Maximum time for which a reply is delayed while more requests wait: a few RSA signatures, but no signature of a slow
/// token.
const MAX_DELAY: Duration = Duration::from_millis(3);

/// The same while more than twice as many requests wait as replies are delayed: the daemon has other work, and the
/// clients of these replies have waited longer for the token. 2 % of an RSA-2048 certificate's CPU time.
const MAX_DELAY_UNDER_LOAD: Duration = Duration::from_millis(40);

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

    /// Whether the replies must be written before another request that takes as long as the last one, with this number
    /// of requests waiting.
    pub(super) fn is_due(&self, now: Instant, last: Duration, waiting: usize) -> bool {
        let under_load = waiting > 2 * self.count && last < MAX_DELAY;
        let delay = if under_load { MAX_DELAY_UNDER_LOAD } else { MAX_DELAY };
        self.count >= MAX_ANSWERS || (self.count > 0 && now.saturating_duration_since(self.since) + last > delay)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        // Locked for the whole write: the frames of two threads must not mix.
        lock(self.writer).write_all(&self.buffer)?;
        self.buffer.clear();
        self.count = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_back_briefly_and_not_for_slow_tokens() {
        let (near, _far) = UnixStream::pair().unwrap();
        let writer = Mutex::new(near);
        let ms = Duration::from_millis;
        let cases = [
            (0, ms(500), 0, false),
            (1, ms(0), 0, false),
            (1, ms(2), 2, true),
            (1, ms(2), 3, false),
            (1, ms(5), 3, true),
            (MAX_ANSWERS, ms(0), 100, true),
        ];
        for (count, last, waiting, due) in cases {
            let mut outbox = Outbox::new(&writer);
            for correlation in 0..count {
                outbox.push(u64::try_from(correlation).unwrap(), &Reply::Expired).unwrap();
            }
            let now = outbox.since + ms(2);
            assert_eq!(outbox.is_due(now, last, waiting), due, "{count} held, {last:?}, {waiting} waiting");
        }
    }
}
