//! Finds the CA's private key by what it signs.
//!
//! How a key got into the token, its CKA_ID and its label do not matter: a signature that verifies with ca-cert.pem
//! decides. Hints only determine which keys are tried first, so that usually one signature suffices. A trial signature
//! is a real use of a key, perhaps of somebody else's: it covers a message that can never be a certificate
//! ([`proof::signs`]), the number of trials is limited, and no unrelated key is tried again soon.

mod found;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use cryptoki::{
    error::RvError,
    object::{Attribute, ObjectClass, ObjectHandle},
    session::{Session, SessionState},
};

pub use found::{CaKey, FoundBy, Known, Locator};

use super::{
    Flags, KeyError, Unfit, key_type, objects, octet_string,
    proof::{self, ProofError},
    public,
};
use crate::{Pkcs11Error, Recovery, TokenUri, calls, mechanism::SignError};
use pki::{KeyAlgorithm, PublicKey};

/// Most trial signatures of one search.
const MAX_TRIALS: usize = 32;
/// How long a key that did not sign as the CA's is not tried again: it may be the CA's key in a token that signs wrongly.
const REJECTED: Duration = Duration::from_secs(60);
/// How long commands search.
const UNHURRIED: Duration = Duration::from_secs(60);

/// Where the key is looked for first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// CKA_ID.
    pub id: Option<Vec<u8>>,
    /// CKA_LABEL.
    pub label: Option<String>,
}

impl From<&TokenUri> for Hints {
    fn from(uri: &TokenUri) -> Self {
        Self { id: uri.id().map(<[u8]>::to_vec), label: uri.object().map(str::to_owned) }
    }
}

impl Hints {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The search for one CA key in one token, with what earlier searches have shown.
#[derive(Clone, Debug, Default)]
pub struct Search {
    hints: Hints,
    known: Option<Known>,
    /// Handle, CKA_ID and label of unrelated keys that are not the CA's, and when that was seen.
    rejected: HashMap<(u64, Locator), Instant>,
}

impl Search {
    /// A search that begins with these hints.
    #[must_use]
    pub fn new(hints: Hints) -> Self {
        Self { hints, ..Self::default() }
    }

    /// Uses what another process has proven, unless something is known already.
    pub fn suggest(&mut self, known: Known) {
        self.known.get_or_insert(known);
    }

    /// Whether the key was proven, here or by another process.
    #[must_use]
    pub fn has_found(&self) -> bool {
        self.known.is_some()
    }

    /// Finds the key. A key that this process has proven is found by its CKA_ID and label without a signature, and one that
    /// another process has proven with a single one. Tries no further key after `until`: the next search continues.
    ///
    /// # Errors
    /// When no private key signs as the CA's, or a call fails.
    pub fn find(&mut self, session: &Session, key: &PublicKey, until: Instant) -> Result<CaKey, KeyError> {
        if let Some(known) = &self.known
            && let Some(found) = found_again(session, key, known).map_err(call)?
        {
            if known.handle.is_some() {
                return Ok(found);
            }
            if proof::signs(session, found.handle, key).is_ok() {
                self.known = Some(Known::from(&found));
                return Ok(found);
            }
        }
        self.known = None;
        self.prove(session, key, until, Extent::First)
    }

    /// Finds the key and its copies again, by signatures. Keys that nothing relates to the CA's are tried only if no
    /// other is the CA's.
    ///
    /// # Errors
    /// As [`Search::find`].
    pub fn find_all(&mut self, session: &Session, key: &PublicKey) -> Result<CaKey, KeyError> {
        self.prove(session, key, Instant::now() + UNHURRIED, Extent::All)
    }

    /// As [`Search::find_all`], and keys that nothing relates to the CA's are not tried at all.
    ///
    /// # Errors
    /// As [`Search::find`].
    pub fn find_related(&mut self, session: &Session, key: &PublicKey) -> Result<CaKey, KeyError> {
        self.prove(session, key, Instant::now() + UNHURRIED, Extent::Related)
    }

    fn prove(&mut self, session: &Session, key: &PublicKey, until: Instant, extent: Extent) -> Result<CaKey, KeyError> {
        let mut round =
            Round { session, key, until, tried: HashSet::new(), trials: 0, untried: 0, unfit: None, failed: None };
        let mut proven: Vec<CaKey> = Vec::new();
        for by in FoundBy::ORDER {
            let unrelated = by == FoundBy::TrialSignature;
            if (unrelated && extent == Extent::Related)
                || (!proven.is_empty() && (unrelated || extent == Extent::First))
            {
                break;
            }
            for handle in candidates(session, key, by, &self.hints).map_err(call)? {
                if unrelated && extent == Extent::First && !proven.is_empty() {
                    break;
                }
                proven.extend(round.candidate(handle, by, &mut self.rejected)?);
            }
        }
        // A key that was deleted, or whose handle changed, may come back as another one.
        self.rejected.retain(|(handle, _), since| round.tried.contains(handle) && since.elapsed() < REJECTED);
        // Among copies, the one with the fewest weaknesses.
        let best = (0..proven.len()).min_by_key(|at| proven.get(*at).map(|found| found.flags.weaknesses().len()));
        let Some(mut best) = best.map(|at| proven.remove(at)) else { return Err(round.error()) };
        best.copies = proven.into_iter().map(|copy| copy.locator).collect();
        self.known = Some(Known::from(&best));
        Ok(best)
    }
}

/// How far a search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// To the first step that finds the key.
    First,
    /// Through all steps, for copies.
    All,
    /// The same without the last step.
    Related,
}

/// One search by signatures.
struct Round<'a> {
    session: &'a Session,
    key: &'a PublicKey,
    until: Instant,
    tried: HashSet<u64>,
    trials: usize,
    untried: usize,
    /// A key that may be the CA's and cannot be tried.
    unfit: Option<(Locator, Unfit)>,
    /// The first error of a trial.
    failed: Option<Pkcs11Error>,
}

impl Round<'_> {
    /// Tries a key unless that has been done.
    fn candidate(
        &mut self,
        handle: ObjectHandle,
        by: FoundBy,
        rejected: &mut HashMap<(u64, Locator), Instant>,
    ) -> Result<Option<CaKey>, KeyError> {
        if self.tried.contains(&handle.handle()) {
            return Ok(None);
        }
        let locator = Locator::read(self.session, handle).map_err(call)?;
        let own = (handle.handle(), locator.clone());
        if rejected.contains_key(&own) {
            self.tried.insert(handle.handle());
            return Ok(None);
        }
        let flags = Flags::read(self.session, handle).map_err(call)?;
        if let Err(unfit) = flags.usable() {
            self.tried.insert(handle.handle());
            if by != FoundBy::TrialSignature {
                self.unfit.get_or_insert((locator, unfit));
            }
            return Ok(None);
        }
        if self.trials >= MAX_TRIALS || Instant::now() >= self.until {
            self.untried += 1;
            return Ok(None);
        }
        self.tried.insert(handle.handle());
        self.trials += 1;
        let mut reject = |key| {
            // What relates a key to the CA's deserves another trial when the token is asked again.
            if by == FoundBy::TrialSignature {
                rejected.insert(key, Instant::now());
            }
        };
        match proof::signs(self.session, handle, self.key) {
            Ok(()) => Ok(Some(CaKey { handle, by, locator, flags, copies: Vec::new() })),
            Err(ProofError::Sign(SignError::Call(error))) => {
                // A login that is there and does not count: the key asks for the PIN before each signature, and the token
                // does not say so.
                if error.is(RvError::UserNotLoggedIn) && logged_in(self.session) {
                    if by != FoundBy::TrialSignature {
                        self.unfit.get_or_insert((locator, Unfit::AlwaysAuthenticate));
                    }
                    return Ok(None);
                }
                match error.recovery() {
                    Recovery::Retry | Recovery::Relogin | Recovery::FixPin => return Err(call(error)),
                    // A damaged object, or a damaged token: another key shows which.
                    Recovery::NewProcess if error.is(RvError::GeneralError) => {}
                    Recovery::NewProcess => return Err(call(error)),
                    Recovery::NewSession
                        if !error.is(RvError::KeyFunctionNotPermitted) && !error.is(RvError::KeyTypeInconsistent) => {}
                    Recovery::NewSession
                    | Recovery::FixConfiguration
                    | Recovery::FixKey
                    | Recovery::Ignore
                    | Recovery::RejectRequest => {
                        reject(own);
                        return Ok(None);
                    }
                }
                if by != FoundBy::TrialSignature {
                    self.failed.get_or_insert(error);
                }
                Ok(None)
            }
            Err(_) => {
                reject(own);
                Ok(None)
            }
        }
    }

    /// Why no key was found.
    fn error(self) -> KeyError {
        if let Some(error) = self.failed {
            return call(error);
        }
        match self.unfit {
            Some((locator, reason)) => KeyError::Unfit { what: locator.to_string(), reason },
            None => {
                KeyError::NoneSigns { algorithm: self.key.algorithm(), tried: self.tried.len(), untried: self.untried }
            }
        }
    }
}

fn call(source: Pkcs11Error) -> KeyError {
    KeyError::Call { what: "the signature of ca-cert.pem's key".to_owned(), source }
}

fn logged_in(session: &Session) -> bool {
    let is_user = |state| matches!(state, SessionState::RoUser | SessionState::RwUser);
    session.get_session_info().is_ok_and(|info| is_user(info.session_state()))
}

/// The private key that was proven before, if its CKA_ID and label, or its handle, still select one.
fn found_again(session: &Session, key: &PublicKey, known: &Known) -> Result<Option<CaKey>, Pkcs11Error> {
    let Locator { id, label } = &known.locator;
    let mut template = private_keys(key);
    template.extend((!id.is_empty()).then(|| Attribute::Id(id.clone())));
    template.extend((!label.is_empty()).then(|| Attribute::Label(label.as_bytes().to_vec())));
    let handles = find(session, &template)?;
    let handle = match handles.as_slice() {
        [handle] => *handle,
        several => match known.handle.filter(|handle| several.contains(handle)) {
            Some(handle) => handle,
            None => return Ok(None),
        },
    };
    let flags = Flags::read(session, handle)?;
    Ok(Some(CaKey { handle, by: known.by, locator: known.locator.clone(), flags, copies: known.copies.clone() }))
}

/// The private keys that a step of the search tries.
fn candidates(
    session: &Session,
    key: &PublicKey,
    by: FoundBy,
    hints: &Hints,
) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let with = |more: Vec<Attribute>| find(session, &[private_keys(key), more].concat());
    match by {
        FoundBy::Uri if hints.is_empty() => Ok(Vec::new()),
        FoundBy::Uri => {
            let id = hints.id.clone().map(Attribute::Id);
            let label = hints.label.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec()));
            with(id.into_iter().chain(label).collect())
        }
        FoundBy::KeyId => with(vec![Attribute::Id(key.key_id().to_vec())]),
        FoundBy::PublicObject => {
            let mut found = Vec::new();
            for id in ids_of_public_objects(session, key)? {
                found.extend(with(vec![Attribute::Id(id)])?);
            }
            Ok(found)
        }
        FoundBy::OwnValue => {
            let value = match key.rsa_components() {
                Some((modulus, _)) => Some(Attribute::Modulus(modulus.to_vec())),
                None => key.ec_point().and_then(octet_string).map(Attribute::EcPoint),
            };
            let mut found = Vec::new();
            for attribute in value.into_iter().chain([Attribute::PublicKeyInfo(key.spki_der().to_vec())]) {
                found.extend(supported(with(vec![attribute]))?.unwrap_or_default());
            }
            Ok(found)
        }
        FoundBy::TrialSignature => with(Vec::new()),
    }
}

/// The CKA_IDs of the token's public key and certificate objects that contain a key.
fn ids_of_public_objects(session: &Session, key: &PublicKey) -> Result<Vec<Vec<u8>>, Pkcs11Error> {
    let mut ids = Vec::new();
    for object in public::all(session, key)? {
        if supported(public::read(session, object))?.is_some_and(|read| read.as_ref() == Ok(key)) {
            ids.extend(public::id_of(session, object)?);
        }
    }
    for (object, _, der) in objects::certificates(session)?.into_iter().take(objects::MAX_CERTIFICATES) {
        if public::of_certificate(&der).as_ref() == Some(key) {
            ids.extend(public::id_of(session, object)?);
        }
    }
    ids.retain(|id| !id.is_empty());
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Nothing where the token cannot do such a call with such an attribute or object.
fn supported<T>(result: Result<T, Pkcs11Error>) -> Result<Option<T>, Pkcs11Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.recovery() {
            Recovery::FixConfiguration | Recovery::FixKey | Recovery::RejectRequest => Ok(None),
            Recovery::FixPin
            | Recovery::Ignore
            | Recovery::NewProcess
            | Recovery::NewSession
            | Recovery::Relogin
            | Recovery::Retry => Err(error),
        },
    }
}

fn private_keys(key: &PublicKey) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::KeyType(key_type(key.algorithm())),
    ]
}

fn find(session: &Session, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    Ok(calls::call(calls::Function::FindObjects, || session.find_objects(template))?)
}

/// The type of a key, as far as a token distinguishes it (CKA_KEY_TYPE).
pub(super) fn kind(algorithm: KeyAlgorithm) -> &'static str {
    match algorithm {
        KeyAlgorithm::Ed25519 => "Ed25519",
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => "EC",
        KeyAlgorithm::Rsa { .. } => "RSA",
    }
}
