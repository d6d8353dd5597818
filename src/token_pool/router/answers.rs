//! Effects of a host's replies, and of the verdicts on its signatures.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    super::{
        breaker::{Action, Event},
        counters::count,
        health::Phase,
        job::Job,
        token::{Locked, Pending, Token},
    },
    Router,
};
use crate::signer::{SignError, Signed, Source};
use token_host::protocol::{Fault, Fingerprint, ProtocolError, Recovery, Reply};

/// A locked token, and what follows for the others once it is unlocked.
pub(super) struct Turn<'a> {
    pub(super) router: &'a Router,
    pub(super) token: &'a Token,
    pub(super) state: Locked<'a>,
    /// The health has changed.
    publish: bool,
    /// Requests were put back, or wait for what the token has become.
    pump_all: bool,
}

impl Router {
    /// Locks a token.
    pub(super) fn turn<'a>(&'a self, token: &'a Token) -> Turn<'a> {
        Turn { router: self, token, state: token.lock(), publish: false, pump_all: false }
    }

    /// Processes the replies of one read from a host.
    pub(in super::super) fn answered(
        &self,
        token: &Token,
        host: u64,
        replies: impl Iterator<Item = (u64, Reply)>,
    ) -> Result<(), ProtocolError> {
        let mut turn = self.turn(token);
        if turn.state.host != host {
            return Ok(());
        }
        let now = Instant::now();
        let mut replies = replies;
        let result = replies.try_for_each(|(correlation, reply)| turn.answered(correlation, reply, now));
        self.pump(token, &mut turn.state, now);
        turn.end();
        result
    }

    /// As [`Signer::verdict`](crate::signer::Signer::verdict).
    pub(in super::super) fn verdict(&self, source: &Source, verified: bool) {
        let Some(token) = self.token(&source.token) else { return };
        if !verified {
            count(&token.counters.wrong);
        }
        let mut turn = self.turn(token);
        if turn.state.host == source.host {
            turn.judge(source.session, verified);
        }
        turn.end();
    }
}

impl Turn<'_> {
    /// Unlocks the token, and does what follows.
    pub(super) fn end(self) {
        let Self { router, token: _, state, publish, pump_all } = self;
        drop(state);
        if publish {
            router.publish();
        }
        if pump_all {
            router.pump_all();
        }
    }

    /// Has the health published, and requests distributed.
    pub(super) fn changed(&mut self) {
        (self.publish, self.pump_all) = (true, true);
    }

    /// Puts a request back to the front of its queue.
    pub(super) fn put_back(&mut self, job: Job) {
        self.router.put_back(job);
        self.pump_all = true;
    }

    fn answered(&mut self, correlation: u64, reply: Reply, now: Instant) -> Result<(), ProtocolError> {
        let state = &mut self.state;
        state.last_reply_at = now;
        match state.outstanding.remove(&correlation) {
            None if correlation == 0
                && let Reply::Status(status) = reply =>
            {
                state.final_report(*status);
            }
            None => tracing::warn!(token = &*self.token.name, correlation, "unexpected answer from the token host"),
            Some(Pending::Control(answer)) => {
                // There is no receiver if a ping was sent without waiting for its reply.
                if let Err(Reply::Status(status)) = answer.send(reply) {
                    state.reported(*status);
                }
            }
            Some(Pending::TakenOver(message)) => self.answered_late(correlation, &message, reply),
            Some(Pending::Job { job, sent, .. }) => {
                return self.finish(correlation, *job, reply, now.saturating_duration_since(sent));
            }
        }
        Ok(())
    }

    fn finish(&mut self, correlation: u64, mut job: Job, reply: Reply, took: Duration) -> Result<(), ProtocolError> {
        let (router, token, state) = (self.router, self.token, &mut self.state);
        let counters = &token.counters;
        state.jobs = state.jobs.saturating_sub(1);
        let delivered = match reply {
            Reply::Signed { session, signature } => {
                state.breaker.signed();
                let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                counters.busy_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
                let source = Source { token: Arc::clone(&token.name), host: state.host, session };
                match job.recorded() {
                    Some(message) if job.is_abandoned() && state.phase() == Phase::HalfOpen => {
                        self.verify_late(message, &signature, session);
                        false
                    }
                    Some(_) | None => {
                        count(&counters.signed);
                        job.answer(Ok(Signed { signature, source }))
                    }
                }
            }
            Reply::Refused { reason, limit } => {
                count(if limit { &counters.limited } else { &counters.refused });
                let on_trial = state.phase() == Phase::HalfOpen;
                // The limits of a host on trial may differ from those of the others, which decide; and another host may
                // have some of its number of certificates left.
                if (on_trial || limit) && router.others_serve(token, &job) && job.may_try_again(&token.name) {
                    count(&counters.retried);
                    self.put_back(job);
                } else {
                    job.answer(Err(if limit { SignError::Limit(reason) } else { SignError::Refused(reason) }));
                }
                false
            }
            Reply::Expired => {
                count(&counters.expired);
                job.answer(Err(SignError::Deadline));
                false
            }
            Reply::Fault(fault) => {
                self.failed(&fault, job.is_real().then_some(job.key));
                if job.may_try_again(&token.name) {
                    count(&counters.retried);
                    self.put_back(job);
                } else {
                    job.answer(Err(SignError::Unavailable(fault.text)));
                }
                false
            }
            Reply::Opened { .. } | Reply::Status(_) => {
                return Err(ProtocolError::Malformed("answer to a message to be signed"));
            }
        };
        if !delivered {
            self.state.end_trial_of(correlation);
        }
        Ok(())
    }

    /// Applies a failed signature, by the CA key with that fingerprint or by another key, to its token.
    pub(super) fn failed(&mut self, fault: &Fault, ca_key: Option<Fingerprint>) {
        let Self { token, state, .. } = self;
        count(&token.counters.faults);
        if ca_key.is_none() && fault.recovery == Recovery::RejectRequest {
            // The host's session and the CA's key are there: only the log key or the canary key fails.
            tracing::warn!(token = &*token.name, code = fault.code, reason = fault.text, "no checkpoint was signed");
            return;
        }
        tracing::warn!(
            token = &*token.name,
            code = fault.code,
            function = fault.function,
            reason = fault.text,
            "the token did not sign"
        );
        let event = state.breaker.fault(fault.recovery, ca_key.is_some());
        if state.apply(event, &fault.text).contains(&Action::ForgetKey)
            && let Some(key) = ca_key
        {
            state.lost(&key);
        }
        token.supervisor.notify_one();
        self.publish = true;
    }

    /// Applies the verdict on a signature of a token's current host.
    pub(super) fn judge(&mut self, session: u32, verified: bool) {
        let Self { token, state, .. } = self;
        let before = state.phase();
        let event = state.breaker.verdict(verified);
        let reason = if verified { "" } else { "it makes signatures that do not verify" };
        if state.apply(event, reason).contains(&Action::DropSession) {
            if before == Phase::HalfOpen {
                // The first signature after a failure: perhaps the host took another key for the CA's.
                state.found.clear();
            }
            state.discard(session);
        }
        if event == Event::SignatureVerified && before == Phase::HalfOpen {
            tracing::info!(token = &*token.name, "the token is back in service: its signature verifies");
            self.changed();
        } else {
            self.publish |= before != state.phase();
        }
    }
}
