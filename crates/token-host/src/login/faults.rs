//! Converts the token's errors to those of the protocol.

use super::super::chain;
use crate::protocol::Fault;
use token::{
    Recovery,
    key::KeyError,
    module::{LoginError, TokenError},
};

pub(super) fn fault_of(recovery: Recovery, text: &str) -> Fault {
    Fault { recovery, code: 0, function: String::new(), text: text.to_owned() }
}

pub(super) fn fault(text: &str) -> Fault {
    fault_of(Recovery::FixConfiguration, text)
}

pub(super) fn setting(error: &dyn std::error::Error) -> Fault {
    fault(&chain(error))
}

pub(super) fn pin_fault(text: &str) -> Fault {
    fault_of(Recovery::FixPin, text)
}

/// A missing PIN file may come back at any time; it does not mean that the PIN is wrong.
pub(super) fn pin_file_fault(text: &str) -> Fault {
    fault_of(Recovery::FixConfiguration, text)
}

/// Recovery for a call that uses a key: the return code concerns the key, not the host's configuration.
fn of_key(recovery: Recovery) -> Recovery {
    match recovery {
        Recovery::FixConfiguration => Recovery::FixKey,
        // Only C_Login and C_Initialize succeed with such a code, and they have handled it.
        Recovery::Ignore => Recovery::NewSession,
        other => other,
    }
}

pub(super) fn call_fault(error: &token::Pkcs11Error, function: &str) -> Fault {
    Fault {
        recovery: of_key(error.recovery()),
        code: error.code().unwrap_or_default(),
        function: function.to_owned(),
        text: error.to_string(),
    }
}

pub(super) fn token_fault(error: &TokenError) -> Fault {
    fault_of(error.recovery(), &chain(error))
}

pub(super) fn login_fault(error: &LoginError) -> Fault {
    let (code, function) = match error {
        LoginError::Call { source, .. } | LoginError::WrongPin { source, .. } => (source.code(), "C_Login"),
        LoginError::FinalTry(_) | LoginError::Locked(_) | LoginError::NoPin(_) | LoginError::Unset(_) => (None, ""),
    };
    let recovery = match error {
        LoginError::NoPin(_) => Recovery::FixConfiguration,
        other => of_key(other.recovery()),
    };
    let code = code.unwrap_or_default();
    Fault { recovery, code, function: function.to_owned(), text: chain(error) }
}

pub(super) fn key_fault(error: &KeyError) -> Fault {
    match error {
        KeyError::Call { source, .. } => Fault { text: chain(error), ..call_fault(source, "C_FindObjects") },
        KeyError::Ambiguous { .. }
        | KeyError::NoneSigns { .. }
        | KeyError::NotFound(_)
        | KeyError::Public { .. }
        | KeyError::Unfit { .. } => fault_of(Recovery::FixKey, &chain(error)),
    }
}

pub(super) fn sign_fault(error: &token::mechanism::SignError) -> Fault {
    match error {
        token::mechanism::SignError::Call(source) => Fault { text: chain(error), ..call_fault(source, "C_Sign") },
        token::mechanism::SignError::Length { .. } => fault_of(Recovery::NewSession, &chain(error)),
    }
}
