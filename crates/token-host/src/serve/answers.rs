//! What a host does for each kind of request, by its own rules, and what it answers.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{Service, Taken, is_broken};
use crate::{
    policy,
    protocol::{Fault, Fingerprint, Kind, Reply, Request, Sign},
    vault::Worker,
};
use pki::PublicKey;

impl Service<'_> {
    pub(super) fn answer(&self, own: Option<usize>, request: &Request<'_>, taken: Taken) -> Option<Reply> {
        Some(match request {
            // It was heeded when it was read.
            Request::Cancel { .. } => return None,
            Request::Discard { session } => {
                self.vault.discard(*session);
                return None;
            }
            Request::Hello { .. } => Reply::Refused { reason: "the hello was said already".to_owned() },
            Request::Open { key } => self.sessions.with(own, |worker| self.open(worker, key)),
            Request::Ping => match self.exercise(own) {
                Ok(()) => Reply::Status(Box::new(self.vault.status())),
                Err(fault) => Reply::Fault(fault),
            },
            Request::Sign(sign) => self.sign(own, sign, taken),
        })
    }

    /// Exercises this thread's session, and each of the others' that was not used since the last time: tokens drop
    /// idle sessions one by one.
    fn exercise(&self, own: Option<usize>) -> Result<(), Fault> {
        self.sessions.with(own, Worker::exercise)?;
        // Made or seen only since the start; a token that has none is asked at each keep-alive.
        if let Err(fault) = self.vault.look_for_own_keys() {
            tracing::warn!(reason = fault.text, "the host's own keys cannot be looked for");
        }
        // One that is in use is at work; the one from before has just been used.
        self.sessions.each_idle(|worker| {
            if worker.take_used() {
                return Ok(());
            }
            // A session that fails was dropped, and is opened again; a module that fails concerns all.
            match worker.exercise() {
                Err(fault) if is_broken(&fault) => Err(fault),
                Ok(()) | Err(_) => {
                    worker.take_used();
                    Ok(())
                }
            }
        })
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

    fn sign(&self, own: Option<usize>, sign: &Sign<'_>, taken: Taken) -> Reply {
        let deadline = taken.read_at + Duration::from_millis(sign.deadline_ms.into());
        if taken.cancelled || Instant::now() >= deadline {
            return self.expired();
        }
        let counters = &self.vault.counters;
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
        let signed = self.sessions.with(own, |worker| {
            let began = Instant::now();
            // It may have waited for the session.
            if began >= deadline {
                return None;
            }
            let signed = worker.sign(sign.kind, &key, fingerprint, sign.message, deadline);
            self.sessions.took(began.elapsed());
            Some(signed)
        });
        let Some(signed) = signed else { return self.expired() };
        match signed {
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

    fn expired(&self) -> Reply {
        self.vault.counters.expired.fetch_add(1, Ordering::Relaxed);
        Reply::Expired
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
                let now = process::clock::now();
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
