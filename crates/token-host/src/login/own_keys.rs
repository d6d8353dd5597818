//! The host's own two keys in the token: for checkpoints and for probes.
//!
//! They are looked up after login, and at each keep-alive while one is missing: a token may hide them at first, a
//! command may generate them later, and a token may have none.

use std::{
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use super::{LoginContext, MAIN_THREAD, chain, lock};
use crate::protocol::{Fault, Kind};
use pki::PublicKey;
use token::key::{self, CANARY_KEY_LABEL, KeyError, LOG_KEY_LABEL};

/// How long a key that does not sign is left alone: each attempt costs its session, which certificates need.
const PAUSE: Duration = Duration::from_secs(10);

/// Both keys.
#[derive(Debug, Default)]
pub(super) struct OwnKeys {
    canary: OwnKey,
    log: OwnKey,
}

/// One of them.
#[derive(Debug, Default)]
struct OwnKey {
    /// Its public key, once found.
    public: OnceLock<PublicKey>,
    /// Its last failure, and when that was, until it signs again.
    failed: Mutex<Option<(Instant, Fault)>>,
}

impl OwnKeys {
    fn of(&self, kind: Kind) -> &OwnKey {
        if kind == Kind::Canary { &self.canary } else { &self.log }
    }
}

impl LoginContext {
    pub(in super::super) fn canary_key(&self) -> Option<&PublicKey> {
        self.own_keys.canary.public.get()
    }

    pub(in super::super) fn log_key(&self) -> Option<&PublicKey> {
        self.own_keys.log.public.get()
    }

    /// The failure of a key that is left alone for now.
    pub(super) fn own_key_pauses(&self, kind: Kind) -> Option<Fault> {
        let failed = lock(&self.own_keys.of(kind).failed);
        failed.as_ref().filter(|(since, _)| since.elapsed() < PAUSE).map(|(_, fault)| fault.clone())
    }

    /// Notes that a key does not sign although the token does.
    pub(super) fn own_key_failed(&self, kind: Kind, fault: &Fault) {
        let before = lock(&self.own_keys.of(kind).failed).replace((Instant::now(), fault.clone()));
        // Said once: the daemon tells it for as long as it lasts.
        if before.is_none_or(|(_, before)| before.code != fault.code) {
            tracing::warn!(code = fault.code, function = fault.function, reason = fault.text, "a helper key fails");
        }
    }

    /// Notes that a key signs.
    pub(super) fn own_key_signs(&self, kind: Kind) {
        *lock(&self.own_keys.of(kind).failed) = None;
    }

    /// Looks for those that were not found yet. They are optional: a failure is no fault of the token.
    pub(in super::super) fn look_for_own_keys(&self) {
        let OwnKeys { canary, log } = &self.own_keys;
        for (key, label) in [(canary, CANARY_KEY_LABEL), (log, LOG_KEY_LABEL)] {
            if key.public.get().is_none()
                && let Some(found) = self.own_key(label)
            {
                key.public.get_or_init(|| found);
            }
        }
    }

    /// The public half of a key that we made in the token ourselves; none where the token shows none.
    fn own_key(&self, label: &str) -> Option<PublicKey> {
        let anchor = lock(&self.anchor);
        let session = anchor.as_ref()?;
        let _call = self.watchdog.call(MAIN_THREAD);
        match key::find_by_label(session, label) {
            Ok(found) => Some(found.public_key),
            Err(KeyError::NotFound(_)) => None,
            Err(error) => {
                let name = name_of(label);
                tracing::warn!(error = chain(&error), "the {name} cannot be used; certificates do not need it");
                None
            }
        }
    }
}

/// What a key of the host's own is called in messages.
fn name_of(label: &str) -> &'static str {
    if label == LOG_KEY_LABEL { "log key" } else { "canary key" }
}
