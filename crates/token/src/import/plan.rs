//! Everything about the token that would stop an import, found at once and before anything is written.

use aws_lc_rs::signature::Ed25519KeyPair;
use cryptoki::{mechanism::MechanismType, session::Session};
use secrecy::SecretString;

use super::{ImportError, Options, WrapError, cannot, existing, wrap::Wrapping};
use crate::{
    Module, Pkcs11Error, Token, TokenUri,
    key::{
        objects::Made,
        template::{self, Name},
    },
    mechanism::signing_mechanism,
    module::{LoginError, TokenError},
};
use pki::{KeyAlgorithm, PublicKey};

/// A token that is ready for [`super::run`].
#[derive(Debug)]
pub struct Ready {
    /// The token.
    pub token: Token,
    /// A read-write session of it, logged in.
    pub session: Session,
    /// Whether the key is there already.
    pub already_there: bool,
    /// Whether an import of this key was interrupted, whose leftovers will be cleared.
    pub interrupted: bool,
}

/// A reason to refuse.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The token does not answer.
    #[error("the token `{label}` does not answer as it should")]
    Call {
        /// The token's label.
        label: String,
        /// What the token answered.
        #[source]
        source: Pkcs11Error,
    },
    /// What the token holds of this key already is in the way.
    #[error(transparent)]
    Existing(ImportError),
    /// The PIN.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The token lacks the mechanism to sign.
    #[error(
        "the token `{label}` cannot sign with a {algorithm} key; use a token that can, or a CA key of another type"
    )]
    Mechanism {
        /// The token's label.
        label: String,
        /// The key's type.
        algorithm: KeyAlgorithm,
    },
    /// The token cannot take the key wrapped.
    #[error(
        "the token `{label}` cannot take a {algorithm} key wrapped; --allow-plaintext-import hands it over in the clear"
    )]
    NotWrapped {
        /// The token's label.
        label: String,
        /// The key's type.
        algorithm: KeyAlgorithm,
        /// What was tried.
        #[source]
        source: WrapError,
    },
    /// No such token, or several.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token takes no new objects.
    #[error("the token `{0}` is write-protected; have its security officer allow new objects")]
    WriteProtected(String),
}

/// Checks the token: it is there and the only one, takes objects, has the mechanisms, takes the PIN (tried once), holds
/// nothing that is in the way, and unwraps. Only session objects are made, and they are gone afterwards.
///
/// # Errors
/// All problems that could be seen; what comes after a missing token or a wrong PIN cannot.
pub fn plan(
    module: &Module,
    uri: &TokenUri,
    pin: &SecretString,
    key: &PublicKey,
    options: &Options,
) -> Result<Ready, Vec<Problem>> {
    let (token, session, mut problems) = open(module, uri, pin, Some(key.algorithm()))?;
    let label = token.info().label.clone();
    let (mut already_there, mut interrupted) = (false, false);
    match existing::look(&session, key) {
        Ok(found) => {
            already_there = found.whole.is_some();
            interrupted = !found.interrupted.is_empty();
        }
        Err(error) => problems.push(Problem::Existing(error)),
    }
    if !already_there {
        problems.extend(rehearse(&session, key.algorithm(), options).err().map(|source| Problem::NotWrapped {
            label,
            algorithm: key.algorithm(),
            source,
        }));
    }
    if problems.is_empty() { Ok(Ready { token, session, already_there, interrupted }) } else { Err(problems) }
}

/// What can be checked of the token where the key cannot be read: it is there and the only one, takes objects, and
/// takes the PIN (tried once).
///
/// # Errors
/// As [`plan`].
pub fn reach(module: &Module, uri: &TokenUri, pin: &SecretString) -> Result<(), Vec<Problem>> {
    let (_token, _session, problems) = open(module, uri, pin, None)?;
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The token with a session that is logged in, and what is wrong with it so far.
fn open(
    module: &Module,
    uri: &TokenUri,
    pin: &SecretString,
    algorithm: Option<KeyAlgorithm>,
) -> Result<(Token, Session, Vec<Problem>), Vec<Problem>> {
    let token = module.find_token(uri).map_err(|error| vec![error.into()])?;
    let label = token.info().label.clone();
    let mut problems = Vec::new();
    if token.info().write_protected {
        problems.push(Problem::WriteProtected(label.clone()));
    }
    match token.mechanisms() {
        Ok(mechanisms) => {
            problems.extend(algorithm.and_then(|algorithm| lacking(&mechanisms, algorithm, &label)));
        }
        Err(source) => problems.push(Problem::Call { label: label.clone(), source }),
    }
    let session = match token.open_session(true) {
        Ok(session) => session,
        Err(source) => {
            problems.push(Problem::Call { label, source });
            return Err(problems);
        }
    };
    if let Err(error) = token.login(&session, pin) {
        problems.push(error.into());
        return Err(problems);
    }
    Ok((token, session, problems))
}

fn lacking(mechanisms: &[MechanismType], algorithm: KeyAlgorithm, label: &str) -> Option<Problem> {
    let lacks = signing_mechanism(algorithm, mechanisms).is_none();
    lacks.then(|| Problem::Mechanism { label: label.to_owned(), algorithm })
}

/// Goes the wrapped way with keys to throw away: which mechanisms a token has is only known by using them.
fn rehearse(session: &Session, algorithm: KeyAlgorithm, options: &Options) -> Result<(), WrapError> {
    let mut made = Made::new(session);
    let outcome = Wrapping::establish(session, &mut made).and_then(|wrapping| match algorithm {
        // Tokens that unwrap RSA and EC keys may not unwrap this newest type.
        KeyAlgorithm::Ed25519 => {
            let key = Ed25519KeyPair::generate_pkcs8v1(&aws_lc_rs::rand::SystemRandom::new())
                .map_err(|_| WrapError::Software)?;
            let name = Name { id: b"rehearsal", label: "rehearsal" };
            let object = wrapping.unwrap(key.as_ref(), &template::private(algorithm, &name, None, false))?;
            made.scratch(object);
            Ok(())
        }
        KeyAlgorithm::P256 | KeyAlgorithm::P384 | KeyAlgorithm::Rsa { .. } => Ok(()),
    });
    match outcome {
        Err(error) if options.allow_plaintext && cannot(&error) => Ok(()),
        other => other,
    }
}
