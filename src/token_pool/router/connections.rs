//! What the supervisors report about their hosts: connections, probes, keys.

use super::{
    super::{
        breaker::Event,
        counters::count,
        supervisor::Probe,
        token::{FoundKey, Token},
    },
    Router, lock,
};
use crate::signer::SignError;
use token_host::protocol::{Fingerprint, Status};

impl Router {
    /// A connection to a host was established; returns the host's number.
    pub(in super::super) fn connected(&self, token: &Token) -> u64 {
        let host = token.lock().connected();
        self.publish();
        host
    }

    /// A host has reported its status.
    pub(in super::super) fn reported(&self, token: &Token, status: Status) {
        token.lock().reported(status);
        self.publish();
    }

    /// A host is gone: its requests are retried at another token or wait.
    pub(in super::super) fn disconnected(&self, token: &Token, event: Event, reason: &str) {
        let mut turn = self.turn(token);
        for mut job in turn.state.disconnected(event, reason) {
            if job.may_try_again(&token.name) {
                count(&token.counters.retried);
                turn.put_back(job);
            } else {
                job.answer(Err(SignError::Unavailable(reason.to_owned())));
            }
        }
        turn.changed();
        turn.end();
    }

    /// A probe has passed or failed.
    pub(in super::super) fn probed(&self, token: &Token, passed: Option<Probe>) {
        let mut turn = self.turn(token);
        if let Some(probe) = passed {
            let reason = match probe {
                _ if token.log_only => "",
                Probe::Canary => "the canary key signs; waiting for a real request to be signed",
                Probe::Session => "the session answers; waiting for a real request to be signed",
            };
            turn.state.apply(Event::ProbePassed, reason);
            turn.changed();
        } else {
            turn.state.apply(Event::ProbeFailed, "");
        }
        turn.end();
    }

    /// A key was found in a token, or is missing and why.
    pub(in super::super) fn opened(&self, token: &Token, host: u64, key: Fingerprint, found: Result<FoundKey, String>) {
        let mut turn = self.turn(token);
        let state = &mut turn.state;
        if state.host == host {
            match found {
                Ok(found) => {
                    if state.found.get(&key).is_none_or(|before| before.how != found.how) {
                        tracing::info!(token = &*token.name, key = found.how, "the CA's key is in the token");
                    }
                    state.opened.insert(key);
                    state.found.insert(key, found);
                    state.lacks.clear();
                }
                Err(reason) => {
                    state.lost(&key);
                    state.lacks = reason;
                }
            }
        }
        turn.changed();
        turn.end();
    }

    /// Remembers a key that each token must hold.
    pub(in super::super) fn want(&self, key: Fingerprint) {
        let mut keys = lock(&self.keys);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    pub(in super::super) fn forget(&self, key: &Fingerprint) {
        lock(&self.keys).retain(|wanted| wanted != key);
    }

    /// The wanted keys that a token does not hold.
    pub(in super::super) fn missing_keys(&self, token: &Token) -> Vec<Fingerprint> {
        if token.log_only {
            return Vec::new();
        }
        let state = token.lock();
        lock(&self.keys).iter().filter(|key| !state.opened.contains(*key)).copied().collect()
    }
}
