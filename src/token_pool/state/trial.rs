//! The one real request that closes a half-open token's breaker: which one it is, and that it costs its caller nothing.
//!
//! Where another token serves, the first request with time enough goes to the token on trial, however few requests come;
//! when that token does not answer soon, another one takes the request over. Its late signature is verified here, since
//! nobody else waits for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{counters::count, health::Phase, job::Job, token::Token},
    Inner, Shared,
};
use pki::Tbs;
use token_host::protocol::Reply;

/// How long a half-open breaker waits for the verdict on the request that it let through.
const TRIAL_LIMIT: Duration = Duration::from_secs(2);

/// How long a request on trial may take before another token takes it over, at most.
const TAKE_OVER: Duration = Duration::from_millis(500);

/// What part of a request's time its trial may take, as a divisor.
const SHARE: u32 = 3;

/// How much time a request must have to be put on trial while another token would have it signed for sure.
const ROOM: Duration = Duration::from_millis(600);

/// Whose turn it is among the tokens that may have a request; the first of the order first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// On trial, with another token at hand.
    Trial,
    /// As any other.
    Usual,
    /// On trial, and the request has no time for that.
    Spare,
}

impl Inner {
    /// In which order a request is offered to the tokens that may have it: the token on trial first, then by work in
    /// flight.
    pub(super) fn rank(&self, at: usize, job: &Job, now: Instant) -> (Turn, usize) {
        let Some(token) = self.tokens.get(at) else { return (Turn::Spare, usize::MAX) };
        let turn = match token.phase {
            Phase::HalfOpen if job.is_real() && others_serve(&self.tokens, at, job) => {
                if job.left(now) >= ROOM {
                    Turn::Trial
                } else {
                    Turn::Spare
                }
            }
            Phase::Down | Phase::HalfOpen | Phase::PinRefused | Phase::Probing | Phase::Serving | Phase::Starting => {
                Turn::Usual
            }
        };
        (turn, token.in_flight())
    }
}

/// Whether a token besides this one serves such a request.
pub(super) fn others_serve(tokens: &[Token], at: usize, job: &Job) -> bool {
    tokens.iter().enumerate().any(|(other, token)| other != at && token.serves(job))
}

impl Shared {
    /// Takes requests over from tokens that do not answer on trial, and gives up on a verdict that never comes.
    pub(super) fn tend_trials(&self, inner: &mut Inner, now: Instant) {
        let mut changing = false;
        for at in 0..inner.tokens.len() {
            let serving = inner.tokens.iter().any(|token| token.phase == Phase::Serving);
            let overdue = inner.trial_is_overdue(at, now);
            let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { continue };
            changing |= token.waits_for_readiness();
            if overdue && let Some(mut job) = token.hand_over_trial() {
                tracing::info!(token = &*token.name, "its request on trial goes to another token");
                // However often it was tried: this is no failure.
                let _tries_left = job.may_try_again(&fixed.name);
                count(&fixed.counters.retried);
                inner.queues.put_back(job);
                self.pump_all(inner);
            } else {
                // One that was taken over keeps its token from the next trial until it is answered, unless there is no
                // other token any more.
                let given_up = |since| now.saturating_duration_since(since) > TRIAL_LIMIT;
                token.trial.take_if(|trial| given_up(trial.since) && !(trial.taken_over && serving));
            }
        }
        if changing {
            self.publish(inner);
        }
    }

    /// Takes the signature for a request that another token has done meanwhile, or whose caller is gone.
    pub(super) fn proven_late(&self, inner: &mut Inner, at: usize, tbs: &Tbs, signature: &[u8], session: u32) {
        let Some(fixed) = self.fixed.get(at) else { return };
        count(&fixed.counters.signed);
        let key = tbs.issuer().public_key();
        let verified = key.verify(key.signature_algorithm(), tbs.der(), signature).is_ok();
        if !verified {
            count(&fixed.counters.wrong);
        }
        self.judge(inner, at, session, verified);
    }

    /// Takes what a host answers to a request that was taken over.
    pub(super) fn answered_late(&self, inner: &mut Inner, at: usize, correlation: u64, tbs: &Arc<Tbs>, reply: Reply) {
        match reply {
            Reply::Signed { session, signature } => self.proven_late(inner, at, tbs, &signature, session),
            Reply::Fault(fault) => self.failed(inner, at, &fault, Some(tbs.issuer().public_key().fingerprint())),
            Reply::Expired | Reply::Opened | Reply::Refused { .. } | Reply::Status(_) => {}
        }
        if let Some(token) = inner.tokens.get_mut(at) {
            token.trial.take_if(|trial| trial.correlation == correlation);
        }
    }
}

impl Inner {
    /// Whether a token on trial has had its time, and another one can do the request.
    fn trial_is_overdue(&self, at: usize, now: Instant) -> bool {
        let Some((trial, job)) = self.tokens.get(at).and_then(Token::on_trial) else { return false };
        let limit = (job.left(trial.since) / SHARE).min(TAKE_OVER);
        now.saturating_duration_since(trial.since) >= limit
            && !job.is_abandoned()
            && others_serve(&self.tokens, at, job)
    }
}
