//! Buffers log lines in memory and writes them to standard error on a separate thread.
//!
//! Requests never wait for the reader of the lines: a hanging collector, or a full disk behind it, would otherwise
//! block every certificate. Lines are written after a short delay, errors at once. If more than 4 MiB are waiting,
//! further lines are dropped and counted, and a log line reports their number. Dropping the [`Flushed`] guard writes
//! the lines that are left. This does not concern the issuance log, which never drops anything.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of waiting bytes: some seconds of lines at the highest rate.
const ROOM: usize = 4 << 20;
/// Delay for which lines are collected before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// Capacity in bytes that the buffers keep for later lines.
const KEPT: usize = 64 << 10;
/// Maximum time for writing the last lines at the end, in case their reader hangs.
const END: Duration = Duration::from_secs(2);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Number of lines dropped since the start of the process.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines dropped since lines were last taken.
    dropped: u64,
    /// The thread sleeps until it is notified.
    idle: bool,
    /// Waiting lines must be written without a delay.
    urgent: bool,
    closed: bool,
    /// The thread has written everything and ended.
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    ended: Condvar,
}

impl Shared {
    /// Queues one whole line, or drops it.
    fn push(&self, line: &[u8], urgent: bool) {
        let mut state = self.state.lock();
        if state.closed || state.waiting.len() + line.len() > ROOM {
            state.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line);
        let wake = std::mem::take(&mut state.idle) || (urgent && !state.urgent);
        state.urgent |= urgent;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Waits for lines and takes them all; returns how many were dropped. `None` at the end.
    fn take(&self, into: &mut Vec<u8>) -> Option<u64> {
        into.clear();
        into.shrink_to(KEPT);
        let mut state = self.state.lock();
        while state.waiting.is_empty() && !state.closed {
            state.idle = true;
            self.wake.wait(&mut state);
        }
        state.idle = false;
        let until = Instant::now() + GATHER;
        while !state.urgent && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.wake.wait_for(&mut state, left);
        }
        if state.waiting.is_empty() && state.dropped == 0 && state.closed {
            return None;
        }
        state.urgent = false;
        std::mem::swap(&mut state.waiting, into);
        Some(std::mem::take(&mut state.dropped))
    }
}

/// Destination of log lines; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Lines(Arc<Shared>);

/// Writes the last lines when dropped.
#[derive(Debug)]
#[must_use = "the last lines are written when it is dropped"]
pub struct Flushed {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    /// Starts the thread that writes to `out`.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Flushed)> {
        let shared = Arc::new(Shared::default());
        let writing = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("log-lines".to_owned()).spawn(move || write(&writing, out))?;
        Ok((Self(Arc::clone(&shared)), Flushed { shared, thread: Some(thread) }))
    }
}

fn write(shared: &Shared, mut out: impl Write) {
    let mut lines = Vec::new();
    while let Some(dropped) = shared.take(&mut lines) {
        // The reader is gone, and there is no other place for a message.
        let _ = out.write_all(&lines);
        if dropped > 0 {
            let _ = writeln!(out, "{dropped} log lines were dropped here: their reader does not keep up");
        }
        let _ = out.flush();
    }
    shared.state.lock().ended = true;
    shared.ended.notify_all();
}

impl Drop for Flushed {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        self.shared.wake.notify_one();
        let until = Instant::now() + END;
        while !state.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.shared.ended.wait_for(&mut state, left);
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            // The thread has ended, and writing bytes does not panic.
            let _ = thread.join();
        }
    }
}

/// Writer of one line: the formatting layer passes each line as a whole.
#[derive(Debug)]
pub(super) struct Line<'a> {
    lines: &'a Lines,
    urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.0.push(line, self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, urgent: false }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { lines: self, urgent: *meta.level() == Level::ERROR }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A slow reader: each write waits for a permit from the test.
    struct Slow {
        permits: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a sender every write succeeds.
            let _ = self.permits.recv();
            self.written.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>, Slow) {
        let (permit, permits) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        (permit, Arc::clone(&written), Slow { permits, written })
    }

    #[test]
    fn lines_come_whole_in_order_and_all_at_the_end() {
        let (permit, written, out) = slow();
        drop(permit);
        let (lines, flushed) = Lines::start(out).unwrap();
        let mut expected = Vec::new();
        for number in 0..10_000 {
            let line = format!("line {number}\n");
            lines.make_writer().write_all(line.as_bytes()).unwrap();
            expected.extend_from_slice(line.as_bytes());
        }
        drop(flushed);
        assert!(*written.lock() == expected);
        lines.make_writer().write_all(b"late\n").unwrap();
        assert!(*written.lock() == expected, "after the end nothing is written");
    }

    #[test]
    fn hanging_reader_blocks_no_writer_and_dropped_lines_are_counted() {
        let (permit, written, out) = slow();
        let (lines, flushed) = Lines::start(out).unwrap();
        let line = [b'x'; 1 << 16];
        let before = dropped();
        let sent = 3 * ROOM / line.len();
        for _ in 0..sent {
            lines.make_writer().write_all(&line).unwrap();
        }
        let lost = dropped() - before;
        assert!(lost >= u64::try_from(ROOM / line.len()).unwrap(), "{lost}");
        drop(permit);
        drop(flushed);
        let written = String::from_utf8(written.lock().clone()).unwrap();
        let kept = written.matches('x').count() / line.len();
        assert!(u64::try_from(kept).unwrap() + lost >= u64::try_from(sent).unwrap(), "{kept} + {lost} of {sent}");
        assert!(written.contains("log lines were dropped here"));
    }

    #[test]
    fn an_error_is_written_at_once_and_others_soon() {
        let (permit, written, out) = slow();
        drop(permit);
        let (lines, _flushed) = Lines::start(out).unwrap();
        for urgent in [true, false] {
            let before = written.lock().len();
            lines.0.push(b"here\n", urgent);
            let start = Instant::now();
            while written.lock().len() == before {
                assert!(start.elapsed() < Duration::from_secs(10), "urgent: {urgent}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
