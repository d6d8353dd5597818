//! Errors of modules, tokens and logins.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use crate::{Pkcs11Error, Recovery, TokenUri};
use process::error::{Advice, Remedy};

/// No module or no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Several tokens match.
    #[error("several tokens in {module} match {uri}: {candidates}{advice}", advice = Advice(self))]
    Ambiguous {
        /// Path of the library.
        module: PathBuf,
        /// The URI.
        uri: Box<TokenUri>,
        /// The matching tokens.
        candidates: String,
    },
    /// A call failed.
    #[error("the token's library {module} failed")]
    Call {
        /// Path of the library.
        module: PathBuf,
        /// The call's error.
        #[source]
        source: Pkcs11Error,
    },
    /// The process forked after the library was loaded.
    #[error("the library {0} was loaded before this process was forked{advice}", advice = Advice(self))]
    Forked(PathBuf),
    /// The library cannot be loaded or initialised.
    #[error("the PKCS#11 library {path} cannot be used{advice}", advice = Advice(self))]
    Module {
        /// Path of the library.
        path: PathBuf,
        /// The error.
        #[source]
        source: Pkcs11Error,
    },
    /// No token matches.
    #[error("no token in {module} matches {uri}; it holds {candidates}{advice}", advice = Advice(self))]
    NotFound {
        /// Path of the library.
        module: PathBuf,
        /// The URI.
        uri: Box<TokenUri>,
        /// The existing tokens.
        candidates: String,
    },
    /// No readable token matches.
    #[error(
        "no token in {module} matches {uri}; it holds {candidates}, and a token in slot {slot} that cannot be \
         read{advice}",
        advice = Advice(self)
    )]
    Unreadable {
        /// Path of the library.
        module: Box<Path>,
        /// The URI.
        uri: Box<TokenUri>,
        /// The readable tokens.
        candidates: Box<str>,
        /// The first slot that cannot be read.
        slot: u64,
        /// The call's error.
        #[source]
        source: Pkcs11Error,
    },
}

impl Remedy for TokenError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Ambiguous { .. } => Some("add serial= to the URI".into()),
            Self::Forked(_) => Some("load it afterwards".into()),
            Self::Module { path, source } => Some(initialize_remedy(path, source)),
            Self::Unreadable { .. } => Some("see with the vendor's tool what is wrong with that slot".into()),
            Self::NotFound { module, .. } => no_token_remedy(module, softhsm_conf()).map(Cow::Owned),
            Self::Call { .. } => None,
        }
    }
}

/// What to do about a library that cannot be loaded or initialised.
fn initialize_remedy(path: &Path, source: &Pkcs11Error) -> Cow<'static, str> {
    match source.code() {
        // SoftHSM answers CKR_GENERAL_ERROR whatever is wrong with its configuration.
        Some(_) if is_softhsm(path) => softhsm_remedy(softhsm_conf()).into(),
        Some(_) => "check that this user may read the library's configuration, and that its service or device can be \
                    reached"
            .into(),
        None => "check module-path and the library's own configuration".into(),
    }
}

/// What to do about a missing token: SoftHSM then uses the system's configuration.
fn no_token_remedy(module: &Path, conf: Option<PathBuf>) -> Option<String> {
    (is_softhsm(module) && conf.is_none()).then(|| softhsm_remedy(None))
}

fn softhsm_conf() -> Option<PathBuf> {
    std::env::var_os("SOFTHSM2_CONF").map(PathBuf::from)
}

fn is_softhsm(module: &Path) -> bool {
    module.file_name().is_some_and(|name| name.to_string_lossy().contains("softhsm"))
}

/// What to do about SoftHSM's configuration, which the variable SOFTHSM2_CONF names.
fn softhsm_remedy(conf: Option<PathBuf>) -> String {
    match conf.map(|path| (std::fs::File::open(&path), path)) {
        None => "set SOFTHSM2_CONF to SoftHSM's configuration file (for the daemon: `environment = { SOFTHSM2_CONF = \
                 \"/path/to/softhsm2.conf\" }` in [[token]]), or let this user read /etc/softhsm/softhsm2.conf; the \
                 variable is not set"
            .to_owned(),
        Some((Err(error), path)) => {
            format!("let this user read {}, which SOFTHSM2_CONF names: {error}", path.display())
        }
        Some((Ok(_), path)) => format!(
            "check directories.tokendir in {}: this user must be allowed to read and write that directory",
            path.display()
        ),
    }
}

impl TokenError {
    /// The recovery.
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

/// What looks odd about a PIN that a token has refused; says nothing else about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinOddity {
    /// It begins or ends with white space.
    Blank,
    /// It stands in quotes.
    Quoted,
}

impl PinOddity {
    pub(super) fn of(pin: &str) -> Option<Self> {
        let quoted = |quote| pin.len() > 1 && pin.starts_with(quote) && pin.ends_with(quote);
        if pin.trim() != pin {
            Some(Self::Blank)
        } else if quoted('"') || quoted('\'') {
            Some(Self::Quoted)
        } else {
            None
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Blank => "; the given PIN begins or ends with a blank, which was sent as a part of it",
            Self::Quoted => "; the given PIN stands in quotes, which were sent as a part of it",
        }
    }
}

/// Why the login failed or was not tried.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoginError {
    /// The login call, or reading the token's state before it, failed.
    #[error("the login at the token `{label}` failed")]
    Call {
        /// Label of the token.
        label: String,
        /// The call's error.
        #[source]
        source: Pkcs11Error,
    },
    /// One more wrong PIN would lock the token.
    #[error("the token `{0}` has one PIN try left, which is not spent{advice}", advice = Advice(self))]
    FinalTry(String),
    /// The token is locked.
    #[error("the PIN of the token `{0}` is locked{advice}", advice = Advice(self))]
    Locked(String),
    /// The token requires a login, and no PIN is given.
    #[error("the token `{0}` requires a login, and no PIN is given{advice}", advice = Advice(self))]
    NoPin(String),
    /// The token has no user PIN.
    #[error("the token `{0}` has no user PIN yet{advice}", advice = Advice(self))]
    Unset(String),
    /// The PIN is wrong and is not tried again.
    #[error("the token `{label}` refuses the PIN{advice}", advice = Advice(self))]
    WrongPin {
        /// Label of the token.
        label: String,
        /// What looks odd about the PIN.
        oddity: Option<PinOddity>,
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
            Self::NoPin(_) => Some("add pin-source=file:/path/to/pin to the token URI".into()),
            Self::Unset(_) => Some("have its security officer set one".into()),
            Self::WrongPin { oddity, .. } => {
                let hint = oddity.map_or("", PinOddity::hint);
                let text = "correct the PIN file; it must hold the user's PIN, not the security officer's (SO PIN)";
                Some(format!("{text}{hint}").into())
            }
            Self::Call { .. } => None,
        }
    }
}

impl LoginError {
    /// The recovery.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Call { source, .. } => source.recovery(),
            Self::FinalTry(_) | Self::Locked(_) | Self::Unset(_) | Self::WrongPin { .. } => Recovery::FixPin,
            Self::NoPin(_) => Recovery::FixConfiguration,
        }
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::{
        context::Function,
        error::{Error, RvError},
    };

    use super::*;

    fn remedy(path: &str, error: Error) -> String {
        let error = TokenError::Module { path: path.into(), source: error.into() };
        error.remedy().unwrap().into_owned()
    }

    #[test]
    fn failed_initialization_names_the_configuration() {
        let general = || Error::Pkcs11(RvError::GeneralError, Function::Initialize);
        assert!(remedy("/usr/lib/vendor.so", general()).contains("may read the library's configuration"));
        assert!(remedy("/usr/lib/softhsm/libsofthsm2.so", general()).contains("SOFTHSM2_CONF"));
        assert!(remedy("/x.so", Error::MissingSymbol("C_GetFunctionList")).contains("module-path"));
        let file = tempfile::NamedTempFile::new().unwrap();
        for (conf, expected) in [
            (None, "the variable is not set"),
            (Some(PathBuf::from("/nowhere/softhsm2.conf")), "let this user read /nowhere/softhsm2.conf"),
            (Some(file.path().to_owned()), "check directories.tokendir"),
        ] {
            let text = softhsm_remedy(conf);
            assert!(text.contains(expected), "{text}");
        }
        let softhsm = Path::new("/usr/lib/softhsm/libsofthsm2.so");
        assert!(no_token_remedy(softhsm, None).is_some_and(|text| text.contains("the variable is not set")));
        assert_eq!(no_token_remedy(softhsm, Some(file.path().to_owned())), None);
        assert_eq!(no_token_remedy(Path::new("/usr/lib/vendor.so"), None), None);
    }

    #[test]
    fn odd_pin_is_described_without_its_content() {
        for (pin, expected) in [
            ("1234", None),
            ("12 34", None),
            ("\"", None),
            ("1234 ", Some(PinOddity::Blank)),
            ("\t1234", Some(PinOddity::Blank)),
            ("1234\u{a0}", Some(PinOddity::Blank)),
            ("\"1234\"", Some(PinOddity::Quoted)),
            ("'1234'", Some(PinOddity::Quoted)),
        ] {
            let oddity = PinOddity::of(pin);
            assert_eq!(oddity, expected, "{pin:?}");
            let source = Error::Pkcs11(RvError::PinIncorrect, Function::Login).into();
            let text = LoginError::WrongPin { label: "a".to_owned(), oddity, source }.to_string();
            assert!(!text.contains("1234") && text.contains("not the security officer's"), "{text}");
        }
    }
}
