//! The bounded queue between a connection's reader and its session threads.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::lock;
use crate::protocol::Frame;

/// A frame that waits for a session.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) frame: Frame,
    /// When the last byte was read. The deadline is relative to it.
    pub(super) read_at: Instant,
    /// The daemon has cancelled the request.
    pub(super) cancelled: bool,
}

/// First in, first out. Closed when the connection ends.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    not_empty: Condvar,
    not_full: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Queued>,
    /// Number of threads waiting for a frame: a wake-up is a system call even if no thread waits.
    waiting: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), not_empty: Condvar::new(), not_full: Condvar::new(), limit }
    }

    /// Moves all frames into the queue, waiting for room; drops them if the queue is closed.
    ///
    /// One lock for all frames of a read, and fewer sleeps of the session threads: 3 % of a P-256 certificate's CPU
    /// time.
    pub(super) fn push_all(&self, frames: &mut Vec<Queued>) {
        let mut frames = frames.drain(..).peekable();
        while frames.peek().is_some() {
            let full = |state: &mut State| !state.closed && state.frames.len() >= self.limit;
            let mut state = self.not_full.wait_while(lock(&self.state), full).unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return;
            }
            let room = self.limit - state.frames.len();
            for frame in frames.by_ref().take(room) {
                state.frames.push_back(frame);
                self.wake_one(&state);
            }
        }
    }

    /// Returns a frame that its thread cannot serve; it is taken next by another thread.
    pub(super) fn put_back(&self, frame: Queued) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.frames.push_front(frame);
            self.wake_one(&state);
        }
    }

    fn wake_one(&self, state: &State) {
        if state.waiting > 0 {
            self.not_empty.notify_one();
        }
    }

    /// Takes the next frame, if any, and counts the remaining ones.
    pub(super) fn try_pop(&self) -> Option<(Queued, usize)> {
        self.take(&mut lock(&self.state))
    }

    /// Waits for the next frame, and counts the remaining ones; `None` if the queue is closed.
    pub(super) fn pop(&self) -> Option<(Queued, usize)> {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let empty = |state: &mut State| !state.closed && state.frames.is_empty();
        let mut state = self.not_empty.wait_while(state, empty).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        self.take(&mut state)
    }

    fn take(&self, state: &mut MutexGuard<'_, State>) -> Option<(Queued, usize)> {
        let full = state.frames.len() >= self.limit;
        let frame = state.frames.pop_front()?;
        if full {
            self.not_full.notify_one();
        }
        Some((frame, state.frames.len()))
    }

    /// Marks a request as cancelled unless a session has taken it.
    pub(super) fn cancel(&self, correlation: u64) {
        if let Some(frame) = lock(&self.state).frames.iter_mut().find(|queued| queued.frame.correlation == correlation)
        {
            frame.cancelled = true;
        }
    }

    /// Closes the queue: drops all frames, and wakes every thread.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.frames.clear();
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }

    /// Waits for a while; `true` if the queue was closed.
    pub(super) fn closes_within(&self, time: Duration) -> bool {
        let open = |state: &mut State| !state.closed;
        let (state, _) =
            self.not_full.wait_timeout_while(lock(&self.state), time, open).unwrap_or_else(PoisonError::into_inner);
        state.closed
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::protocol::Request;

    fn frame(correlation: u64) -> Queued {
        let mut bytes = Vec::new();
        Request::Ping.encode(correlation, &mut bytes).unwrap();
        let (frame, _) = Frame::split(&bytes).unwrap().unwrap();
        Queued { frame, read_at: Instant::now(), cancelled: false }
    }

    fn push(queue: &Queue, correlation: u64) {
        queue.push_all(&mut vec![frame(correlation)]);
    }

    fn correlation(queue: &Queue) -> Option<u64> {
        queue.pop().map(|(queued, _)| queued.frame.correlation)
    }

    #[test]
    fn cancelled_request_is_marked_and_keeps_its_place() {
        let queue = Queue::new(10);
        queue.push_all(&mut (1..=4).map(frame).collect());
        assert_eq!(queue.try_pop().map(|(queued, waiting)| (queued.frame.correlation, waiting)), Some((1, 3)));
        queue.cancel(1);
        queue.cancel(3);
        let rest =
            std::iter::from_fn(|| queue.try_pop()).map(|(queued, _)| (queued.frame.correlation, queued.cancelled));
        assert_eq!(rest.collect::<Vec<_>>(), [(2, false), (3, true), (4, false)]);
        push(&queue, 3);
        assert!(!queue.try_pop().unwrap().0.cancelled, "a cancellation is not remembered");
    }

    #[test]
    fn push_waits_for_room() {
        let queue = Queue::new(1);
        thread::scope(|scope| {
            let pushing = scope.spawn(|| queue.push_all(&mut (1..=3).map(frame).collect()));
            thread::sleep(Duration::from_millis(20));
            assert!(!pushing.is_finished());
            assert_eq!([(); 3].map(|()| correlation(&queue)), [Some(1), Some(2), Some(3)]);
        });
    }

    #[test]
    fn frame_put_back_is_taken_first() {
        let queue = Queue::new(1);
        push(&queue, 1);
        queue.put_back(frame(2));
        assert_eq!(correlation(&queue), Some(2));
    }

    #[test]
    fn closing_wakes_all_threads() {
        let queue = Queue::new(1);
        thread::scope(|scope| {
            let popping: Vec<_> = (0..3).map(|_| scope.spawn(|| queue.pop().is_none())).collect();
            let resting = scope.spawn(|| queue.closes_within(Duration::from_secs(60)));
            thread::sleep(Duration::from_millis(20));
            queue.close();
            assert!(popping.into_iter().all(|thread| thread.join().unwrap()) && resting.join().unwrap());
        });
        push(&queue, 1);
        assert!(queue.pop().is_none());
    }
}
