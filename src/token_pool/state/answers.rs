//! What a host's answers, and the verdicts on its signatures, do to its token's state.

use std::time::{Duration, Instant};

use super::{
    super::{
        counters::count,
        health::Phase,
        job::Job,
        token::{Pending, Token},
    },
    Inner, Shared,
    trial::others_serve,
};
use crate::signer::{SignError, Signed, Source};
use token_host::protocol::{Fault, FaultClass, Fingerprint, ProtocolError, Reply};

/// Wrong signatures in a row that take a token out of service; one is enough while it is half-open.
const WRONG_LIMIT: u32 = 3;

/// Requests in a row that the token cannot do, each for itself, after which it counts as failing.
const REQUEST_LIMIT: u32 = 4;

impl Shared {
    /// Takes the answers of one read from a host.
    pub(in super::super) fn answered(
        &self,
        at: usize,
        host: u64,
        replies: impl Iterator<Item = (u64, Reply)>,
    ) -> Result<(), ProtocolError> {
        let now = Instant::now();
        let mut inner = self.lock();
        for (correlation, reply) in replies {
            let Some(token) = inner.tokens.get_mut(at).filter(|token| token.host == host) else { return Ok(()) };
            token.progress = now;
            match token.outstanding.remove(&correlation) {
                None if correlation == 0
                    && let Reply::Status(status) = reply =>
                {
                    token.last_word(*status)
                }
                None => tracing::warn!(token = &*token.name, correlation, "the token host answers what nobody asked"),
                Some(Pending::Control(answer)) => {
                    // Whoever asked may have given up waiting, or never waited.
                    if let (Err(Reply::Status(status)), Some(fixed)) = (answer.send(reply), self.fixed.get(at)) {
                        let told = token.ready(*status);
                        fixed.counters.told.fetch_add(told, std::sync::atomic::Ordering::Relaxed);
                    }
                }
                Some(Pending::TakenOver(tbs)) => {
                    self.answered_late(&mut inner, at, correlation, &tbs, reply);
                }
                Some(Pending::Job { job, sent, .. }) => {
                    self.finish(&mut inner, at, correlation, *job, reply, now.saturating_duration_since(sent))?;
                }
            }
        }
        self.pump(&mut inner, at, now);
        Ok(())
    }

    fn finish(
        &self,
        inner: &mut Inner,
        at: usize,
        correlation: u64,
        mut job: Job,
        reply: Reply,
        took: Duration,
    ) -> Result<(), ProtocolError> {
        let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { return Ok(()) };
        let counters = &fixed.counters;
        token.jobs = token.jobs.saturating_sub(1);
        let delivered = match reply {
            Reply::Signed { session, signature } => {
                token.refusals = 0;
                let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                counters.busy_nanoseconds.fetch_add(nanoseconds, std::sync::atomic::Ordering::Relaxed);
                let source = Source { token: std::sync::Arc::clone(&token.name), host: token.host, session };
                match job.tbs() {
                    Some(tbs) if job.is_abandoned() && token.phase == Phase::HalfOpen => {
                        self.proven_late(inner, at, &std::sync::Arc::clone(tbs), &signature, session);
                        false
                    }
                    Some(_) | None => {
                        count(&counters.signed);
                        job.answer(Ok(Signed { signature, source }))
                    }
                }
            }
            Reply::Refused { reason } => {
                count(&counters.refused);
                let on_trial = token.phase == Phase::HalfOpen;
                // A host on trial may have rules that the others have not: they decide.
                if on_trial && others_serve(&inner.tokens, at, &job) && job.may_try_again(&fixed.name) {
                    count(&counters.retried);
                    inner.queues.put_back(job);
                    self.pump_all(inner);
                } else {
                    job.answer(Err(SignError::Refused(reason)));
                }
                false
            }
            Reply::Expired => {
                count(&counters.expired);
                job.answer(Err(SignError::Deadline));
                false
            }
            Reply::Fault(fault) => {
                self.failed(inner, at, &fault, job.is_real().then_some(job.key));
                if job.may_try_again(&fixed.name) {
                    count(&counters.retried);
                    inner.queues.put_back(job);
                } else {
                    job.answer(Err(SignError::Unavailable(fault.text)));
                }
                self.pump_all(inner);
                false
            }
            Reply::Opened | Reply::Status(_) => {
                return Err(ProtocolError::Malformed("answer to a message to be signed"));
            }
        };
        if let Some(token) = inner.tokens.get_mut(at) {
            token.trial.take_if(|trial| trial.correlation == correlation && !delivered);
        }
        Ok(())
    }

    /// What a failed signature, by a CA key of that number or another key, does to its token.
    pub(super) fn failed(&self, inner: &mut Inner, at: usize, fault: &Fault, ca_key: Option<Fingerprint>) {
        let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { return };
        count(&fixed.counters.faults);
        token.fault(fault, ca_key);
        if token.phase == Phase::Probing {
            count(&fixed.counters.outages);
        }
        fixed.supervisor.notify_one();
        self.publish(inner);
    }

    /// As [`Signer::verdict`](crate::signer::Signer::verdict).
    pub(in super::super) fn verdict(&self, source: &Source, verified: bool) {
        let mut inner = self.lock();
        let Some(at) = inner.tokens.iter().position(|token| token.name == source.token) else { return };
        let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { return };
        if !verified {
            count(&fixed.counters.wrong);
        }
        if token.host == source.host {
            self.judge(&mut inner, at, source.session, verified);
        }
    }

    /// Draws the conclusion from whether a signature of a token's present host verified.
    pub(super) fn judge(&self, inner: &mut Inner, at: usize, session: u32, verified: bool) {
        let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { return };
        match (verified, token.phase) {
            (true, Phase::HalfOpen) => {
                token.serve();
                tracing::info!(token = &*token.name, "the token signs, and its signature verifies");
                self.publish(inner);
                self.pump_all(inner);
            }
            (true, _) => token.wrong = 0,
            (false, phase) => {
                token.wrong += 1;
                token.discard(session);
                fixed.writer.notify_one();
                if phase == Phase::HalfOpen || token.wrong >= WRONG_LIMIT {
                    token.trip("it makes signatures that do not verify", true);
                    count(&fixed.counters.outages);
                    fixed.supervisor.notify_one();
                    self.publish(inner);
                }
            }
        }
    }
}

impl Token {
    /// What a failed signature means for its token.
    fn fault(&mut self, fault: &Fault, ca_key: Option<Fingerprint>) {
        tracing::warn!(
            token = &*self.name,
            code = fault.code,
            function = fault.function,
            reason = fault.text,
            "the token did not sign"
        );
        match fault.class {
            FaultClass::Key if let Some(key) = &ca_key => {
                self.opened.remove(key);
            }
            FaultClass::Request if self.phase == Phase::Serving && self.refusals < REQUEST_LIMIT => {
                self.refusals += 1;
            }
            FaultClass::Busy | FaultClass::Key | FaultClass::Login | FaultClass::Request | FaultClass::Session => {
                self.trip(&fault.text, false);
            }
            FaultClass::Module | FaultClass::Pin | FaultClass::Settings | FaultClass::Token => {
                self.trip(&fault.text, true);
            }
        }
    }
}
