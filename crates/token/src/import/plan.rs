//! Checks before an import: finds every obstacle in the token before anything is written to it.

use cryptoki::{mechanism::MechanismType, session::Session};
use secrecy::SecretString;

use super::{
    ImportError, NotWrapped, Options, WrapError,
    existing::{self, Existing},
    import_tool,
    rehearsal::{self, Clear},
    wrap::Wrapping,
};
use crate::{
    Module, Pkcs11Error, Token, TokenUri,
    mechanism::signing_mechanism,
    module::{LoginError, TokenError},
};
use pki::{KeyAlgorithm, PublicKey};

/// A token that passed all checks for one key, with their results; input of [`super::run`].
#[derive(Debug)]
pub struct Ready {
    pub(super) token: Token,
    /// Read-write and logged in. It owns the session objects of `wrapping`.
    pub(super) session: Session,
    pub(super) key: PublicKey,
    pub(super) options: Options,
    pub(super) mechanisms: Vec<MechanismType>,
    pub(super) signing: MechanismType,
    pub(super) existing: Existing,
    /// An error is acceptable only if the key is present already or may cross the boundary in the clear.
    pub(super) wrapping: Result<Wrapping, WrapError>,
    /// How the key crosses the boundary in the clear; `None` where it is not to do so.
    pub(super) clear: Option<Clear>,
}

impl Ready {
    /// Whether the token holds the private key already.
    #[must_use]
    pub fn already_there(&self) -> bool {
        self.existing.whole.is_some()
    }

    /// Whether an earlier import of this key was interrupted; [`super::run`] removes its leftovers.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        !self.existing.interrupted.is_empty()
    }
}

/// An obstacle to an import.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A call failed.
    #[error("a call to the token `{label}` failed")]
    Call {
        /// Label of the token.
        label: String,
        /// The call's error.
        #[source]
        source: Pkcs11Error,
    },
    /// Objects in the token conflict with the import.
    #[error(transparent)]
    Existing(ImportError),
    /// The login failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The token lacks a signing mechanism for the key.
    #[error(
        "the token `{label}` cannot sign with a {algorithm} key; use a token that can, or a CA key of another type"
    )]
    Mechanism {
        /// Label of the token.
        label: String,
        /// Algorithm of the key.
        algorithm: KeyAlgorithm,
    },
    /// The token cannot unwrap such a key.
    #[error("the token `{label}` {source}")]
    NotWrapped {
        /// Label of the token.
        label: String,
        /// Why, and what can be done.
        source: NotWrapped,
    },
    /// No token or several tokens match.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is write-protected.
    #[error("the token `{0}` is write-protected; have its security officer allow new objects")]
    WriteProtected(String),
}

/// Checks the token: it exists and is unique, is writable, supports the mechanisms, accepts the PIN (tried once), holds
/// no conflicting objects and can unwrap keys. Creates session objects only.
///
/// # Errors
/// All problems found. After a missing token or a wrong PIN, later checks are skipped.
pub fn plan<'a>(
    module: &Module,
    uri: &TokenUri,
    pin: impl Into<Option<&'a SecretString>>,
    key: &PublicKey,
    options: &Options,
) -> Result<Ready, Vec<Problem>> {
    check(open(module, uri, pin.into(), Some(key.algorithm()))?, key, options)
}

/// [`plan`] for a session that is logged in already.
///
/// # Errors
/// Those of [`plan`].
pub fn plan_in_session(
    token: Token,
    session: Session,
    key: &PublicKey,
    options: &Options,
) -> Result<Ready, Vec<Problem>> {
    let mut problems = Vec::new();
    let mechanisms = mechanisms(&token, Some(key.algorithm()), &mut problems);
    check(Opened { token, session, mechanisms, problems }, key, options)
}

/// The checks of [`plan`] that do not need the key: the token exists and is unique, is writable, and accepts the PIN
/// (tried once).
///
/// # Errors
/// Those of [`plan`].
pub fn reach<'a>(
    module: &Module,
    uri: &TokenUri,
    pin: impl Into<Option<&'a SecretString>>,
) -> Result<(), Vec<Problem>> {
    let opened = open(module, uri, pin.into(), None)?;
    if opened.problems.is_empty() { Ok(()) } else { Err(opened.problems) }
}

/// A token with a session that is logged in, and the problems found so far.
struct Opened {
    token: Token,
    session: Session,
    mechanisms: Vec<MechanismType>,
    problems: Vec<Problem>,
}

fn open(
    module: &Module,
    uri: &TokenUri,
    pin: Option<&SecretString>,
    algorithm: Option<KeyAlgorithm>,
) -> Result<Opened, Vec<Problem>> {
    let token = module.find_token(uri).map_err(|error| vec![error.into()])?;
    let mut problems = Vec::new();
    if token.info().write_protected {
        problems.push(Problem::WriteProtected(token.info().label.clone()));
    }
    let mechanisms = mechanisms(&token, algorithm, &mut problems);
    let session = match token.open_session(true) {
        Ok(session) => session,
        Err(source) => {
            problems.push(Problem::Call { label: token.info().label.clone(), source });
            return Err(problems);
        }
    };
    if let Err(error) = token.login(&session, pin) {
        problems.push(error.into());
        return Err(problems);
    }
    Ok(Opened { token, session, mechanisms, problems })
}

fn mechanisms(token: &Token, algorithm: Option<KeyAlgorithm>, problems: &mut Vec<Problem>) -> Vec<MechanismType> {
    let label = || token.info().label.clone();
    match token.mechanisms() {
        Ok(mechanisms) => {
            problems.extend(
                algorithm
                    .filter(|algorithm| signing_mechanism(*algorithm, &mechanisms).is_none())
                    .map(|algorithm| Problem::Mechanism { label: label(), algorithm }),
            );
            mechanisms
        }
        Err(source) => {
            problems.push(Problem::Call { label: label(), source });
            Vec::new()
        }
    }
}

fn check(opened: Opened, key: &PublicKey, options: &Options) -> Result<Ready, Vec<Problem>> {
    let Opened { token, session, mechanisms, mut problems } = opened;
    let algorithm = key.algorithm();
    let existing = existing::look(&session, key, options).map_err(|error| problems.push(Problem::Existing(error))).ok();
    let signing = signing_mechanism(algorithm, &mechanisms);
    let wrapping = Wrapping::establish(&session, algorithm, signing, options.kwp_mechanism);
    let unwraps = wrapping.as_ref().map_err(WrapError::clone).and_then(Wrapping::unwraps);
    let mut clear = None;
    // A token that cannot sign with such a key needs no way in for it.
    if existing.as_ref().is_none_or(|existing| existing.whole.is_none())
        && signing.is_some()
        && let Err(source) = unwraps
    {
        let inability = source.is_inability();
        let label = || token.info().label.clone();
        let rehearsed = match inability.then(|| rehearsal::in_the_clear(&session, algorithm, signing)) {
            Some(Err(source)) if !source.is_inability() => Err(Problem::Call { label: label(), source }),
            rehearsed => Ok(rehearsed.and_then(Result::ok)),
        };
        clear = rehearsed.as_ref().ok().copied().flatten().filter(|_| options.allow_plaintext);
        match rehearsed {
            Err(problem) => problems.push(problem),
            Ok(rehearsed) if clear.is_none() => {
                let tool = import_tool(&token.library().unwrap_or_default());
                let source = NotWrapped { algorithm, source, clear: rehearsed, inability, tool };
                problems.push(Problem::NotWrapped { label: label(), source });
            }
            Ok(_) => {}
        }
    }
    match (existing, signing) {
        (Some(existing), Some(signing)) if problems.is_empty() => {
            let (key, options) = (key.clone(), options.clone());
            Ok(Ready { token, session, key, options, mechanisms, signing, existing, wrapping, clear })
        }
        _ => Err(problems),
    }
}
