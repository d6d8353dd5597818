//! A token in a slot: what it says of itself, its sessions and the login. Made by [`Module`](super::Module).

use cryptoki::{
    context::Pkcs11,
    error::RvError,
    mechanism::MechanismType,
    session::{Session, UserType},
    slot::{Limit, Slot, TokenInfo},
};
use secrecy::SecretString;
use serde::Serialize;

use super::LoginError;
use crate::{
    Pkcs11Error, Recovery, TokenUri,
    calls::{Function, call},
};

/// A token in a slot of the module.
#[derive(Clone, Debug)]
pub struct Token {
    pub(super) pkcs11: Pkcs11,
    pub(super) slot: Slot,
    pub(super) info: Info,
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
    pub fn current_info(&self) -> Result<Info, Pkcs11Error> {
        Ok(Info::from(&call(Function::GetTokenInfo, || self.pkcs11.get_token_info(self.slot))?))
    }

    /// Opens a session; `rw` to create token objects.
    ///
    /// # Errors
    /// When the call fails, CKR_SESSION_COUNT ([`Recovery::Retry`]) above all.
    pub fn open_session(&self, rw: bool) -> Result<Session, Pkcs11Error> {
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
        match call(Function::Login, || session.login(UserType::User, Some(pin))).map_err(Pkcs11Error::from) {
            Ok(()) => Ok(()),
            Err(fault) => match fault.recovery() {
                Recovery::Ignore => Ok(()),
                Recovery::FixPin if fault.is(RvError::PinLocked) => Err(LoginError::Locked(label())),
                Recovery::FixPin => Err(LoginError::WrongPin { label: label(), source: fault }),
                Recovery::Retry
                | Recovery::FixConfiguration
                | Recovery::FixKey
                | Recovery::Relogin
                | Recovery::RejectRequest
                | Recovery::NewSession
                | Recovery::NewProcess => Err(failed(fault)),
            },
        }
    }

    /// The mechanisms that the token has, as far as the binding knows their numbers.
    ///
    /// # Errors
    /// When the call fails.
    pub fn mechanisms(&self) -> Result<Vec<MechanismType>, Pkcs11Error> {
        Ok(self.pkcs11.get_mechanism_list(self.slot)?)
    }

    /// The slot's number, for messages only: tokens are never selected by it.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.slot.id()
    }
}

impl Info {
    pub(super) fn matches(&self, uri: &TokenUri) -> bool {
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
