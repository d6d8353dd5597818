//! The vendor's library, loaded once, and the token in it that a URI selects.
//!
//! Sessions are those of the binding; they must be dropped before the module is finalized. A library's state does not
//! survive fork(2): load it after forking.

mod error;
mod raw;
mod session;
mod token;

use std::{
    ffi::{CStr, CString},
    path::{Path, PathBuf},
    ptr::NonNull,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};
use cryptoki_sys::CKF_TOKEN_INITIALIZED;

pub use error::{LoginError, TokenError};
use raw::Functions;
pub use token::{Info, LibraryInfo, PinState, Token};

use super::{
    Pkcs11Error, TokenUri,
    calls::{Function, call},
};

/// Contents of a library's slots.
#[derive(Clone, Debug)]
pub struct Slots {
    /// The initialised tokens.
    pub tokens: Vec<Token>,
    /// Slots that cannot be read.
    pub unreadable: Vec<UnreadableSlot>,
}

/// A slot whose token cannot be read.
#[derive(Clone, Debug)]
pub struct UnreadableSlot {
    /// Number of the slot.
    pub slot: u64,
    /// The call's error.
    pub source: Pkcs11Error,
}

/// A vendor's PKCS#11 library, initialised. Clones share it.
#[derive(Clone, Debug)]
pub struct Module {
    pkcs11: Pkcs11,
    functions: Functions,
    path: PathBuf,
    process: u32,
}

impl Module {
    /// Loads and initialises the library (C_Initialize, with the system's own locks). Load each library once per
    /// process: some crash if they are loaded twice.
    ///
    /// # Errors
    /// If the file cannot be loaded, is not a PKCS#11 library, or does not initialise.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        Self::load_with(path, None)
    }

    /// The same, with a string for the library in the reserved field of C_Initialize's arguments (PKCS#11 v3.1, section
    /// 5.4): NSS expects its configuration there ([`TokenUri::library_parameters`]).
    ///
    /// # Errors
    /// Those of [`Module::load`].
    pub fn load_with(path: &Path, parameters: Option<&str>) -> Result<Self, TokenError> {
        let failed = |source: Pkcs11Error| TokenError::Module { path: path.to_owned(), source };
        let pkcs11 = Pkcs11::new(path).map_err(|e| failed(e.into()))?;
        let functions = Functions::of(path).map_err(|e| failed(e.into()))?;
        // The URI cannot contain control characters.
        let parameters = parameters.and_then(|text| CString::new(text).ok());
        let arguments = arguments(parameters.as_deref());
        if let Err(error) = call(Function::Initialize, || pkcs11.initialize(arguments)) {
            let fault = Pkcs11Error::from(error);
            if !fault.is(RvError::CryptokiAlreadyInitialized) {
                return Err(failed(fault));
            }
        }
        Ok(Self { pkcs11, functions, path: path.to_owned(), process: std::process::id() })
    }

    /// Path of the library.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The binding's own handle of the library, for functions that are not wrapped here: tests set up tokens with it.
    #[must_use]
    pub fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// Information about the library (C_GetInfo).
    ///
    /// # Errors
    /// If the call fails.
    pub fn info(&self) -> Result<LibraryInfo, Pkcs11Error> {
        Ok(LibraryInfo::from(&self.functions.info()?))
    }

    /// All initialised tokens, in the library's order, and the slots whose token cannot be read.
    ///
    /// # Errors
    /// If the slots cannot be listed.
    pub fn slots(&self) -> Result<Slots, TokenError> {
        if self.process != std::process::id() {
            return Err(TokenError::Forked(self.path.clone()));
        }
        let failed = |source: Pkcs11Error| TokenError::Call { module: self.path.clone(), source };
        let listed = call(Function::GetSlotList, || self.functions.slots_with_token()).map_err(|e| failed(e.into()))?;
        let mut slots = Slots { tokens: Vec::new(), unreadable: Vec::new() };
        for slot in listed {
            match call(Function::GetTokenInfo, || self.functions.token_info(slot)) {
                Ok(info) if info.flags & CKF_TOKEN_INITIALIZED != 0 => slots.tokens.push(Token {
                    pkcs11: self.pkcs11.clone(),
                    functions: self.functions.clone(),
                    slot,
                    info: Info::from(&info),
                    opening: session::Opening::default(),
                }),
                // Not initialised yet, or removed since the slots were listed.
                Ok(_) | Err(Error::Pkcs11(RvError::TokenNotPresent, _)) => {}
                Err(error) => {
                    let source = Pkcs11Error::from(error);
                    tracing::warn!(slot = slot.id(), error = %source, "a slot's token cannot be read");
                    slots.unreadable.push(UnreadableSlot { slot: slot.id(), source });
                }
            }
        }
        Ok(slots)
    }

    /// The only token that the URI selects.
    ///
    /// # Errors
    /// If no or several tokens match (the error lists the existing ones), or slots cannot be listed or read.
    pub fn find_token(&self, uri: &TokenUri) -> Result<Token, TokenError> {
        let Slots { tokens, unreadable } = self.slots()?;
        let (mut matching, others): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|t| t.info.matches(uri));
        let (module, wanted) = (self.path.clone(), Box::new(uri.clone()));
        match (matching.pop(), matching.is_empty()) {
            (Some(token), true) => Ok(token),
            (Some(token), false) => {
                matching.push(token);
                Err(TokenError::Ambiguous { module, uri: wanted, candidates: names(&matching) })
            }
            (None, _) => Err(match unreadable.into_iter().next() {
                Some(UnreadableSlot { slot, source }) => TokenError::Unreadable {
                    module: module.into(),
                    uri: wanted,
                    candidates: names(&others).into(),
                    slot,
                    source,
                },
                None => TokenError::NotFound { module, uri: wanted, candidates: names(&others) },
            }),
        }
    }

    /// Finalizes the library (C_Finalize); all its sessions must have been dropped.
    ///
    /// # Errors
    /// If the call fails.
    pub fn finalize(self) -> Result<(), Pkcs11Error> {
        call(Function::Finalize, || self.pkcs11.finalize()).map_err(Pkcs11Error::from)
    }
}

/// C_Initialize's arguments: the system's own locks, and the library's parameters if it has some.
fn arguments(parameters: Option<&CStr>) -> CInitializeArgs {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    match parameters {
        None => CInitializeArgs::new(flags),
        Some(text) => reserved(flags, text),
    }
}

#[expect(unsafe_code, reason = "the binding takes the reserved field as a bare pointer, and NSS takes nothing else")]
fn reserved(flags: CInitializeFlags, text: &CStr) -> CInitializeArgs {
    // SAFETY: the operator who sets the parameters states that this library reads a C string there, which this is; it
    // lives until C_Initialize has returned, since the only caller holds it. No library may keep the arguments for
    // longer.
    unsafe { CInitializeArgs::new_with_reserved(flags, NonNull::from(text).cast()) }
}

fn names(tokens: &[Token]) -> String {
    let names: Vec<String> = tokens
        .iter()
        .map(|t| format!("`{}` (serial {}, model {})", t.info.label, t.info.serial, t.info.model))
        .collect();
    if names.is_empty() { "no token".to_owned() } else { names.join(", ") }
}
