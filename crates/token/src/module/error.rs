//! Why there is no module, no token or no login.

use std::path::PathBuf;

use crate::{Pkcs11Error, Recovery, TokenUri};

/// Why there is no module or no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Several tokens match.
    #[error("several tokens in {module} match {uri}: {candidates}; add serial= to the URI")]
    Ambiguous {
        /// The library.
        module: PathBuf,
        /// What was asked for.
        uri: Box<TokenUri>,
        /// The tokens that match.
        candidates: String,
    },
    /// A call failed.
    #[error("the token's library {module} failed")]
    Call {
        /// The library.
        module: PathBuf,
        /// What the library answered.
        #[source]
        source: Pkcs11Error,
    },
    /// The process forked after the library was loaded.
    #[error("the library {0} was loaded before this process was forked; load it afterwards")]
    Forked(PathBuf),
    /// The library cannot be loaded or initialised.
    #[error("the PKCS#11 library {path} cannot be used; check module-path and the library's own configuration")]
    Module {
        /// The library.
        path: PathBuf,
        /// Why.
        #[source]
        source: Pkcs11Error,
    },
    /// No token matches.
    #[error("no token in {module} matches {uri}; it holds {candidates}")]
    NotFound {
        /// The library.
        module: PathBuf,
        /// What was asked for.
        uri: Box<TokenUri>,
        /// The tokens that there are.
        candidates: String,
    },
}

impl TokenError {
    /// What to do next.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Ambiguous { .. } => Recovery::FixConfiguration,
            Self::Call { source, .. } | Self::Module { source, .. } => source.recovery(),
            // A token that is away, or a library that must be loaded afresh to see it.
            Self::Forked(_) | Self::NotFound { .. } => Recovery::NewProcess,
        }
    }
}

/// Why the login failed or was not tried.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoginError {
    /// The login call or the look at the token before it failed.
    #[error("the login at the token `{label}` failed")]
    Call {
        /// The token's label.
        label: String,
        /// What the token answered.
        #[source]
        source: Pkcs11Error,
    },
    /// One more wrong PIN would lock the token.
    #[error("the token `{0}` has one PIN try left, which is not spent; log in by the vendor's tool with the right PIN")]
    FinalTry(String),
    /// The token is locked.
    #[error("the PIN of the token `{0}` is locked; have its security officer unlock it")]
    Locked(String),
    /// The token has no user PIN.
    #[error("the token `{0}` has no user PIN yet; have its security officer set one")]
    Unset(String),
    /// Wrong PIN, which is not tried again.
    #[error("the token `{label}` refuses the PIN; correct the PIN file, the PIN is not tried again before")]
    WrongPin {
        /// The token's label.
        label: String,
        /// What the token answered.
        #[source]
        source: Pkcs11Error,
    },
}

impl LoginError {
    /// What to do next.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Call { source, .. } => source.recovery(),
            Self::FinalTry(_) | Self::Locked(_) | Self::Unset(_) | Self::WrongPin { .. } => Recovery::FixPin,
        }
    }
}
