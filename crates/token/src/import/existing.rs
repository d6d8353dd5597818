//! Objects of a key that exist in the token before its import.

use cryptoki::{object::ObjectHandle, session::Session};

use super::{CallError, ImportError, Options};
use crate::{
    Recovery,
    key::{
        self, CaKey, Flags, Hints, KeyError, Locator, Search, fit, hex,
        proof::{self, ProofError},
        public,
    },
};
use pki::PublicKey;

/// Objects with the key's CKA_ID.
#[derive(Debug)]
pub(super) struct Existing {
    /// The private key that works.
    pub(super) whole: Option<Whole>,
    /// Private objects that do not work, left by an interrupted import.
    pub(super) broken: Vec<ObjectHandle>,
    /// Markers of interrupted imports of this key.
    pub(super) interrupted: Vec<ObjectHandle>,
}

/// A private key that works.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) handle: ObjectHandle,
    pub(super) flags: Flags,
    pub(super) locator: Locator,
}

/// Looks, and changes nothing.
///
/// # Errors
/// When there are several keys that work, one that does not work and that no interrupted import of ours explains, or
/// one that is unfit.
pub(super) fn look(session: &Session, key: &PublicKey, options: &Options) -> Result<Existing, ImportError> {
    let call = |source| ImportError::from(CallError { step: "look for the key", source });
    let interrupted = super::marker::find(session, key).map_err(call)?;
    let what = format!("CKA_ID {}", hex(&key.key_id()));
    let (mut whole, mut broken) = (Vec::new(), Vec::new());
    let mut reason = None;
    for handle in key::private_keys(session, key).map_err(call)? {
        match proof::signs(session, handle, key) {
            Ok(()) => whole.push(handle),
            Err(error) if passing(&error) => return Err(error.into()),
            Err(error) => {
                broken.push(handle);
                reason = Some(error);
            }
        }
    }
    let count = whole.len() + broken.len();
    // Another key under the same CKA_ID does no harm if one of them works.
    let unexplained = whole.is_empty() && interrupted.is_empty() && !broken.is_empty();
    if whole.len() > 1 || (unexplained && count > 1) {
        return Err(KeyError::Ambiguous { what, count }.into());
    }
    if let (true, Some(source)) = (unexplained, reason) {
        return Err(ImportError::Unproven { what, source });
    }
    let whole = match whole.pop() {
        Some(handle) => {
            let flags = Flags::read(session, handle).map_err(call)?;
            Some(Whole { handle, flags, locator: Locator::read(session, handle).map_err(call)? })
        }
        // Another tool may have imported it, under another CKA_ID; or the token gave it one.
        None => match search(options).find_related(session, key) {
            Ok(CaKey { handle, flags, locator, .. }) => Some(Whole { handle, flags, locator }),
            Err(KeyError::NoneSigns { .. }) => None,
            // It has the CKA_ID of an interrupted import, and was judged above.
            Err(_) if !broken.is_empty() => None,
            Err(error) => return Err(error.into()),
        },
    };
    if let Some(Whole { flags, locator, .. }) = &whole {
        fit(flags, locator, &options.accepted)?;
    }
    Ok(Existing { whole, broken, interrupted })
}

/// A search for the key that an import with these options makes, also where the token gave it a CKA_ID of its own.
pub(super) fn search(options: &Options) -> Search {
    Search::new(Hints { id: None, label: Some(options.label.clone()) })
}

/// Removes what an interrupted import of this key left; returns descriptions.
///
/// # Errors
/// If the token does not delete it.
pub(super) fn clear(session: &Session, key: &PublicKey, found: &Existing) -> Result<Vec<String>, ImportError> {
    let call = |source| ImportError::from(CallError { step: "clear what an interrupted import left", source });
    let mut cleared = Vec::new();
    if found.interrupted.is_empty() {
        return Ok(cleared);
    }
    let id = hex(&key.key_id());
    cleared.push(format!("the mark of an interrupted import (CKA_ID {id})"));
    for handle in &found.broken {
        session.destroy_object(*handle).map_err(|e| call(e.into()))?;
        cleared.push(format!("a private key object that does not sign (CKA_ID {id})"));
    }
    for object in public::by_id(session, &key.key_id()).map_err(call)? {
        if public::read(session, object).map_err(call)?.as_ref() != Ok(key) {
            session.destroy_object(object).map_err(|e| call(e.into()))?;
            cleared.push(format!("a public key object that cannot be read (CKA_ID {id})"));
        }
    }
    for what in &cleared {
        tracing::warn!(what, "cleared what an interrupted import left");
    }
    Ok(cleared)
}

/// Whether the failure is temporary and shows nothing about the object.
fn passing(error: &ProofError) -> bool {
    let class = match error {
        ProofError::Call(fault) => fault.recovery(),
        ProofError::Sign(fault) => fault.recovery(),
        ProofError::Attribute(_)
        | ProofError::Readable(_)
        | ProofError::Unfit(_)
        | ProofError::Weak(_)
        | ProofError::Wrappable
        | ProofError::WrongSignature => return false,
    };
    match class {
        Recovery::Retry | Recovery::Relogin | Recovery::FixPin | Recovery::Ignore => true,
        Recovery::FixConfiguration
        | Recovery::FixKey
        | Recovery::RejectRequest
        | Recovery::NewSession
        | Recovery::NewProcess => false,
    }
}
