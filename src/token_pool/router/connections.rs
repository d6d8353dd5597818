//! What the supervisors report about their hosts: connections, probes, keys.

use super::{
    super::{
        breaker::Event,
        counters::count,
        supervisor::Probe,
        token::{FoundKey, Handle, Token, TokenId},
    },
    Inner, Router,
};
use crate::signer::SignError;
use token_host::protocol::{Fingerprint, Status};

impl Router {
    /// A connection to a host was established; returns the host's number.
    pub(in super::super) fn connected(&self, id: TokenId) -> u64 {
        let mut inner = self.lock();
        let host = inner.tokens[id].connected();
        self.publish(&inner);
        host
    }

    /// A host has reported its status.
    pub(in super::super) fn reported(&self, id: TokenId, status: Status) {
        let mut inner = self.lock();
        inner.tokens[id].reported(status);
        self.publish(&inner);
    }

    /// A host is gone: its requests are retried at another token or wait.
    pub(in super::super) fn disconnected(&self, id: TokenId, event: Event, reason: &str) {
        let mut inner = self.lock();
        let Inner { tokens, queues, .. } = &mut *inner;
        let token = &mut tokens[id];
        for mut job in token.disconnected(event, reason) {
            if job.may_try_again(token.name()) {
                count(&token.handle.counters.retried);
                queues.put_back(job);
            } else {
                job.answer(Err(SignError::Unavailable(reason.to_owned())));
            }
        }
        self.publish(&inner);
        inner.pump_all();
    }

    /// A probe has passed or failed.
    pub(in super::super) fn probed(&self, id: TokenId, passed: Option<Probe>) {
        let mut inner = self.lock();
        if let Some(probe) = passed {
            let token = &mut inner.tokens[id];
            let reason = match probe {
                _ if token.handle.log_only => "",
                Probe::Canary => "the canary key signs; waiting for a real request to be signed",
                Probe::Session => "the session answers; waiting for a real request to be signed",
            };
            token.apply(Event::ProbePassed, reason);
            self.publish(&inner);
            inner.pump_all();
        } else {
            inner.tokens[id].apply(Event::ProbeFailed, "");
        }
    }

    /// A signature by a canary key verified.
    pub(in super::super) fn canary_verified(&self, id: TokenId, key: Vec<u8>) {
        self.lock().tokens[id].verified_canary = key;
    }

    /// A key was found in a token, or is missing.
    pub(in super::super) fn opened(&self, id: TokenId, host: u64, key: Fingerprint, found: Option<FoundKey>) {
        let mut inner = self.lock();
        let token = &mut inner.tokens[id];
        if token.host == host {
            match found {
                Some(found) => {
                    if token.found.get(&key).is_none_or(|before| before.how != found.how) {
                        tracing::info!(token = &**token.name(), key = found.how, "the CA's key is in the token");
                    }
                    token.opened.insert(key);
                    token.found.insert(key, found);
                }
                None => token.lost(&key),
            }
        }
        self.publish(&inner);
        inner.pump_all();
    }

    /// Remembers a key that each token must hold.
    pub(in super::super) fn want(&self, key: Fingerprint) {
        let mut inner = self.lock();
        if !inner.keys.contains(&key) {
            inner.keys.push(key);
        }
    }

    pub(in super::super) fn forget(&self, key: &Fingerprint) {
        self.lock().keys.retain(|wanted| wanted != key);
    }

    /// What the host that found a key in a token said of it; empty if none has.
    pub(in super::super) fn known(&self, id: TokenId, key: &Fingerprint) -> Vec<u8> {
        self.lock().tokens[id].found.get(key).map(|found| found.known.clone()).unwrap_or_default()
    }

    /// The wanted keys that a token does not hold.
    pub(in super::super) fn missing_keys(&self, id: TokenId) -> Vec<Fingerprint> {
        let inner = self.lock();
        if inner.tokens[id].handle.log_only {
            return Vec::new();
        }
        let opened = &inner.tokens[id].opened;
        inner.keys.iter().filter(|key| !opened.contains(*key)).copied().collect()
    }

    /// Reads from a token's state.
    pub(in super::super) fn view<T>(&self, handle: &Handle, look: impl FnOnce(&Token) -> T) -> T {
        look(&self.lock().tokens[handle.id])
    }
}
