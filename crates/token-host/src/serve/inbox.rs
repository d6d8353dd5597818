//! The reading end of a connection: one read takes what is there, up to 64 KiB, and is handed out frame by frame. What has
//! been read is looked through for cancellations at once, since they come after what they cancel.

use std::{
    collections::{HashSet, VecDeque},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};

use crate::protocol::{Frame, ProtocolError, Request};

/// Room for one read; the largest frame fits.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Inbox {
    socket: UnixStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Up to where the frames were looked through.
    seen: usize,
    /// How far each read reached, and when it was.
    reads: VecDeque<(usize, Instant)>,
    /// What is not to be signed any more; each leaves with its Cancel, which is taken after it.
    cancelled: HashSet<u64>,
    over: bool,
}

/// A frame was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// When the whole of it was read: deadlines count from then.
    pub(super) read_at: Instant,
    /// About how many more have been read, if they are as long.
    pub(super) waiting: usize,
    /// Nobody waits for it any more.
    pub(super) cancelled: bool,
}

impl Inbox {
    pub(super) fn new(socket: UnixStream) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        let (reads, cancelled) = (VecDeque::new(), HashSet::new());
        Self { socket, buffer, start: 0, end: 0, seen: 0, reads, cancelled, over: false }
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Whether a whole frame is there.
    pub(super) fn has_frame(&self) -> Result<bool, ProtocolError> {
        Ok(Frame::split(self.unread())?.is_some())
    }

    /// Moves the next whole frame, if there is one, into a buffer.
    pub(super) fn take(&mut self, into: &mut Vec<u8>) -> Result<Option<Taken>, ProtocolError> {
        into.clear();
        let Some((frame, length)) = Frame::split(self.unread())? else { return Ok(None) };
        let cancels = Request::cancelled_by(&frame);
        let cancelled = self.cancelled.contains(&frame.correlation);
        into.extend_from_slice(self.unread().get(..length).unwrap_or_default());
        if let Some(correlation) = cancels {
            self.cancelled.remove(&correlation);
        }
        self.start += length;
        while self.reads.front().is_some_and(|(reached, _)| *reached < self.start) {
            self.reads.pop_front();
        }
        let read_at = self.reads.front().map_or_else(Instant::now, |(_, at)| *at);
        Ok(Some(Taken { read_at, waiting: self.unread().len() / length.max(1), cancelled }))
    }

    /// Reads what has come meanwhile without waiting for more: after a call that took long, it may be cancellations.
    pub(super) fn look_ahead(&mut self) {
        self.make_room();
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        if space.is_empty() {
            return;
        }
        match recv(self.socket.as_raw_fd(), space, MsgFlags::MSG_DONTWAIT) {
            Ok(count) => self.received(count),
            Err(Errno::EAGAIN) => {}
            Err(error) => tracing::debug!(%error, "the next read that waits will tell"),
        }
    }

    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.seen = self.seen.saturating_sub(self.start);
        for (reached, _) in &mut self.reads {
            *reached = reached.saturating_sub(self.start);
        }
        self.start = 0;
    }

    fn received(&mut self, count: usize) {
        self.end += count;
        self.reads.push_back((self.end, Instant::now()));
        // Bytes that are no frame are told when their turn comes.
        while let Ok(Some((frame, length))) = Frame::split(self.buffer.get(self.seen..self.end).unwrap_or_default()) {
            self.cancelled.extend(Request::cancelled_by(&frame));
            self.seen += length;
        }
    }

    /// Whether the other side has hung up.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Waits for bytes, for ever without a `patience`; 0 when the other side has hung up.
    pub(super) fn fill(&mut self, patience: Option<Duration>) -> io::Result<usize> {
        self.make_room();
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        let timeout =
            patience.map_or(PollTimeout::NONE, |patience| PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
        let count = loop {
            // Not within read(2), where a thread is also woken when the other side has read an answer, for nothing.
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => continue,
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                result => result?,
            };
            match self.socket.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.over = count == 0;
        self.received(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::protocol::{Kind, Sign};

    fn sign(correlation: u64, out: &mut Vec<u8>) {
        let sign = Sign { kind: Kind::Leaf, key: [7; 32], request_id: "r", deadline_ms: 9, message: b"to be signed" };
        Request::Sign(sign).encode(correlation, out).unwrap();
    }

    fn cancel(correlation: u64, out: &mut Vec<u8>) {
        Request::Cancel { correlation }.encode(0, out).unwrap();
    }

    /// The correlation numbers of all frames in the inbox but the cancellations, and whether they are cancelled.
    fn drain(inbox: &mut Inbox) -> Vec<(u64, bool)> {
        let (mut bytes, mut taken) = (Vec::new(), Vec::new());
        while let Some(Taken { cancelled, .. }) = inbox.take(&mut bytes).unwrap() {
            let (frame, _) = Frame::split(&bytes).unwrap().unwrap();
            if Request::cancelled_by(&frame).is_none() {
                taken.push((frame.correlation, cancelled));
            }
        }
        taken
    }

    #[test]
    fn cancellations_overtake_what_they_cancel() {
        let (mut daemon, host) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(host);
        let mut bytes = Vec::new();
        (1..=4).for_each(|correlation| sign(correlation, &mut bytes));
        daemon.write_all(&bytes).unwrap();
        assert!(inbox.fill(None).unwrap() > 0);
        inbox.look_ahead();
        inbox.take(&mut bytes).unwrap().unwrap();
        // One that is too late, one that is not; cut in the middle of the second.
        let mut more = Vec::new();
        cancel(1, &mut more);
        cancel(3, &mut more);
        sign(5, &mut more);
        let (front, rest) = more.split_at(30);
        daemon.write_all(front).unwrap();
        inbox.look_ahead();
        daemon.write_all(rest).unwrap();
        inbox.look_ahead();
        assert_eq!(drain(&mut inbox), [(2, false), (3, true), (4, false), (5, false)]);
        assert!(inbox.cancelled.is_empty() && inbox.reads.len() <= 1, "{inbox:?}");
        // A number that comes again, which none does, is not cancelled any more.
        let mut again = Vec::new();
        sign(3, &mut again);
        daemon.write_all(&again).unwrap();
        inbox.fill(None).unwrap();
        assert_eq!(drain(&mut inbox), [(3, false)]);
    }

    #[test]
    fn a_deadline_counts_from_its_own_read() {
        let (mut daemon, host) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(host);
        let mut bytes = Vec::new();
        sign(1, &mut bytes);
        sign(2, &mut bytes);
        // The second frame is whole only with the second read.
        let (front, rest) = bytes.split_at(bytes.len() - 3);
        daemon.write_all(front).unwrap();
        inbox.fill(None).unwrap();
        let between = Instant::now();
        daemon.write_all(rest).unwrap();
        inbox.look_ahead();
        let mut into = Vec::new();
        assert!(inbox.take(&mut into).unwrap().unwrap().read_at < between);
        assert!(inbox.take(&mut into).unwrap().unwrap().read_at >= between);
    }
}
