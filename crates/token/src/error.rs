//! PKCS#11 errors: every return code (CK_RV) maps to one [`Recovery`] step; see the table in [`codes`].
//!
//! The mapping defines the first step only. If it does not help, the token host escalates: new session, new login, new
//! process.

use std::{
    borrow::Cow,
    fmt::{self, Display},
};

use cryptoki::{
    context::Function,
    error::{Error, RvError},
};
use process::error::Remedy;

pub mod codes;
mod meaning;

pub use codes::{Entry, TABLE, code_of, entry};

/// The recovery after a return code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// The operator must change the token, the key or the configuration. Retried rarely.
    FixConfiguration,
    /// The key is missing, or its attributes or mechanisms are not suitable. No return code means this in general: the
    /// token host reports it for a call that uses a key and returned a code with `FixConfiguration`.
    FixKey,
    /// The PIN is wrong or unusable. Not retried until the PIN file changes.
    FixPin,
    /// The call can be treated as successful.
    Ignore,
    /// The library or its token has failed: start a new host process.
    NewProcess,
    /// Drop the session, open another one and look the objects up again.
    NewSession,
    /// This request fails in every session; others may succeed.
    RejectRequest,
    /// Log in again, then open a new session.
    Relogin,
    /// The token is overloaded: repeat the same call later.
    Retry,
}

/// A failed call, with the step of the operation that it was part of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token failed to {step}")]
pub struct CallError {
    /// The step, as in "the token failed to ...".
    pub step: &'static str,
    /// The call's error.
    #[source]
    pub source: Pkcs11Error,
}

/// A failed PKCS#11 call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Error {
    recovery: Recovery,
    code: Option<u64>,
    text: String,
    remedy: Option<&'static str>,
}

impl Pkcs11Error {
    /// The first recovery step.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// The return code (CK_RV), if the token returned one.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        self.code
    }

    /// Whether the token returned this code.
    #[must_use]
    pub fn is(&self, rv: RvError) -> bool {
        self.code == Some(code_of(rv))
    }

    /// Whether the token cannot do such a call with such arguments, so that another way may work; not a fault of the
    /// moment, a missing permission or a refusal by a person.
    #[must_use]
    pub fn is_inability(&self) -> bool {
        let Some(code) = self.code else { return false };
        let fixed_elsewhere = [
            RvError::FunctionRejected,
            RvError::SessionReadOnly,
            RvError::TokenWriteProtected,
            RvError::UserTypeInvalid,
        ];
        match self.recovery {
            Recovery::FixConfiguration | Recovery::FixKey | Recovery::RejectRequest => {
                !fixed_elsewhere.iter().any(|rv| self.is(*rv))
            }
            // What some tokens return for a mechanism, a parameter or a type of key that they lack.
            Recovery::NewSession => [
                RvError::ArgumentsBad,
                RvError::FunctionFailed,
                RvError::KeyFunctionNotPermitted,
                RvError::KeyTypeInconsistent,
            ]
            .into_iter()
            .any(|rv| code == code_of(rv)),
            Recovery::FixPin | Recovery::Ignore | Recovery::NewProcess | Recovery::Relogin | Recovery::Retry => false,
        }
    }

    fn returned(rv: RvError, function: Function) -> Self {
        let code = code_of(rv);
        let entry = entry(code);
        let meaning = meaning::meaning(code).unwrap_or(entry.reason);
        Self {
            recovery: entry.recovery,
            code: Some(code),
            text: format!("C_{function:?} returned {} (0x{code:x}): {meaning}", entry.name),
            remedy: meaning::advice(code, function),
        }
    }

    fn without_code(recovery: Recovery, text: String) -> Self {
        Self { recovery, code: None, text, remedy: None }
    }
}

impl Display for Pkcs11Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Pkcs11Error {}

impl Remedy for Pkcs11Error {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        self.remedy.map(Cow::Borrowed)
    }
}

/// What a person can do about the PKCS#11 call that an error comes from.
#[must_use]
pub fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut causes = std::iter::successors(Some(error), |&cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref::<Pkcs11Error>()).and_then(|error| error.remedy)
}

impl From<Error> for Pkcs11Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Pkcs11(rv, function) => Self::returned(rv, function),
            Error::LibraryLoading(error) => {
                Self::without_code(Recovery::FixConfiguration, format!("the library cannot be loaded: {error}"))
            }
            Error::MissingSymbol(symbol) => Self::without_code(
                Recovery::FixConfiguration,
                format!("the library is not a PKCS#11 module: it lacks {symbol}"),
            ),
            Error::NullFunctionPointer => {
                Self::without_code(Recovery::FixConfiguration, "the library lacks a required function".to_owned())
            }
            Error::PinNotSet => Self::without_code(Recovery::FixPin, "no PIN was given".to_owned()),
            // The binding could not decode the token's response. As with any wrong response, the session is replaced
            // first.
            error @ (Error::NotSupported
            | Error::InvalidValue
            | Error::TryFromInt(_)
            | Error::TryFromSlice(_)
            | Error::ParseInt(_)
            | Error::Utf8(_)
            | Error::NulError(_)) => {
                Self::without_code(Recovery::NewSession, format!("the token's response cannot be decoded: {error}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_function_code_and_meaning() {
        let fault = Pkcs11Error::from(Error::Pkcs11(RvError::PinIncorrect, Function::Login));
        assert_eq!(fault.recovery(), Recovery::FixPin);
        assert_eq!(fault.code(), Some(0xa0));
        assert!(fault.is(RvError::PinIncorrect));
        assert!(fault.to_string().starts_with("C_Login returned CKR_PIN_INCORRECT (0xa0): "), "{fault}");
    }

    #[test]
    fn only_a_lack_of_ability_leads_to_another_way() {
        for (rv, expected) in [
            (RvError::MechanismInvalid, true),
            (RvError::FunctionNotSupported, true),
            (RvError::AttributeValueInvalid, true),
            (RvError::FunctionFailed, true),
            (RvError::DeviceError, false),
            (RvError::DeviceMemory, false),
            (RvError::GeneralError, false),
            (RvError::SessionHandleInvalid, false),
            (RvError::TokenWriteProtected, false),
            (RvError::UserNotLoggedIn, false),
        ] {
            let fault = Pkcs11Error::from(Error::Pkcs11(rv, Function::UnwrapKey));
            assert_eq!(fault.is_inability(), expected, "{fault}");
        }
    }

    #[test]
    fn errors_without_a_code_have_a_recovery() {
        let cases = [
            (Error::MissingSymbol("C_GetFunctionList"), Recovery::FixConfiguration),
            (Error::NullFunctionPointer, Recovery::FixConfiguration),
            (Error::PinNotSet, Recovery::FixPin),
            (Error::InvalidValue, Recovery::NewSession),
            (Error::NotSupported, Recovery::NewSession),
        ];
        for (error, recovery) in cases {
            let fault = Pkcs11Error::from(error);
            assert_eq!((fault.recovery(), fault.code()), (recovery, None), "{fault}");
        }
    }
}
