//! A token in a slot: its information, sessions and login. Created by [`Module`](super::Module).

use cryptoki::{
    context::Pkcs11,
    error::RvError,
    mechanism::MechanismType,
    session::{Session, UserType},
    slot::Slot,
};
use cryptoki_sys::{
    CK_INFO, CK_TOKEN_INFO, CK_ULONG, CK_VERSION, CKF_CLOCK_ON_TOKEN, CKF_LOGIN_REQUIRED, CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_INITIALIZED, CKF_USER_PIN_LOCKED, CKF_WRITE_PROTECTED,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::{LoginError, error::PinOddity, raw::Functions, session::Opening};
use crate::{
    Pkcs11Error, Recovery, TokenUri,
    calls::{Function, call},
};

/// A token in a slot of the module.
#[derive(Clone, Debug)]
pub struct Token {
    pub(super) pkcs11: Pkcs11,
    pub(super) functions: Functions,
    pub(super) slot: Slot,
    pub(super) info: Info,
    pub(super) opening: Opening,
}

/// Information about a library (CK_INFO).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LibraryInfo {
    /// Its manufacturer.
    pub manufacturer: String,
    /// Its description.
    pub description: String,
    /// Its version, `major.minor`.
    pub version: String,
    /// The implemented version of PKCS#11, `major.minor`.
    pub cryptoki: String,
    /// Fields that violate the standard.
    pub malformed: Vec<String>,
}

/// Information about a token (CK_TOKEN_INFO).
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
    /// Maximum number of concurrent sessions of one application; `None` if the token reports no limit.
    pub max_sessions: Option<u64>,
    /// Whether new objects are rejected.
    pub write_protected: bool,
    /// Whether keys can be used after a login only (CKF_LOGIN_REQUIRED).
    pub login_required: bool,
    /// State of the PIN.
    pub pin: PinState,
    /// Fields that violate the standard, each with what was found.
    pub malformed: Vec<String>,
}

/// State of the user PIN as reported by the token; some tokens never report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PinState {
    /// A wrong PIN was tried since the last correct one.
    CountLow,
    /// One more wrong PIN locks the token.
    FinalTry,
    /// No PIN is accepted any more.
    Locked,
    /// Nothing to report.
    Normal,
    /// The security officer has set no user PIN.
    Unset,
}

impl Token {
    /// The information when the token was found.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The current information (C_GetTokenInfo): for the PIN's state, and to check that the token is present.
    ///
    /// # Errors
    /// If the call fails.
    pub fn current_info(&self) -> Result<Info, Pkcs11Error> {
        Ok(Info::from(&call(Function::GetTokenInfo, || self.functions.token_info(self.slot))?))
    }

    /// Opens a session; `rw` to create token objects. Where the library has no read-only sessions, it is a read-write one.
    ///
    /// # Errors
    /// If the call fails, in particular with CKR_SESSION_COUNT ([`Recovery::Retry`]).
    pub fn open_session(&self, rw: bool) -> Result<Session, Pkcs11Error> {
        self.opening.open(rw, |rw| {
            let open = if rw { Pkcs11::open_rw_session } else { Pkcs11::open_ro_session };
            Ok(call(Function::OpenSession, || open(&self.pkcs11, self.slot))?)
        })
    }

    /// Whether the token is used without a login: it requires none, and there is no PIN, or the token has none.
    #[must_use]
    pub fn skips_login(&self, has_pin: bool) -> bool {
        !self.info.login_required && (!has_pin || self.info.pin == PinState::Unset)
    }

    /// Logs the process in to this token, unless [`Token::skips_login`]; one call suffices for all sessions, and lasts
    /// until the last one is closed. An existing login is a success, which then proves nothing about the PIN.
    ///
    /// # Errors
    /// If there is no PIN or it is wrong, and without trying it if the token is locked or has one attempt left.
    pub fn login<'a>(&self, session: &Session, pin: impl Into<Option<&'a SecretString>>) -> Result<(), LoginError> {
        let pin = pin.into();
        if self.skips_login(pin.is_some()) {
            return Ok(());
        }
        let label = || self.info.label.clone();
        let failed = |source| LoginError::Call { label: label(), source };
        let pin = pin.ok_or_else(|| LoginError::NoPin(label()))?;
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
                Recovery::FixPin => {
                    let oddity = PinOddity::of(pin.expose_secret());
                    Err(LoginError::WrongPin { label: label(), oddity, source: fault })
                }
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

    /// The mechanisms of the token whose numbers the binding knows.
    ///
    /// # Errors
    /// If the call fails.
    pub fn mechanisms(&self) -> Result<Vec<MechanismType>, Pkcs11Error> {
        let numbers = self.functions.mechanisms(self.slot)?;
        Ok(numbers.into_iter().filter_map(|number| number.try_into().ok()).collect())
    }

    /// Information about the library (C_GetInfo).
    ///
    /// # Errors
    /// If the call fails.
    pub fn library(&self) -> Result<LibraryInfo, Pkcs11Error> {
        Ok(LibraryInfo::from(&self.functions.info()?))
    }

    /// The library's description of the slot (C_GetSlotInfo): the name of a reader, or a partition of an HSM.
    ///
    /// # Errors
    /// If the call fails.
    pub fn slot_description(&self) -> Result<String, Pkcs11Error> {
        let info = self.functions.slot_info(self.slot)?;
        Ok(Fields::default().text("slot description", &info.slotDescription))
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

impl From<&CK_TOKEN_INFO> for Info {
    fn from(info: &CK_TOKEN_INFO) -> Self {
        let mut fields = Fields::default();
        let set = |flag| info.flags & flag != 0;
        if set(CKF_CLOCK_ON_TOKEN) {
            fields.time(&info.utcTime);
        }
        Self {
            label: fields.text("label", &info.label),
            serial: fields.text("serial number", &info.serialNumber),
            model: fields.text("model", &info.model),
            manufacturer: fields.text("manufacturer", &info.manufacturerID),
            hardware: version(info.hardwareVersion),
            firmware: version(info.firmwareVersion),
            max_sessions: fields.limit(info.ulMaxSessionCount, info.ulSessionCount),
            write_protected: set(CKF_WRITE_PROTECTED),
            login_required: set(CKF_LOGIN_REQUIRED),
            pin: if set(CKF_USER_PIN_LOCKED) {
                PinState::Locked
            } else if set(CKF_USER_PIN_FINAL_TRY) {
                PinState::FinalTry
            } else if !set(CKF_USER_PIN_INITIALIZED) {
                PinState::Unset
            } else if set(CKF_USER_PIN_COUNT_LOW) {
                PinState::CountLow
            } else {
                PinState::Normal
            },
            malformed: fields.malformed,
        }
    }
}

impl From<&CK_INFO> for LibraryInfo {
    fn from(info: &CK_INFO) -> Self {
        let mut fields = Fields::default();
        Self {
            manufacturer: fields.text("manufacturer", &info.manufacturerID),
            description: fields.text("description", &info.libraryDescription),
            version: version(info.libraryVersion),
            cryptoki: version(info.cryptokiVersion),
            malformed: fields.malformed,
        }
    }
}

/// Reads fields one by one: a malformed one is reported, and the others are used.
#[derive(Debug, Default)]
struct Fields {
    malformed: Vec<String>,
}

impl Fields {
    /// A string padded with blanks (PKCS#11 v3.1, section 3.2); some libraries pad with zero bytes, or write a C
    /// string.
    fn text(&mut self, name: &str, field: &[u8]) -> String {
        let (text, rest) = field.split_at(field.iter().position(|byte| *byte == 0).unwrap_or(field.len()));
        let valid = std::str::from_utf8(text).is_ok();
        let text = String::from_utf8_lossy(text).trim_end_matches(' ').to_owned();
        if !valid {
            self.malformed.push(format!("the {name} is not UTF-8; it is read as {text:?}"));
        } else if text.chars().any(char::is_control) {
            self.malformed.push(format!("the {name} {text:?} has control characters"));
        } else if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
            self.malformed.push(format!("the {name} {text:?} is followed by other bytes"));
        }
        text
    }

    /// A maximum; `None` if the token reports no limit: 0 or all bits set (PKCS#11 v3.1, section 3.2), which some
    /// tokens set in 32 bits only, and opencryptoki in all but the last.
    fn limit(&mut self, most: CK_ULONG, in_use: CK_ULONG) -> Option<u64> {
        const UNKNOWN: CK_ULONG = 0xffff_fffe;
        let known = |count: CK_ULONG| Some(count).filter(|count| (1..UNKNOWN).contains(count));
        let most = known(most)?;
        match known(in_use) {
            Some(in_use) if in_use > most => {
                self.malformed.push(format!("the maximum of {most} sessions is below the {in_use} that are open"));
                None
            }
            Some(_) | None => Some(most),
        }
    }

    /// A time, which is not used here: YYYYMMDDhhmmss00.
    fn time(&mut self, field: &[u8]) {
        if !field.iter().all(u8::is_ascii_digit) {
            let text = String::from_utf8_lossy(field);
            self.malformed.push(format!("the clock reads {:?}", text.trim_end_matches('\0')));
        }
    }
}

fn version(version: CK_VERSION) -> String {
    format!("{}.{}", version.major, version.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded<const N: usize>(text: &[u8], padding: u8) -> [u8; N] {
        let mut field = [padding; N];
        field[..text.len()].copy_from_slice(text);
        field
    }

    fn good() -> CK_TOKEN_INFO {
        CK_TOKEN_INFO {
            label: padded(b"ca", b' '),
            serialNumber: padded(b"0123", b' '),
            model: padded("Größe".as_bytes(), b' '),
            manufacturerID: padded(b"IBM", b' '),
            flags: CKF_USER_PIN_INITIALIZED | CKF_CLOCK_ON_TOKEN,
            utcTime: *b"2026010112000000",
            ulMaxSessionCount: 16,
            ulSessionCount: 1,
            ..CK_TOKEN_INFO::default()
        }
    }

    #[test]
    fn malformed_field_costs_itself_alone() {
        let info = Info::from(&good());
        assert_eq!((info.label.as_str(), info.serial.as_str(), info.model.as_str()), ("ca", "0123", "Größe"));
        assert_eq!((info.max_sessions, info.pin, info.malformed.len()), (Some(16), PinState::Normal, 0));

        type Change = fn(&mut CK_TOKEN_INFO);
        let cases: [(Change, &str); 6] = [
            // As in opencryptoki 3.8.
            (|info| info.utcTime = *b"        05:49:45", "the clock reads \"        05:49:45\""),
            (|info| info.utcTime = [0xff; 16], "the clock reads"),
            (|info| info.label = padded(b"ca\xff", b' '), "the label is not UTF-8; it is read as \"ca\u{fffd}\""),
            (|info| info.label = padded(b"ca\0garbage", 0), "the label \"ca\" is followed by other bytes"),
            (|info| info.label = padded(b"ca\x1b[2J", b' '), "has control characters"),
            (|info| info.ulSessionCount = 17, "the maximum of 16 sessions is below the 17 that are open"),
        ];
        for (change, expected) in cases {
            let mut raw = good();
            change(&mut raw);
            let info = Info::from(&raw);
            let [malformed] = info.malformed.as_slice() else { panic!("{expected}: {info:?}") };
            assert!(malformed.contains(expected), "{expected}: {malformed}");
            assert_eq!((info.serial.as_str(), info.pin), ("0123", PinState::Normal), "{expected}");
        }
    }

    #[test]
    fn zero_bytes_after_a_text_are_no_part_of_it() {
        for padding in [0, b' '] {
            let raw = CK_TOKEN_INFO { label: padded(b"my ca", padding), ..good() };
            let info = Info::from(&raw);
            assert_eq!((info.label.as_str(), info.malformed.len()), ("my ca", 0));
        }
        let raw = CK_TOKEN_INFO { label: padded(b"my ca  \0 ", 0), ..good() };
        assert_eq!(Info::from(&raw).label, "my ca");
        assert_eq!(Info::from(&CK_TOKEN_INFO { label: [0; 32], ..good() }).label, "");
    }

    #[test]
    fn token_without_a_limit_on_sessions_has_none() {
        for most in [0, CK_ULONG::MAX, CK_ULONG::MAX - 1, u32::MAX.into()] {
            let raw = CK_TOKEN_INFO { ulMaxSessionCount: most, ulSessionCount: CK_ULONG::MAX, ..good() };
            assert_eq!(Info::from(&raw).max_sessions, None);
        }
        let raw = CK_TOKEN_INFO { ulSessionCount: CK_ULONG::MAX, ..good() };
        assert_eq!(Info::from(&raw).max_sessions, Some(16));
    }

    #[test]
    fn garbage_is_read_without_a_panic() {
        let raw = CK_TOKEN_INFO { label: [0xff; 32], flags: CK_ULONG::MAX, utcTime: [0; 16], ..good() };
        let info = Info::from(&raw);
        assert_eq!((info.pin, info.malformed.len()), (PinState::Locked, 2));
        assert_eq!(
            LibraryInfo::from(&CK_INFO { libraryDescription: [0xfe; 32], ..CK_INFO::default() }).malformed.len(),
            1
        );
    }
}
