//! What a token's answer means for recovery: every return code of PKCS#11 belongs to one [`Class`].
//!
//! The table is in [`codes`]. It says what to do next, not what went wrong in detail: the ladder of the token host
//! (another session, another login, another host) climbs by itself when a rung does not help. Called by all that
//! talks to a token.

use std::fmt::{self, Display};

use cryptoki::{
    context::Function,
    error::{Error, RvError},
};

pub mod codes;

pub use codes::{Entry, TABLE, code_of, entry};

/// What to do after a return code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Too much is asked of the token at once: the same again later.
    Busy,
    /// The operator must change the token, the key or our configuration; tried again seldom.
    Configuration,
    /// Log in again, then a new session.
    Login,
    /// About the PIN: not tried again until the PIN's file changes.
    Pin,
    /// This request cannot be done, whichever session does it; others may.
    Request,
    /// Drop the session, open another one and look the objects up afresh.
    Session,
    /// As good as done.
    Success,
    /// The library or its token is gone: a new host process.
    Token,
}

/// A call of a longer work that failed, and what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token failed to {step}")]
pub struct CallError {
    /// What was to be done.
    pub step: &'static str,
    /// What the token answered.
    #[source]
    pub source: Fault,
}

/// A PKCS#11 call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    class: Class,
    code: Option<u64>,
    text: String,
}

impl Fault {
    /// What to do next.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }

    /// The return code (CK_RV), where the token gave one.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        self.code
    }

    /// Whether the token gave this return code.
    #[must_use]
    pub fn is(&self, rv: RvError) -> bool {
        self.code == Some(code_of(rv))
    }

    fn answered(rv: RvError, function: Function) -> Self {
        let code = code_of(rv);
        let entry = entry(code);
        Self {
            class: entry.class,
            code: Some(code),
            text: format!("C_{function:?} answered {} (0x{code:x}): {}", entry.name, entry.reason),
        }
    }

    fn without_code(class: Class, text: String) -> Self {
        Self { class, code: None, text }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Pkcs11(rv, function) => Self::answered(rv, function),
            Error::LibraryLoading(error) => {
                Self::without_code(Class::Configuration, format!("the library cannot be loaded: {error}"))
            }
            Error::MissingSymbol(symbol) => {
                Self::without_code(Class::Configuration, format!("the library is no PKCS#11 module: it lacks {symbol}"))
            }
            Error::NullFunctionPointer => {
                Self::without_code(Class::Configuration, "the library lacks a function that is needed".to_owned())
            }
            Error::PinNotSet => Self::without_code(Class::Pin, "no PIN was given".to_owned()),
            // The binding could not read what the token answered, or the token's answer is out of every range: as
            // with any wrong answer, the session is the first thing to replace.
            error @ (Error::NotSupported
            | Error::InvalidValue
            | Error::TryFromInt(_)
            | Error::TryFromSlice(_)
            | Error::ParseInt(_)
            | Error::Utf8(_)
            | Error::NulError(_)) => {
                Self::without_code(Class::Session, format!("the token's answer cannot be read: {error}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_function_code_and_meaning() {
        let fault = Fault::from(Error::Pkcs11(RvError::PinIncorrect, Function::Login));
        assert_eq!(fault.class(), Class::Pin);
        assert_eq!(fault.code(), Some(0xa0));
        assert!(fault.is(RvError::PinIncorrect));
        assert!(fault.to_string().starts_with("C_Login answered CKR_PIN_INCORRECT (0xa0): "), "{fault}");
    }

    #[test]
    fn faults_without_a_code_have_a_class() {
        let cases = [
            (Error::MissingSymbol("C_GetFunctionList"), Class::Configuration),
            (Error::NullFunctionPointer, Class::Configuration),
            (Error::PinNotSet, Class::Pin),
            (Error::InvalidValue, Class::Session),
            (Error::NotSupported, Class::Session),
        ];
        for (error, class) in cases {
            let fault = Fault::from(error);
            assert_eq!((fault.class(), fault.code()), (class, None), "{fault}");
        }
    }
}
