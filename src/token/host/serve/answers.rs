//! What a host does for each kind of request, by its own rules, and what it answers.

use std::{
    sync::{Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Service, Taken, is_broken, lock};
use crate::{
    pki::PublicKey,
    token::{
        host::{policy, vault::Worker},
        protocol::{Fault, Fingerprint, Kind, Reply, Request, Sign},
    },
};

impl Service<'_> {
    pub(super) fn answer(
        &self,
        worker: &Mutex<Worker<'_>>,
        request: &Request<'_>,
        taken: Taken,
        now: Instant,
    ) -> Option<Reply> {
        Some(match request {
            // It was heeded when it was read.
            Request::Cancel { .. } => return None,
            Request::Discard { session } => {
                self.vault.discard(*session);
                return None;
            }
            Request::Hello { .. } => Reply::Refused { reason: "the hello was said already".to_owned() },
            Request::Open { key } => self.open(&mut lock(worker), key),
            Request::Ping => match self.exercise(worker) {
                Ok(()) => Reply::Status(Box::new(self.vault.status())),
                Err(fault) => Reply::Fault(fault),
            },
            Request::Sign(sign) => self.sign(&mut lock(worker), sign, taken, now),
        })
    }

    /// Exercises this thread's session, and each of the others' that was not used since the last time: tokens drop
    /// idle sessions one by one.
    fn exercise(&self, own: &Mutex<Worker<'_>>) -> Result<(), Fault> {
        lock(own).exercise()?;
        // Made or seen only since the start; a token that has none is asked at each keep-alive.
        if let Err(fault) = self.vault.look_for_own_keys() {
            tracing::warn!(reason = fault.text, "the host's own keys cannot be looked for");
        }
        for worker in &self.workers {
            // One that is held is at work; this thread's own has just been used.
            let Ok(mut worker) = worker.try_lock() else { continue };
            if worker.take_used() {
                continue;
            }
            // A session that fails was dropped, and its thread opens another; a module that fails concerns all.
            match worker.exercise() {
                Err(fault) if is_broken(&fault) => return Err(fault),
                _ => worker.take_used(),
            };
        }
        Ok(())
    }

    fn open(&self, worker: &mut Worker<'_>, key: &Fingerprint) -> Reply {
        // A bundle that is broken just now is no reason to give up a key that was known before.
        let read = self.vault.reread();
        let certificates = self.vault.certificates();
        match (certificates.iter().find(|ca| ca.fingerprint == *key), read) {
            (None, Err(fault)) => Reply::Fault(fault),
            (None, Ok(())) => {
                Reply::Refused { reason: "the host's own bundle holds no CA certificate with this key".to_owned() }
            }
            (Some(ca), _) => match worker.look_up(&ca.key) {
                Ok(()) => Reply::Opened,
                Err(fault) => Reply::Fault(fault),
            },
        }
    }

    fn sign(&self, worker: &mut Worker<'_>, sign: &Sign<'_>, taken: Taken, now: Instant) -> Reply {
        let counters = &self.vault.counters;
        let deadline = taken.read_at + Duration::from_millis(sign.deadline_ms.into());
        if taken.cancelled || now >= deadline {
            counters.expired.fetch_add(1, Ordering::Relaxed);
            return Reply::Expired;
        }
        let key = match self.permit(sign) {
            Ok(key) => key,
            Err(reason) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(request_id = sign.request_id, kind = ?sign.kind, reason, "not signed");
                return Reply::Refused { reason };
            }
        };
        let fingerprint = match sign.kind {
            Kind::Intermediate | Kind::Leaf => sign.key,
            Kind::Canary | Kind::Checkpoint => key.fingerprint(),
        };
        match worker.sign(sign.kind, &key, fingerprint, sign.message, deadline) {
            Ok(signature) => {
                self.vault.count_signed(fingerprint, sign.kind);
                tracing::debug!(request_id = sign.request_id, kind = ?sign.kind, "signed");
                Reply::Signed { session: signature.session, signature: signature.bytes }
            }
            Err(fault) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                Reply::Fault(fault)
            }
        }
    }

    /// The key that may sign this, by the host's own configuration.
    fn permit(&self, sign: &Sign<'_>) -> Result<PublicKey, String> {
        match sign.kind {
            Kind::Canary => {
                policy::canary(sign.message).map_err(|error| error.to_string())?;
                self.vault.canary_key().cloned().ok_or_else(|| "the token holds no canary key".to_owned())
            }
            Kind::Checkpoint => {
                policy::checkpoint(sign.message).map_err(|error| error.to_string())?;
                self.vault.log_key().cloned().ok_or_else(|| "the token holds no log key".to_owned())
            }
            Kind::Intermediate | Kind::Leaf => {
                let mut reason = "the host's own bundle holds no CA certificate with this key".to_owned();
                let now = crate::clock::now();
                // A renewed CA certificate has the key of the old one.
                for ca in self.vault.certificates().iter().filter(|ca| ca.fingerprint == sign.key) {
                    match self.vault.rules.certificate(sign.kind, sign.message, &ca.ca.as_ca(), now) {
                        Ok(()) => return Ok(ca.key.clone()),
                        Err(refusal) => reason = refusal.to_string(),
                    }
                }
                Err(reason)
            }
        }
    }
}
