//! The one real request that closes a half-open token's breaker, chosen so that a failure costs its caller nothing.
//!
//! If another token serves, the first request with enough time left goes to the token on trial. If that token does not
//! reply soon, another one takes the request over. The late signature is verified here, since no caller waits for it.

use std::time::{Duration, Instant};

use super::{
    super::{
        breaker::Event,
        counters::count,
        health::Phase,
        job::Job,
        token::{State, Token},
    },
    Router,
    answers::Turn,
};
use crate::signer::ToBeSigned;
use token_host::protocol::Reply;

/// How long a half-open breaker waits for the verdict on the request that it let through.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time before another token takes over a request on trial.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_millis(500);

/// The fraction of a request's remaining time that its trial may take, as a divisor.
const TAKE_OVER_SHARE: u32 = 3;

/// The time that a request must have left to be put on trial while another token serves.
const MIN_TRIAL_TIME: Duration = Duration::from_millis(600);

/// The preference among the tokens that may have a request, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Candidate {
    /// On trial, and another token can take the request over.
    Probe,
    Normal,
    /// On trial, and the request has no time for that.
    LastResort,
}

impl Router {
    /// The order in which a request is offered to tokens: by preference, then by work in flight.
    pub(super) fn rank(&self, token: &Token, job: &Job, now: Instant) -> (Candidate, usize) {
        let on_trial = token.phase() == Phase::HalfOpen && job.is_real() && self.others_serve(token, job);
        let candidate = match on_trial {
            false => Candidate::Normal,
            true if job.left(now) >= MIN_TRIAL_TIME => Candidate::Probe,
            true => Candidate::LastResort,
        };
        (candidate, token.in_flight())
    }

    /// Takes overdue requests over from tokens on trial, and ends trials without a verdict.
    pub(super) fn tend_trials(&self, now: Instant) {
        let mut changing = false;
        for token in &self.tokens {
            let serving = self.tokens.iter().any(|token| token.phase() == Phase::Serving);
            let mut turn = self.turn(token);
            changing |= turn.state.waits_for_readiness();
            if self.trial_is_overdue(token, &turn.state, now)
                && let Some(mut job) = turn.state.hand_over_trial()
            {
                tracing::info!(token = &*token.name, "another token takes over the request on trial");
                // Being taken over is not a failure, so the limit of attempts does not apply.
                let _tries_left = job.may_try_again(&token.name);
                count(&token.counters.retried);
                turn.put_back(job);
            } else {
                // A request that was taken over keeps its token from the next trial until it is answered, unless no
                // other token is left.
                let ended = turn.state.trial.as_ref().is_some_and(|trial| {
                    now.saturating_duration_since(trial.since) > VERDICT_TIMEOUT && !(trial.taken_over && serving)
                });
                if ended {
                    turn.state.apply(Event::TrialEnded, "");
                }
            }
            turn.end();
        }
        if changing {
            self.publish();
        }
    }

    /// Whether a token on trial has used up its time for a request that another token can take over.
    fn trial_is_overdue(&self, token: &Token, state: &State, now: Instant) -> bool {
        let Some((trial, job)) = state.on_trial() else { return false };
        let limit = (job.left(trial.since) / TAKE_OVER_SHARE).min(TAKE_OVER_TIMEOUT);
        now.saturating_duration_since(trial.since) >= limit && !job.is_abandoned() && self.others_serve(token, job)
    }
}

impl State {
    /// Ends the trial if this request is on trial.
    pub(super) fn end_trial_of(&mut self, correlation: u64) {
        if self.trial.as_ref().is_some_and(|trial| trial.correlation == correlation) {
            self.apply(Event::TrialEnded, "");
        }
    }
}

impl Turn<'_> {
    /// Verifies a signature for a request that another token has taken over, or whose caller is gone.
    pub(super) fn verify_late(&mut self, message: &ToBeSigned, signature: &[u8], session: u32) {
        let counters = &self.token.counters;
        count(&counters.signed);
        let key = message.key();
        let verified = key.verify(key.signature_algorithm(), message.der(), signature).is_ok();
        if !verified {
            count(&counters.wrong);
        }
        self.judge(session, verified);
    }

    /// Processes a host's reply to a request that was taken over.
    pub(super) fn answered_late(&mut self, correlation: u64, message: &ToBeSigned, reply: Reply) {
        match reply {
            Reply::Signed { session, signature } => self.verify_late(message, &signature, session),
            Reply::Fault(fault) => self.failed(&fault, Some(message.key().fingerprint())),
            Reply::Expired | Reply::Opened { .. } | Reply::Refused { .. } | Reply::Status(_) => {}
        }
        self.state.end_trial_of(correlation);
    }
}
