//! Replies of a session thread to each kind of request.

use std::{
    sync::{TryLockError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Queued, Service, is_broken, lock};
use crate::{
    login::Worker,
    policy::{Refusal, ReservedKeys},
    protocol::{Fault, Fingerprint, Kind, Reply, Request, Sign},
};
use pki::PublicKey;

impl Service<'_> {
    pub(super) fn answer(&self, index: usize, request: &Request<'_>, frame: &Queued) -> Option<Reply> {
        Some(match request {
            // Handled by the reader.
            Request::Cancel { .. } | Request::Discard { .. } => return None,
            Request::Hello { .. } => refused("the hello was already answered"),
            Request::Open { key, known } => self.open(&mut lock(&self.sessions[index]), key, known),
            Request::Ping => match self.exercise(index) {
                Ok(()) => Reply::Status(Box::new(self.login.status())),
                Err(fault) => Reply::Fault(fault),
            },
            Request::Sign(sign) => self.sign(index, sign, frame),
        })
    }

    /// Exercises this thread's session, and each other session that was not used since the last time: tokens drop idle
    /// sessions individually.
    fn exercise(&self, index: usize) -> Result<(), Fault> {
        lock(&self.sessions[index]).exercise()?;
        // They may have been created after the start; a token without them is asked at each keep-alive.
        self.login.look_for_own_keys();
        for session in &self.sessions {
            let mut worker = match session.try_lock() {
                Ok(worker) => worker,
                Err(TryLockError::Poisoned(worker)) => worker.into_inner(),
                // Its thread is using it.
                Err(TryLockError::WouldBlock) => continue,
            };
            if worker.take_used() {
                continue;
            }
            // A failed session is reopened; a fault of the module concerns all.
            match worker.exercise() {
                Err(fault) if is_broken(&fault) => return Err(fault),
                Ok(()) | Err(_) => {
                    worker.take_used();
                }
            }
        }
        Ok(())
    }

    fn open(&self, worker: &mut Worker<'_>, key: &Fingerprint, known: &[u8]) -> Reply {
        // Where the bundle cannot be read, the earlier certificates remain valid.
        let read = self.login.reread();
        let certificates = self.login.certificates();
        match (certificates.iter().find(|ca| ca.fingerprint == *key), read) {
            (None, Err(fault)) => Reply::Fault(fault),
            (None, Ok(())) => refused(&Refusal::Issuer.to_string()),
            (Some(ca), _) => match worker.look_up(&ca.key, known) {
                Ok(found) => Reply::Opened { known: found.known, found: found.how },
                Err(fault) => Reply::Fault(fault),
            },
        }
    }

    fn sign(&self, index: usize, sign: &Sign<'_>, frame: &Queued) -> Reply {
        let counters = &self.login.counters;
        // The only check of the deadline on this side of the connection.
        let deadline = frame.read_at + Duration::from_millis(sign.deadline_ms.into());
        if frame.cancelled || Instant::now() >= deadline {
            counters.expired.fetch_add(1, Ordering::Relaxed);
            return Reply::Expired;
        }
        let key = match self.permit(sign) {
            Ok(key) => key,
            Err(refusal) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                let limit = matches!(refusal, Refusal::Limit { .. });
                // Reaching a limit is reported separately, and not again for each later certificate.
                if !limit {
                    tracing::warn!(request_id = sign.request_id, kind = ?sign.kind, reason = %refusal, "not signed");
                }
                return Reply::Refused { reason: refusal.to_string(), limit };
            }
        };
        let fingerprint = match sign.kind {
            Kind::Crl | Kind::Intermediate | Kind::Leaf => sign.key,
            Kind::Canary | Kind::Checkpoint => key.fingerprint(),
        };
        let mut session = lock(&self.sessions[index]);
        let signed = match sign.kind {
            Kind::Crl | Kind::Intermediate | Kind::Leaf => {
                session.sign(sign.kind, &key, fingerprint, sign.message, deadline)
            }
            Kind::Canary | Kind::Checkpoint => session.sign_own(sign.kind, &key, sign.message, deadline),
        };
        match signed {
            Ok(signature) => {
                self.login.count_signed(fingerprint, sign.kind);
                tracing::debug!(request_id = sign.request_id, message_kind = ?sign.kind, "signed");
                Reply::Signed { session: signature.session, signature: signature.bytes }
            }
            Err(fault) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                Reply::Fault(fault)
            }
        }
    }

    /// The key that may sign this, according to the host's own configuration.
    fn permit(&self, sign: &Sign<'_>) -> Result<PublicKey, Refusal> {
        let cas = self.login.certificates();
        let key = match sign.kind {
            Kind::Canary => self.login.canary_key().ok_or(Refusal::NoKey("canary key")),
            Kind::Checkpoint => self.login.log_key().ok_or(Refusal::NoKey("log key")),
            Kind::Crl | Kind::Intermediate | Kind::Leaf => {
                cas.iter().find(|ca| ca.fingerprint == sign.key).map(|ca| &ca.key).ok_or(Refusal::Issuer)
            }
        }?;
        let other_cas = self.login.other_ca_keys();
        let reserved = ReservedKeys { cas: &other_cas, own: [self.login.log_key(), self.login.canary_key()] };
        self.login.policy.admit(sign, &cas, &reserved, process::clock::now())?;
        Ok(key.clone())
    }
}

fn refused(reason: &str) -> Reply {
    Reply::Refused { reason: reason.to_owned(), limit: false }
}
