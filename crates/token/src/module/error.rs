//! Why there is no module, no token or no login.

use std::{borrow::Cow, path::PathBuf};

use crate::{Pkcs11Error, Recovery, TokenUri};
use process::error::{Advice, Remedy};

/// Why there is no module or no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Several tokens match.
    #[error("several tokens in {module} match {uri}: {candidates}{advice}", advice = Advice(self))]
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
    #[error("the library {0} was loaded before this process was forked{advice}", advice = Advice(self))]
    Forked(PathBuf),
    /// The library cannot be loaded or initialised.
    #[error("the PKCS#11 library {path} cannot be used{advice}", advice = Advice(self))]
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
    /// No token that can be read matches.
    #[error(
        "no token in {module} matches {uri}; it holds {candidates}, and a token in slot {slot} that cannot be \
         read{advice}",
        advice = Advice(self)
    )]
    Unreadable {
        /// The library.
        module: PathBuf,
        /// What was asked for.
        uri: Box<TokenUri>,
        /// The tokens that can be read.
        candidates: String,
        /// The first slot that cannot be read.
        slot: u64,
        /// What the library answered.
        #[source]
        source: Pkcs11Error,
    },
}

impl Remedy for TokenError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ambiguous { .. } => Some("add serial= to the URI".into()),
            Self::Forked(_) => Some("load it afterwards".into()),
            Self::Module { .. } => Some("check module-path and the library's own configuration".into()),
            Self::Unreadable { .. } => Some("see with the vendor's tool what is wrong with that slot".into()),
            Self::Call { .. } | Self::NotFound { .. } => None,
        }
    }
}

impl TokenError {
    /// What to do next.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Ambiguous { .. } => Recovery::FixConfiguration,
            Self::Call { source, .. } | Self::Module { source, .. } => source.recovery(),
            // An absent token, or a library that sees it only after being loaded again.
            Self::Forked(_) | Self::NotFound { .. } | Self::Unreadable { .. } => Recovery::NewProcess,
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
    #[error("the token `{0}` has one PIN try left, which is not spent{advice}", advice = Advice(self))]
    FinalTry(String),
    /// The token is locked.
    #[error("the PIN of the token `{0}` is locked{advice}", advice = Advice(self))]
    Locked(String),
    /// The token has no user PIN.
    #[error("the token `{0}` has no user PIN yet{advice}", advice = Advice(self))]
    Unset(String),
    /// Wrong PIN, which is not tried again.
    #[error("the token `{label}` refuses the PIN{advice}", advice = Advice(self))]
    WrongPin {
        /// The token's label.
        label: String,
        /// What the token answered.
        #[source]
        source: Pkcs11Error,
    },
}

impl Remedy for LoginError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::FinalTry(_) => Some("log in by the vendor's tool with the right PIN".into()),
            Self::Locked(_) => Some("have its security officer unlock it".into()),
            Self::Unset(_) => Some("have its security officer set one".into()),
            Self::WrongPin { .. } => Some("correct the PIN file, the PIN is not tried again before".into()),
            Self::Call { .. } => None,
        }
    }
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
