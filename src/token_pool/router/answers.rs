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
        token::{Pending, TokenId},
    },
    Inner, Router,
};
use crate::signer::{SignError, Signed, Source};
use token_host::protocol::{Fault, Fingerprint, ProtocolError, Recovery, Reply};

impl Router {
    /// Processes the replies of one read from a host.
    pub(in super::super) fn answered(
        &self,
        id: TokenId,
        host: u64,
        replies: impl Iterator<Item = (u64, Reply)>,
    ) -> Result<(), ProtocolError> {
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.tokens[id].host != host {
            return Ok(());
        }
        for (correlation, reply) in replies {
            let token = &mut inner.tokens[id];
            token.last_reply_at = now;
            match token.outstanding.remove(&correlation) {
                None if correlation == 0
                    && let Reply::Status(status) = reply =>
                {
                    token.final_report(*status);
                }
                None => tracing::warn!(token = &**token.name(), correlation, "unexpected answer from the token host"),
                Some(Pending::Control(answer)) => {
                    // There is no receiver if a ping was sent without waiting for its reply.
                    if let Err(Reply::Status(status)) = answer.send(reply) {
                        token.reported(*status);
                    }
                }
                Some(Pending::TakenOver(message)) => {
                    self.answered_late(&mut inner, id, correlation, &message, reply);
                }
                Some(Pending::Job { job, sent, .. }) => {
                    self.finish(&mut inner, id, correlation, *job, reply, now.saturating_duration_since(sent))?;
                }
            }
        }
        inner.pump(id, now);
        Ok(())
    }

    fn finish(
        &self,
        inner: &mut Inner,
        id: TokenId,
        correlation: u64,
        mut job: Job,
        reply: Reply,
        took: Duration,
    ) -> Result<(), ProtocolError> {
        let token = &mut inner.tokens[id];
        let handle = Arc::clone(&token.handle);
        let counters = &handle.counters;
        token.jobs = token.jobs.saturating_sub(1);
        let delivered = match reply {
            Reply::Signed { session, signature } => {
                token.breaker.signed();
                let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                counters.busy_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
                let source = Source { token: Arc::clone(token.name()), host: token.host, session };
                match job.recorded() {
                    Some(message) if job.is_abandoned() && token.phase() == Phase::HalfOpen => {
                        self.verify_late(inner, id, message, &signature, session);
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
                let on_trial = token.phase() == Phase::HalfOpen;
                // The limits of a host on trial may differ from those of the others, which decide; and another host may
                // have some of its number of certificates left.
                if (on_trial || limit) && inner.tokens.others_serve(id, &job) && job.may_try_again(&handle.name) {
                    count(&counters.retried);
                    inner.queues.put_back(job);
                    inner.pump_all();
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
                self.failed(inner, id, &fault, job.is_real().then_some(job.key));
                if job.may_try_again(&handle.name) {
                    count(&counters.retried);
                    inner.queues.put_back(job);
                } else {
                    job.answer(Err(SignError::Unavailable(fault.text)));
                }
                inner.pump_all();
                false
            }
            Reply::Opened { .. } | Reply::Status(_) => {
                return Err(ProtocolError::Malformed("answer to a message to be signed"));
            }
        };
        if !delivered {
            inner.tokens[id].end_trial_of(correlation);
        }
        Ok(())
    }

    /// Applies a failed signature, by the CA key with that fingerprint or by another key, to its token.
    pub(super) fn failed(&self, inner: &mut Inner, id: TokenId, fault: &Fault, ca_key: Option<Fingerprint>) {
        let token = &mut inner.tokens[id];
        count(&token.handle.counters.faults);
        if ca_key.is_none() && fault.recovery == Recovery::RejectRequest {
            // The host's session and the CA's key are there: only the log key or the canary key fails.
            tracing::warn!(token = &**token.name(), code = fault.code, reason = fault.text, "no checkpoint was signed");
            return;
        }
        tracing::warn!(
            token = &**token.name(),
            code = fault.code,
            function = fault.function,
            reason = fault.text,
            "the token did not sign"
        );
        let event = token.breaker.fault(fault.recovery, ca_key.is_some());
        if token.apply(event, &fault.text).contains(&Action::ForgetKey)
            && let Some(key) = ca_key
        {
            token.lost(&key);
        }
        token.handle.supervisor.notify_one();
        self.publish(inner);
    }

    /// As [`Signer::verdict`](crate::signer::Signer::verdict).
    pub(in super::super) fn verdict(&self, source: &Source, verified: bool) {
        let mut inner = self.lock();
        let Some(token) = inner.tokens.iter().find(|token| *token.name() == source.token) else { return };
        if !verified {
            count(&token.handle.counters.wrong);
        }
        if token.host == source.host {
            let id = token.handle.id;
            self.judge(&mut inner, id, source.session, verified);
        }
    }

    /// Applies the verdict on a signature of a token's current host.
    pub(super) fn judge(&self, inner: &mut Inner, id: TokenId, session: u32, verified: bool) {
        let token = &mut inner.tokens[id];
        let before = token.phase();
        let event = token.breaker.verdict(verified);
        let reason = if verified { "" } else { "it makes signatures that do not verify" };
        if token.apply(event, reason).contains(&Action::DropSession) {
            if before == Phase::HalfOpen {
                // The first signature after a failure: perhaps the host took another key for the CA's.
                token.found.clear();
            }
            token.discard(session);
            token.handle.writer.notify_one();
        }
        if event == Event::SignatureVerified && before == Phase::HalfOpen {
            tracing::info!(token = &**token.name(), "the token is back in service: its signature verifies");
            self.publish(inner);
            inner.pump_all();
        } else if before != token.phase() {
            self.publish(inner);
        }
    }
}
