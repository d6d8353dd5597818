//! From the token's errors to the wire's.

use super::super::chain;
use crate::protocol::{Fault, FaultClass};
use token::{
    Recovery,
    key::KeyError,
    module::{LoginError, TokenError},
};

pub(super) fn fault_of(class: FaultClass, text: &str) -> Fault {
    Fault { class, code: 0, function: String::new(), text: text.to_owned() }
}

pub(super) fn fault(text: &str) -> Fault {
    fault_of(FaultClass::Settings, text)
}

pub(super) fn setting(error: &dyn std::error::Error) -> Fault {
    fault(&chain(error))
}

pub(super) fn pin_fault(text: &str) -> Fault {
    fault_of(FaultClass::Pin, text)
}

/// A PIN file that vanished may come back at any moment: that is no verdict on the PIN.
pub(super) fn pin_file_fault(text: &str) -> Fault {
    fault_of(FaultClass::Settings, text)
}

fn class(recovery: Recovery) -> FaultClass {
    match recovery {
        Recovery::Retry => FaultClass::Busy,
        Recovery::FixConfiguration => FaultClass::Key,
        Recovery::Relogin => FaultClass::Login,
        Recovery::FixPin => FaultClass::Pin,
        Recovery::RejectRequest => FaultClass::Request,
        Recovery::NewSession | Recovery::Ignore => FaultClass::Session,
        Recovery::NewProcess => FaultClass::Module,
    }
}

pub(super) fn call_fault(error: &token::Pkcs11Error, function: &str) -> Fault {
    Fault {
        class: class(error.recovery()),
        code: error.code().unwrap_or_default(),
        function: function.to_owned(),
        text: error.to_string(),
    }
}

pub(super) fn token_fault(error: &TokenError) -> Fault {
    let class = match error.recovery() {
        Recovery::FixConfiguration => FaultClass::Settings,
        other => class(other),
    };
    fault_of(class, &chain(error))
}

pub(super) fn login_fault(error: &LoginError) -> Fault {
    let (code, function) = match error {
        LoginError::Call { source, .. } | LoginError::WrongPin { source, .. } => (source.code(), "C_Login"),
        LoginError::FinalTry(_) | LoginError::Locked(_) | LoginError::Unset(_) => (None, ""),
    };
    Fault {
        class: class(error.recovery()),
        code: code.unwrap_or_default(),
        function: function.to_owned(),
        text: chain(error),
    }
}

pub(super) fn key_fault(error: &KeyError) -> Fault {
    match error {
        KeyError::Call { source, .. } => Fault { text: chain(error), ..call_fault(source, "C_FindObjects") },
        KeyError::Ambiguous { .. } | KeyError::NotFound(_) | KeyError::Public { .. } | KeyError::Unfit { .. } => {
            fault_of(FaultClass::Key, &chain(error))
        }
    }
}

pub(super) fn sign_fault(error: &token::mechanism::SignError) -> Fault {
    match error {
        token::mechanism::SignError::Call(source) => Fault { text: chain(error), ..call_fault(source, "C_Sign") },
        token::mechanism::SignError::Length { .. } => fault_of(FaultClass::Session, &chain(error)),
    }
}
