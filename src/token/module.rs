//! The vendor's library, loaded once, and the token in it that a URI selects.
//!
//! Sessions are the binding's own; they must be dropped before the module is finalized. A library's state does not
//! survive fork(2): who forks loads it afterwards. Called by the token host and by admin commands.

use std::{
    ffi::{CStr, CString},
    path::{Path, PathBuf},
    ptr::NonNull,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::RvError,
    mechanism::MechanismType,
    session::{Session, UserType},
    slot::{Limit, Slot, TokenInfo},
};
use secrecy::SecretString;
use serde::Serialize;

use super::{
    Class, Fault, TokenUri,
    calls::{Function, call},
};

/// A vendor's PKCS#11 library, initialised. Clones share it.
#[derive(Clone, Debug)]
pub struct Module {
    pkcs11: Pkcs11,
    path: PathBuf,
    process: u32,
}

/// A token in a slot of the module.
#[derive(Clone, Debug)]
pub struct Token {
    pkcs11: Pkcs11,
    slot: Slot,
    info: Info,
}

/// What a token says of itself (CK_TOKEN_INFO).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Its label, as the operator set it.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Its model.
    pub model: String,
    /// Its manufacturer.
    pub manufacturer: String,
    /// Hardware version, `major.minor`.
    pub hardware: String,
    /// Firmware version, `major.minor`.
    pub firmware: String,
    /// Most sessions of one application at once; none if the token tells no limit.
    pub max_sessions: Option<u64>,
    /// Whether new objects are refused.
    pub write_protected: bool,
    /// What is known of the PIN.
    pub pin: PinState,
}

/// The state of the user's PIN, as the token tells it; some tokens never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PinState {
    /// A wrong PIN was tried since the last good one.
    CountLow,
    /// One more wrong PIN locks the token.
    FinalTry,
    /// No PIN is taken any more.
    Locked,
    /// Nothing to remark.
    Normal,
    /// The security officer has set none.
    Unset,
}

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
        source: Fault,
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
        source: Fault,
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
    pub fn class(&self) -> Class {
        match self {
            Self::Ambiguous { .. } => Class::Configuration,
            Self::Call { source, .. } | Self::Module { source, .. } => source.class(),
            // A token that is away, or a library that must be loaded afresh to see it.
            Self::Forked(_) | Self::NotFound { .. } => Class::Token,
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
        source: Fault,
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
        source: Fault,
    },
}

impl LoginError {
    /// What to do next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Call { source, .. } => source.class(),
            Self::FinalTry(_) | Self::Locked(_) | Self::Unset(_) | Self::WrongPin { .. } => Class::Pin,
        }
    }
}

impl Module {
    /// Loads and initialises the library (C_Initialize, with the system's own locks). Load each library once a
    /// process: some crash when they are loaded twice.
    ///
    /// # Errors
    /// When the file cannot be loaded, is no PKCS#11 library, or does not initialise.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        Self::load_with(path, None)
    }

    /// The same, with text for the library in the reserved field of C_Initialize's arguments (PKCS#11 v3.1, section
    /// 5.4): NSS wants its configuration there ([`TokenUri::library_parameters`]).
    ///
    /// # Errors
    /// As [`Module::load`].
    pub fn load_with(path: &Path, parameters: Option<&str>) -> Result<Self, TokenError> {
        let failed = |source: Fault| TokenError::Module { path: path.to_owned(), source };
        let pkcs11 = Pkcs11::new(path).map_err(|e| failed(e.into()))?;
        // The URI lets no control character through.
        let parameters = parameters.and_then(|text| CString::new(text).ok());
        let arguments = arguments(parameters.as_deref());
        if let Err(error) = call(Function::Initialize, || pkcs11.initialize(arguments)) {
            let fault = Fault::from(error);
            if !fault.is(RvError::CryptokiAlreadyInitialized) {
                return Err(failed(fault));
            }
        }
        Ok(Self { pkcs11, path: path.to_owned(), process: std::process::id() })
    }

    /// Where the library was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The binding's own handle of the library, for what is not wrapped here: tests set up tokens with it.
    #[must_use]
    pub fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// All initialised tokens, in the library's order. A slot whose token cannot be read is told and left out.
    ///
    /// # Errors
    /// When the slots cannot be listed.
    pub fn tokens(&self) -> Result<Vec<Token>, TokenError> {
        if self.process != std::process::id() {
            return Err(TokenError::Forked(self.path.clone()));
        }
        let failed = |source: Fault| TokenError::Call { module: self.path.clone(), source };
        let slots = call(Function::GetSlotList, || self.pkcs11.get_slots_with_token()).map_err(|e| failed(e.into()))?;
        let mut tokens = Vec::new();
        for slot in slots {
            match call(Function::GetTokenInfo, || self.pkcs11.get_token_info(slot)) {
                Ok(info) if info.token_initialized() => {
                    tokens.push(Token { pkcs11: self.pkcs11.clone(), slot, info: Info::from(&info) });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(slot = slot.id(), error = %Fault::from(error), "a slot's token cannot be read");
                }
            }
        }
        Ok(tokens)
    }

    /// The one token that the URI selects.
    ///
    /// # Errors
    /// When none or several match (the error names those there are), or the slots cannot be listed.
    pub fn find_token(&self, uri: &TokenUri) -> Result<Token, TokenError> {
        let (mut matching, others): (Vec<_>, Vec<_>) = self.tokens()?.into_iter().partition(|t| t.info.matches(uri));
        let (module, wanted) = (self.path.clone(), Box::new(uri.clone()));
        match (matching.pop(), matching.is_empty()) {
            (Some(token), true) => Ok(token),
            (Some(token), false) => {
                matching.push(token);
                Err(TokenError::Ambiguous { module, uri: wanted, candidates: names(&matching) })
            }
            (None, _) => Err(TokenError::NotFound { module, uri: wanted, candidates: names(&others) }),
        }
    }

    /// Ends the library (C_Finalize); all its sessions must be dropped before.
    ///
    /// # Errors
    /// When the library says so.
    pub fn finalize(self) -> Result<(), Fault> {
        call(Function::Finalize, || self.pkcs11.finalize()).map_err(Fault::from)
    }
}

impl Token {
    /// What the token said of itself when it was found.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What the token says of itself now (C_GetTokenInfo): for the PIN's state, and to see whether it is there.
    ///
    /// # Errors
    /// When the call fails.
    pub fn current_info(&self) -> Result<Info, Fault> {
        Ok(Info::from(&call(Function::GetTokenInfo, || self.pkcs11.get_token_info(self.slot))?))
    }

    /// Opens a session; `rw` to create token objects.
    ///
    /// # Errors
    /// When the call fails, CKR_SESSION_COUNT ([`Class::Busy`]) above all.
    pub fn open_session(&self, rw: bool) -> Result<Session, Fault> {
        let open = || if rw { self.pkcs11.open_rw_session(self.slot) } else { self.pkcs11.open_ro_session(self.slot) };
        Ok(call(Function::OpenSession, open)?)
    }

    /// Logs the whole process in at this token; one call suffices for all sessions, and lasts until the last one
    /// closes. Somebody logged in already is a success, which then proves nothing of the PIN.
    ///
    /// # Errors
    /// When the PIN is wrong, and without trying it when the token is locked or has one try left.
    pub fn login(&self, session: &Session, pin: &SecretString) -> Result<(), LoginError> {
        let label = || self.info.label.clone();
        let failed = |source| LoginError::Call { label: label(), source };
        match self.current_info().map_err(failed)?.pin {
            PinState::CountLow | PinState::Normal => {}
            PinState::FinalTry => return Err(LoginError::FinalTry(label())),
            PinState::Locked => return Err(LoginError::Locked(label())),
            PinState::Unset => return Err(LoginError::Unset(label())),
        }
        match call(Function::Login, || session.login(UserType::User, Some(pin))).map_err(Fault::from) {
            Ok(()) => Ok(()),
            Err(fault) => match fault.class() {
                Class::Success => Ok(()),
                Class::Pin if fault.is(RvError::PinLocked) => Err(LoginError::Locked(label())),
                Class::Pin => Err(LoginError::WrongPin { label: label(), source: fault }),
                Class::Busy | Class::Configuration | Class::Login | Class::Request | Class::Session | Class::Token => {
                    Err(failed(fault))
                }
            },
        }
    }

    /// The mechanisms that the token has, as far as the binding knows their numbers.
    ///
    /// # Errors
    /// When the call fails.
    pub fn mechanisms(&self) -> Result<Vec<MechanismType>, Fault> {
        Ok(self.pkcs11.get_mechanism_list(self.slot)?)
    }

    /// The slot's number, for messages only: tokens are never selected by it.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.slot.id()
    }
}

impl Info {
    fn matches(&self, uri: &TokenUri) -> bool {
        let same = |wanted: Option<&str>, have: &str| wanted.is_none_or(|wanted| wanted == have);
        same(uri.label(), &self.label)
            && same(uri.serial(), &self.serial)
            && same(uri.manufacturer(), &self.manufacturer)
            && same(uri.model(), &self.model)
    }
}

impl From<&TokenInfo> for Info {
    fn from(info: &TokenInfo) -> Self {
        let version = |v: cryptoki::types::Version| format!("{}.{}", v.major(), v.minor());
        Self {
            label: info.label().to_owned(),
            serial: info.serial_number().to_owned(),
            model: info.model().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            hardware: version(info.hardware_version()),
            firmware: version(info.firmware_version()),
            max_sessions: match info.max_session_count() {
                Limit::Max(count) => Some(count),
                Limit::Infinite | Limit::Unavailable => None,
            },
            write_protected: info.write_protected(),
            pin: if info.user_pin_locked() {
                PinState::Locked
            } else if info.user_pin_final_try() {
                PinState::FinalTry
            } else if !info.user_pin_initialized() {
                PinState::Unset
            } else if info.user_pin_count_low() {
                PinState::CountLow
            } else {
                PinState::Normal
            },
        }
    }
}

/// C_Initialize's arguments: the system's own locks, and the library's parameters where it has some.
fn arguments(parameters: Option<&CStr>) -> CInitializeArgs {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    match parameters {
        None => CInitializeArgs::new(flags),
        Some(text) => reserved(flags, text),
    }
}

#[expect(unsafe_code, reason = "the binding takes the reserved field as a bare pointer, and NSS takes nothing else")]
fn reserved(flags: CInitializeFlags, text: &CStr) -> CInitializeArgs {
    // SAFETY: whoever configures the parameters says that this library reads a C string there, which this is; it lives
    // until C_Initialize has returned, since the only caller holds it. No library may keep the arguments for longer.
    unsafe { CInitializeArgs::new_with_reserved(flags, NonNull::from(text).cast()) }
}

fn names(tokens: &[Token]) -> String {
    let names: Vec<String> = tokens
        .iter()
        .map(|t| format!("`{}` (serial {}, model {})", t.info.label, t.info.serial, t.info.model))
        .collect();
    if names.is_empty() { "no token".to_owned() } else { names.join(", ") }
}
