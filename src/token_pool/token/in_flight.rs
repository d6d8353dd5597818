//! What is in flight to a token's host: frames to be written, and requests that await an answer.

use std::time::Instant;

use tokio::sync::oneshot;

use super::{
    super::{health::Phase, job::Job},
    Token,
};
use crate::signer::ToBeSigned;
use token_host::protocol::{ProtocolError, Reply, Request};

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

impl Token {
    fn next_correlation(&mut self, now: Instant) -> u64 {
        if self.outstanding.is_empty() {
            self.last_reply_at = now;
        }
        self.correlation += 1;
        self.correlation
    }

    pub(in super::super) fn send_job(&mut self, job: Job, now: Instant) -> Result<(), (Box<Job>, ProtocolError)> {
        let correlation = self.next_correlation(now);
        if let Err(error) = Request::Sign(job.sign(now)).encode(correlation, &mut self.outbox) {
            return Err((Box::new(job), error));
        }
        if self.phase() == Phase::HalfOpen && job.is_real() {
            self.trial = Some(Trial { correlation, since: now, taken_over: false });
        }
        self.jobs += 1;
        self.outstanding.insert(correlation, Pending::Job { job: Box::new(job), sent: now, cancelled: false });
        Ok(())
    }

    pub(in super::super) fn send_control(
        &mut self,
        request: &Request<'_>,
        answer: oneshot::Sender<Reply>,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let correlation = self.next_correlation(now);
        request.encode(correlation, &mut self.outbox)?;
        self.outstanding.insert(correlation, Pending::Control(answer));
        Ok(())
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

    /// Cancels abandoned requests at the host; returns whether there were any. The request on trial is not cancelled:
    /// its signature decides about the token.
    pub(in super::super) fn cancel_abandoned(&mut self) -> bool {
        let trial = self.trial.as_ref().map(|trial| trial.correlation);
        let before = self.outbox.len();
        if self.status.cancels && self.connected {
            for (correlation, pending) in &mut self.outstanding {
                let Pending::Job { job, cancelled: cancelled @ false, .. } = pending else { continue };
                if job.is_abandoned() && trial != Some(*correlation) {
                    *cancelled = true;
                    // Has a fixed size, far below the limit.
                    let _ = Request::Cancel { correlation: *correlation }.encode(0, &mut self.outbox);
                }
            }
        }
        self.outbox.len() > before
    }

    /// Makes the host close a session.
    pub(in super::super) fn discard(&mut self, session: u32) {
        // Has a fixed size, far below the limit; the host does not reply to it.
        let _ = Request::Discard { session }.encode(0, &mut self.outbox);
    }
}
