//! What is in flight to a token's host: frames to be written, and requests that await an answer.

use std::{os::unix::net::UnixStream, sync::Arc, time::Instant};

use tokio::sync::oneshot;

use super::{
    super::{health::Phase, job::Job},
    State,
};
use crate::signer::{SignError, ToBeSigned};
use token_host::protocol::{Reply, Request};

/// An unanswered request.
#[derive(Debug)]
pub(in super::super) enum Pending {
    Control(oneshot::Sender<Reply>),
    /// A caller's request; `cancelled` once the host was notified that the caller is gone.
    Job {
        job: Box<Job>,
        sent: Instant,
        cancelled: bool,
    },
    /// Another token has taken the request over; this one's reply still shows whether it signs.
    TakenOver(ToBeSigned),
}

/// The one real request that a half-open breaker has let through.
#[derive(Debug)]
pub(in super::super) struct Trial {
    pub(in super::super) correlation: u64,
    pub(in super::super) since: Instant,
    /// Another token has taken the request over.
    pub(in super::super) taken_over: bool,
}

impl State {
    fn next_correlation(&mut self, now: Instant) -> u64 {
        if self.outstanding.is_empty() {
            self.last_reply_at = now;
        }
        self.correlation += 1;
        self.correlation
    }

    /// Sends frames to a host from now on.
    pub(in super::super) fn open_outbox(&mut self, socket: Arc<UnixStream>) {
        self.outbox.open(socket);
    }

    /// Moves the frames of the current host to its writer, which has written the earlier ones.
    pub(in super::super) fn take_outbox(&mut self, host: u64, into: &mut Vec<u8>) {
        into.clear();
        if self.host == host {
            self.outbox.take(into);
        }
    }

    /// Sends a request to the host, or answers it if it does not fit a frame.
    pub(in super::super) fn send_job(&mut self, job: Job, now: Instant) {
        let correlation = self.next_correlation(now);
        if let Err(error) = Request::Sign(job.sign(now)).encode(correlation, self.outbox.frames()) {
            job.answer(Err(SignError::Refused(error.to_string())));
            return;
        }
        if self.phase() == Phase::HalfOpen && job.is_real() {
            self.trial = Some(Trial { correlation, since: now, taken_over: false });
        }
        self.jobs += 1;
        self.outstanding.insert(correlation, Pending::Job { job: Box::new(job), sent: now, cancelled: false });
        self.flush();
    }

    /// Sends a request of the pool itself. `None` if that host is gone.
    pub(in super::super) fn call(&mut self, host: u64, request: &Request<'_>) -> Option<oneshot::Receiver<Reply>> {
        if self.host != host || !self.connected {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let correlation = self.next_correlation(Instant::now());
        request.encode(correlation, self.outbox.frames()).ok()?;
        self.outstanding.insert(correlation, Pending::Control(answer));
        self.flush();
        Some(answered)
    }

    /// Writes a request at once if it is the only one in flight. Otherwise its writer is woken, which collects what
    /// other tasks have to send.
    fn flush(&mut self) {
        if self.outstanding.len() != 1 || !self.outbox.write() {
            self.handle.writer.notify_one();
        }
    }

    /// The request on trial, while its caller waits for this token.
    pub(in super::super) fn on_trial(&self) -> Option<(&Trial, &Job)> {
        let trial = self.trial.as_ref()?;
        match self.outstanding.get(&trial.correlation)? {
            Pending::Job { job, .. } => Some((trial, job)),
            Pending::Control(_) | Pending::TakenOver(_) => None,
        }
    }

    /// Gives up the request on trial for another token to sign; the trial itself continues.
    pub(in super::super) fn hand_over_trial(&mut self) -> Option<Job> {
        let trial = self.trial.as_mut()?;
        let pending = self.outstanding.get_mut(&trial.correlation)?;
        let Pending::Job { job, .. } = pending else { return None };
        let taken_over = Pending::TakenOver(job.recorded()?.clone());
        let Pending::Job { job, .. } = std::mem::replace(pending, taken_over) else { return None };
        trial.taken_over = true;
        self.jobs = self.jobs.saturating_sub(1);
        Some(*job)
    }

    /// Cancels abandoned requests at the host. The request on trial is not cancelled: its signature decides about the
    /// token.
    pub(in super::super) fn cancel_abandoned(&mut self) {
        if !self.status.cancels || !self.connected {
            return;
        }
        let trial = self.trial.as_ref().map(|trial| trial.correlation);
        for (correlation, pending) in &mut self.outstanding {
            let Pending::Job { job, cancelled: cancelled @ false, .. } = pending else { continue };
            if job.is_abandoned() && trial != Some(*correlation) {
                *cancelled = true;
                // Has a fixed size, far below the limit.
                let _ = Request::Cancel { correlation: *correlation }.encode(0, self.outbox.frames());
                self.handle.writer.notify_one();
            }
        }
    }

    /// Makes the host close a session.
    pub(in super::super) fn discard(&mut self, session: u32) {
        // Has a fixed size, far below the limit; the host does not reply to it.
        let _ = Request::Discard { session }.encode(0, self.outbox.frames());
        self.handle.writer.notify_one();
    }
}
