//! The host's own two keys in the token: for checkpoints and for probes.
//!
//! They are looked up after login, and at each keep-alive while one is missing: a token may hide them at first, a
//! command may generate them later, and a token may have none.

use std::sync::OnceLock;

use super::{LoginContext, MAIN_THREAD, chain, lock};
use pki::PublicKey;
use token::key::{self, CANARY_KEY_LABEL, KeyError, LOG_KEY_LABEL};

/// Their public keys, once found.
#[derive(Debug, Default)]
pub(super) struct OwnKeys {
    canary: OnceLock<PublicKey>,
    log: OnceLock<PublicKey>,
}

impl LoginContext {
    pub(in super::super) fn canary_key(&self) -> Option<&PublicKey> {
        self.own_keys.canary.get()
    }

    pub(in super::super) fn log_key(&self) -> Option<&PublicKey> {
        self.own_keys.log.get()
    }

    /// Looks for those that were not found yet. They are optional: a failure is no fault of the token.
    pub(in super::super) fn look_for_own_keys(&self) {
        let OwnKeys { canary, log } = &self.own_keys;
        for (key, label) in [(canary, CANARY_KEY_LABEL), (log, LOG_KEY_LABEL)] {
            if key.get().is_none()
                && let Some(found) = self.own_key(label)
            {
                key.get_or_init(|| found);
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
