//! Outgoing bytes of a connection, delayed until all currently runnable tasks have run.
//!
//! HTTP/2 requests a flush after each data frame, so a single reply would take two TLS records and two writes, and so
//! would each of several replies that become ready together. Here a flush is delayed once, to the end of the
//! scheduler's round: bytes that arrive meanwhile share the record and the write. It never waits for a period of time,
//! and the buffer is bounded.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;

/// Maximum number of delayed bytes: the content of one TLS record (RFC 8446, section 5.1).
const MOST: usize = 16 * 1024;

/// The end of the scheduler's round.
type Yielded = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The delayed bytes, and when they are sent.
#[derive(Default)]
pub(super) struct Outgoing {
    buffer: Vec<u8>,
    sent: usize,
    /// The transport did not take all of it.
    blocked: bool,
    /// The end of the scheduler's round, waited for since the first flush that was put off.
    round: Option<(Yielded, Arc<Over>)>,
}

/// Woken when the round is over.
struct Over {
    over: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Over {
    fn wake(self: Arc<Self>) {
        self.over.store(true, Ordering::Release);
        self.task.lock().wake_by_ref();
    }
}

impl Outgoing {
    /// Buffers bytes, or waits until there is room.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        inner: &mut W,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= MOST {
            ready!(self.poll_drain(cx, inner))?;
        }
        let before = self.buffer.len();
        for slice in slices {
            let room = MOST.saturating_sub(self.buffer.len());
            let taken = slice.get(..room).unwrap_or(slice);
            self.buffer.extend_from_slice(taken);
        }
        Poll::Ready(Ok(self.buffer.len() - before))
    }

    /// Reports all as flushed, and makes sure that this becomes true at the end of the scheduler's round: the task is
    /// then woken, and [`Outgoing::poll_due`] or the next flush sends.
    pub(super) fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        inner: &mut W,
    ) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return Pin::new(inner).poll_flush(cx);
        }
        match &self.round {
            Some((_, round)) if round.over.load(Ordering::Acquire) => self.poll_drain(cx, inner),
            Some((_, round)) => {
                round.task.lock().clone_from(cx.waker());
                Poll::Ready(Ok(()))
            }
            None => {
                let round = Arc::new(Over { over: AtomicBool::new(false), task: Mutex::new(cx.waker().clone()) });
                let mut yielded: Yielded = Box::pin(tokio::task::yield_now());
                let waker = Waker::from(Arc::clone(&round));
                if yielded.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    return self.poll_drain(cx, inner);
                }
                self.round = Some((yielded, round));
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Sends delayed bytes if their round is over. The connection polls this whenever it is woken, so that no bytes
    /// stay in the buffer.
    pub(super) fn poll_due<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, inner: &mut W) -> io::Result<()> {
        match &self.round {
            Some((_, round)) if round.over.load(Ordering::Acquire) => match self.poll_drain(cx, inner) {
                Poll::Ready(result) => result,
                // The transport wakes the task when it can continue.
                Poll::Pending => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Whether bytes wait for the transport, which waits for the other end.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends everything now, and flushes.
    pub(super) fn poll_drain<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        inner: &mut W,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.buffer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut *inner).poll_write(cx, rest);
            self.blocked = written.is_pending();
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        let flushed = Pin::new(inner).poll_flush(cx);
        self.blocked = flushed.is_pending();
        ready!(flushed)?;
        // An idle connection holds no memory for it.
        *self = Self::default();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;

    async fn write(outgoing: &mut Outgoing, inner: &mut tokio::io::DuplexStream, bytes: &[u8]) -> usize {
        poll_fn(|cx| outgoing.poll_write(cx, inner, &[io::IoSlice::new(bytes)])).await.unwrap()
    }

    #[tokio::test]
    async fn writes_of_one_poll_are_sent_together() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut outgoing = Outgoing::default();
        for part in [&b"one "[..], b"two ", b"three"] {
            assert_eq!(write(&mut outgoing, &mut near, part).await, part.len());
            poll_fn(|cx| outgoing.poll_flush(cx, &mut near)).await.unwrap();
        }
        let mut read = [0; 64];
        assert!(futures_util::FutureExt::now_or_never(far.read(&mut read)).is_none(), "sent before the round was over");
        // The task is woken at the end of the round and then sends.
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            outgoing.poll_due(cx, &mut near).unwrap();
            if outgoing.buffer.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert!(polls <= 2, "{polls}");
        let length = far.read(&mut read).await.unwrap();
        assert_eq!(read.get(..length), Some(&b"one two three"[..]));
    }

    #[tokio::test]
    async fn buffer_holds_at_most_one_record_and_loses_nothing() {
        let (mut near, mut far) = tokio::io::duplex(1000);
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut outgoing = Outgoing::default();
        let mut done = 0;
        while done < sent.len() {
            done += write(&mut outgoing, &mut near, &sent[done..]).await;
            assert!(outgoing.buffer.len() <= MOST);
            poll_fn(|cx| outgoing.poll_flush(cx, &mut near)).await.unwrap();
        }
        poll_fn(|cx| outgoing.poll_drain(cx, &mut near)).await.unwrap();
        assert!(outgoing.buffer.is_empty() && outgoing.buffer.capacity() == 0);
        drop(near);
        assert!(reader.await.unwrap() == expected);
    }
}
