//! From the token's errors to the wire's.

use super::super::chain;
use crate::protocol::{Fault, FaultClass};
use token::{
    Class,
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

fn class(class: Class) -> FaultClass {
    match class {
        Class::Busy => FaultClass::Busy,
        Class::Configuration => FaultClass::Key,
        Class::Login => FaultClass::Login,
        Class::Pin => FaultClass::Pin,
        Class::Request => FaultClass::Request,
        Class::Session | Class::Success => FaultClass::Session,
        Class::Token => FaultClass::Module,
    }
}

pub(super) fn call_fault(error: &token::Fault, function: &str) -> Fault {
    Fault {
        class: class(error.class()),
        code: error.code().unwrap_or_default(),
        function: function.to_owned(),
        text: error.to_string(),
    }
}

pub(super) fn token_fault(error: &TokenError) -> Fault {
    let class = match error.class() {
        Class::Configuration => FaultClass::Settings,
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
        class: class(error.class()),
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

pub(super) fn sign_fault(error: &token::mechanism::SignFault) -> Fault {
    match error {
        token::mechanism::SignFault::Call(source) => Fault { text: chain(error), ..call_fault(source, "C_Sign") },
        token::mechanism::SignFault::Length { .. } => fault_of(FaultClass::Session, &chain(error)),
    }
}
