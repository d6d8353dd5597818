//! What the supervisors tell of the hosts, and ask: connections that begin and end, probes that pass, keys that are found.

use std::sync::atomic::Ordering;

use super::{
    super::{counters::count, health::Phase, token::Token},
    Shared,
};
use crate::signer::SignError;
use token_host::protocol::{Fingerprint, Status};

impl Shared {
    /// A connection to a host begins; answers its number.
    pub(in super::super) fn link_up(&self, at: usize) -> u64 {
        let mut inner = self.lock();
        let host = inner.tokens.get_mut(at).map(Token::link_up).unwrap_or_default();
        self.publish(&inner);
        host
    }

    /// A host has told that it is ready.
    pub(in super::super) fn ready(&self, at: usize, status: Status) {
        let mut inner = self.lock();
        if let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) {
            fixed.counters.told.fetch_add(token.ready(status), Ordering::Relaxed);
        }
        self.publish(&inner);
    }

    /// A host is gone: what it had in flight goes elsewhere or waits.
    pub(in super::super) fn link_down(&self, at: usize, phase: Phase, reason: &str) {
        let mut inner = self.lock();
        let (Some(token), Some(fixed)) = (inner.tokens.get_mut(at), self.fixed.get(at)) else { return };
        if token.phase.is_ready() {
            count(&fixed.counters.outages);
        }
        for mut job in token.link_down(phase, reason) {
            if job.may_try_again(&fixed.name) {
                count(&fixed.counters.retried);
                inner.queues.put_back(job);
            } else {
                job.answer(Err(SignError::Unavailable(reason.to_owned())));
            }
        }
        self.publish(&inner);
        self.pump_all(&mut inner);
    }

    /// A probe has passed: one real request may go through.
    pub(in super::super) fn half_open(&self, at: usize) {
        let mut inner = self.lock();
        if let Some(token) = inner.tokens.get_mut(at) {
            token.half_open();
        }
        self.publish(&inner);
        self.pump_all(&mut inner);
    }

    /// A key was found in a token, or no longer is.
    pub(in super::super) fn opened(&self, at: usize, host: u64, key: Fingerprint, found: bool) {
        let mut inner = self.lock();
        if let Some(token) = inner.tokens.get_mut(at).filter(|token| token.host == host) {
            if found {
                token.opened.insert(key);
            } else {
                token.opened.remove(&key);
            }
        }
        self.publish(&inner);
        self.pump_all(&mut inner);
    }

    /// Remembers a key that each token is to hold.
    pub(in super::super) fn want(&self, key: Fingerprint) {
        let mut inner = self.lock();
        if !inner.keys.contains(&key) {
            inner.keys.push(key);
        }
    }

    /// Forgets a key.
    pub(in super::super) fn forget(&self, key: &Fingerprint) {
        let mut inner = self.lock();
        inner.keys.retain(|wanted| wanted != key);
    }

    /// The keys that a token is to hold and does not.
    pub(in super::super) fn missing_keys(&self, at: usize) -> Vec<Fingerprint> {
        let inner = self.lock();
        let Some(token) = inner.tokens.get(at) else { return Vec::new() };
        inner.keys.iter().filter(|key| !token.opened.contains(*key)).copied().collect()
    }

    /// A look at a token.
    pub(in super::super) fn view<T>(&self, at: usize, look: impl FnOnce(&Token) -> T) -> Option<T> {
        self.lock().tokens.get(at).map(look)
    }
}
