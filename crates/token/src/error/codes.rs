//! The one table of return codes: number, name, class, and why it is of that class.
//!
//! Numbers and names are those of PKCS#11 v3.0 and v3.1 (section 5.1), with the additions of v3.2. A code that is
//! not in the table is a vendor's own or a later standard's; the ladder starts at its lowest rung for it.

use cryptoki::error::RvError;

use super::Class;

/// A return code and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// CK_RV.
    pub code: u64,
    /// The standard's name.
    pub name: &'static str,
    /// What to do.
    pub class: Class,
    /// What it means for us, and so why it is in that class.
    pub reason: &'static str,
}

/// CKR_VENDOR_DEFINED: from here on codes are the vendor's own.
const VENDOR_DEFINED: u64 = 0x8000_0000;

/// The entry of a code; one of its own for those that are not in [`TABLE`].
#[must_use]
pub fn entry(code: u64) -> Entry {
    if let Some(entry) = TABLE.iter().find(|entry| entry.code == code) {
        return *entry;
    }
    if code >= VENDOR_DEFINED {
        return Entry {
            code,
            name: "CKR_VENDOR_DEFINED",
            class: Class::Session,
            reason: "a code of the vendor's own, see its documentation; a new session is tried first",
        };
    }
    Entry {
        code,
        name: "an unknown code",
        class: Class::Session,
        reason: "no standard code; a new session is tried first",
    }
}

const fn row(code: u64, name: &'static str, class: Class, reason: &'static str) -> Entry {
    Entry { code, name, class, reason }
}

/// Every return code of the standard but CKR_OK, by number.
#[rustfmt::skip]
pub const TABLE: &[Entry] = &[
    row(0x001, "CKR_CANCEL", Class::Session, "the call was given up half-way, so that the session's state is unknown"),
    row(0x002, "CKR_HOST_MEMORY", Class::Token, "this process has no memory left, a new one starts afresh"),
    row(0x003, "CKR_SLOT_ID_INVALID", Class::Token, "slots are renumbered when the library starts again, and the token is then found by its label"),
    row(0x005, "CKR_GENERAL_ERROR", Class::Token, "the library says that it may be beyond repair"),
    row(0x006, "CKR_FUNCTION_FAILED", Class::Session, "the same call may succeed when it is made again"),
    row(0x007, "CKR_ARGUMENTS_BAD", Class::Session, "our arguments do not change, but some libraries say this of sessions that were opened too fast"),
    row(0x008, "CKR_NO_EVENT", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x009, "CKR_NEED_TO_CREATE_THREADS", Class::Configuration, "the library wants other terms of threading than we offer"),
    row(0x00a, "CKR_CANT_LOCK", Class::Configuration, "the library cannot use the system's locks, so that several threads cannot share it"),
    row(0x010, "CKR_ATTRIBUTE_READ_ONLY", Class::Request, "the token does not let this attribute be set"),
    row(0x011, "CKR_ATTRIBUTE_SENSITIVE", Class::Request, "the value stays in the token, as it should"),
    row(0x012, "CKR_ATTRIBUTE_TYPE_INVALID", Class::Request, "the token does not know this attribute of that object"),
    row(0x013, "CKR_ATTRIBUTE_VALUE_INVALID", Class::Request, "the token does not take this value"),
    row(0x01b, "CKR_ACTION_PROHIBITED", Class::Request, "the object or the token's policy forbids it"),
    row(0x020, "CKR_DATA_INVALID", Class::Request, "the token does not take this input"),
    row(0x021, "CKR_DATA_LEN_RANGE", Class::Request, "the token does not take an input of this length"),
    row(0x030, "CKR_DEVICE_ERROR", Class::Token, "the device or the way to it is broken"),
    row(0x031, "CKR_DEVICE_MEMORY", Class::Busy, "the token's memory is full until others close sessions"),
    row(0x032, "CKR_DEVICE_REMOVED", Class::Token, "the token went away during the call, and all sessions with it"),
    row(0x040, "CKR_ENCRYPTED_DATA_INVALID", Class::Request, "the token cannot decrypt this input"),
    row(0x041, "CKR_ENCRYPTED_DATA_LEN_RANGE", Class::Request, "the token cannot decrypt an input of this length"),
    row(0x042, "CKR_AEAD_DECRYPT_FAILED", Class::Request, "the input is not what was encrypted"),
    row(0x050, "CKR_FUNCTION_CANCELED", Class::Session, "the call was given up half-way, so that the session's state is unknown"),
    row(0x051, "CKR_FUNCTION_NOT_PARALLEL", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x054, "CKR_FUNCTION_NOT_SUPPORTED", Class::Configuration, "the library lacks a function that is needed"),
    row(0x060, "CKR_KEY_HANDLE_INVALID", Class::Session, "handles die with their session or when objects are renumbered, so that the key is looked up afresh"),
    row(0x062, "CKR_KEY_SIZE_RANGE", Class::Configuration, "the token does not work with a key of this size"),
    row(0x063, "CKR_KEY_TYPE_INCONSISTENT", Class::Session, "the handle may stand for another object by now, so that the key is looked up afresh"),
    row(0x064, "CKR_KEY_NOT_NEEDED", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x065, "CKR_KEY_CHANGED", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x066, "CKR_KEY_NEEDED", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x067, "CKR_KEY_INDIGESTIBLE", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x068, "CKR_KEY_FUNCTION_NOT_PERMITTED", Class::Session, "the look-up checks that the key may sign, so that the handle may stand for another object by now"),
    row(0x069, "CKR_KEY_NOT_WRAPPABLE", Class::Request, "the token does not wrap this key"),
    row(0x06a, "CKR_KEY_UNEXTRACTABLE", Class::Request, "the key may not leave the token, as it should"),
    row(0x070, "CKR_MECHANISM_INVALID", Class::Configuration, "the token or the key's CKA_ALLOWED_MECHANISMS lacks this mechanism"),
    row(0x071, "CKR_MECHANISM_PARAM_INVALID", Class::Configuration, "the token does not take the mechanism's parameters"),
    row(0x082, "CKR_OBJECT_HANDLE_INVALID", Class::Session, "the object was deleted or renumbered, so that it is looked up afresh"),
    row(0x090, "CKR_OPERATION_ACTIVE", Class::Session, "an earlier call that failed left the session busy for good"),
    row(0x091, "CKR_OPERATION_NOT_INITIALIZED", Class::Session, "the session lost its operation between two calls"),
    row(0x0a0, "CKR_PIN_INCORRECT", Class::Pin, "the PIN is wrong, and every try more brings the token nearer to being locked"),
    row(0x0a1, "CKR_PIN_INVALID", Class::Pin, "the PIN has characters that the token does not take"),
    row(0x0a2, "CKR_PIN_LEN_RANGE", Class::Pin, "the PIN is too short or too long for the token, so that it is not the token's"),
    row(0x0a3, "CKR_PIN_EXPIRED", Class::Pin, "the PIN must be changed at the token first"),
    row(0x0a4, "CKR_PIN_LOCKED", Class::Pin, "the token takes no PIN until its security officer unlocks it"),
    row(0x0b0, "CKR_SESSION_CLOSED", Class::Session, "the session is closed"),
    row(0x0b1, "CKR_SESSION_COUNT", Class::Busy, "all the token's sessions are taken, perhaps by a host that died and whose sessions the token has yet to drop"),
    row(0x0b3, "CKR_SESSION_HANDLE_INVALID", Class::Session, "the session is gone, by idleness or because the token was away"),
    row(0x0b4, "CKR_SESSION_PARALLEL_NOT_SUPPORTED", Class::Session, "only a call that is never made returns it, so that the library is out of step"),
    row(0x0b5, "CKR_SESSION_READ_ONLY", Class::Request, "the session may not write to the token"),
    row(0x0b6, "CKR_SESSION_EXISTS", Class::Request, "the token cannot be initialised while sessions are open"),
    row(0x0b7, "CKR_SESSION_READ_ONLY_EXISTS", Class::Request, "the security officer cannot log in while sessions are open that only read"),
    row(0x0b8, "CKR_SESSION_READ_WRITE_SO_EXISTS", Class::Busy, "the security officer is logged in, and sessions open again when that ends"),
    row(0x0c0, "CKR_SIGNATURE_INVALID", Class::Session, "signatures are verified in software, so that the session is out of step"),
    row(0x0c1, "CKR_SIGNATURE_LEN_RANGE", Class::Session, "signatures are verified in software, so that the session is out of step"),
    row(0x0d0, "CKR_TEMPLATE_INCOMPLETE", Class::Request, "the token wants more attributes of an object"),
    row(0x0d1, "CKR_TEMPLATE_INCONSISTENT", Class::Request, "the token does not take these attributes together"),
    row(0x0e0, "CKR_TOKEN_NOT_PRESENT", Class::Token, "the token is away"),
    row(0x0e1, "CKR_TOKEN_NOT_RECOGNIZED", Class::Token, "the library does not know the token in the slot"),
    row(0x0e2, "CKR_TOKEN_WRITE_PROTECTED", Class::Configuration, "the token takes no new objects"),
    row(0x0f0, "CKR_UNWRAPPING_KEY_HANDLE_INVALID", Class::Session, "the unwrapping key died with its session"),
    row(0x0f1, "CKR_UNWRAPPING_KEY_SIZE_RANGE", Class::Request, "the token does not unwrap with a key of this size"),
    row(0x0f2, "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", Class::Request, "the token does not unwrap with a key of this type"),
    row(0x100, "CKR_USER_ALREADY_LOGGED_IN", Class::Success, "a login is the whole process's, and another session has made it"),
    row(0x101, "CKR_USER_NOT_LOGGED_IN", Class::Login, "the token has ended the login"),
    row(0x102, "CKR_USER_PIN_NOT_INITIALIZED", Class::Pin, "the security officer has set no user PIN yet"),
    row(0x103, "CKR_USER_TYPE_INVALID", Class::Configuration, "the token has no such kind of user"),
    row(0x104, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Class::Token, "somebody else is logged in within this process, a new one has a login of its own"),
    row(0x105, "CKR_USER_TOO_MANY_TYPES", Class::Busy, "too many users are logged in at the token at once"),
    row(0x110, "CKR_WRAPPED_KEY_INVALID", Class::Request, "the token cannot unwrap this key"),
    row(0x112, "CKR_WRAPPED_KEY_LEN_RANGE", Class::Request, "the token cannot unwrap a key of this length"),
    row(0x113, "CKR_WRAPPING_KEY_HANDLE_INVALID", Class::Session, "the wrapping key died with its session"),
    row(0x114, "CKR_WRAPPING_KEY_SIZE_RANGE", Class::Request, "the token does not wrap with a key of this size"),
    row(0x115, "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", Class::Request, "the token does not wrap with a key of this type"),
    row(0x120, "CKR_RANDOM_SEED_NOT_SUPPORTED", Class::Request, "the token takes no seed"),
    row(0x121, "CKR_RANDOM_NO_RNG", Class::Token, "the token has lost its random numbers, without which ECDSA would give the key away"),
    row(0x130, "CKR_DOMAIN_PARAMS_INVALID", Class::Request, "the token does not take these curve parameters"),
    row(0x140, "CKR_CURVE_NOT_SUPPORTED", Class::Configuration, "the token does not know this curve"),
    row(0x150, "CKR_BUFFER_TOO_SMALL", Class::Session, "the token wants more room than it asked for, so that its answer cannot be trusted"),
    row(0x160, "CKR_SAVED_STATE_INVALID", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x170, "CKR_INFORMATION_SENSITIVE", Class::Request, "the value stays in the token, as it should"),
    row(0x180, "CKR_STATE_UNSAVEABLE", Class::Session, "only a call that is never made returns it, so that the session is out of step"),
    row(0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", Class::Token, "the library has lost its state"),
    row(0x191, "CKR_CRYPTOKI_ALREADY_INITIALIZED", Class::Success, "the library is ready"),
    row(0x1a0, "CKR_MUTEX_BAD", Class::Token, "the library's locks are broken"),
    row(0x1a1, "CKR_MUTEX_NOT_LOCKED", Class::Token, "the library's locks are broken"),
    row(0x1b0, "CKR_NEW_PIN_MODE", Class::Pin, "the token wants a new PIN to be set first"),
    row(0x1b1, "CKR_NEXT_OTP", Class::Pin, "the token wants a one-time password, which a daemon does not have"),
    row(0x1b5, "CKR_EXCEEDED_MAX_ITERATIONS", Class::Request, "the token could not generate what was asked for"),
    row(0x1b6, "CKR_FIPS_SELF_TEST_FAILED", Class::Token, "the module has shut itself down and must start again"),
    row(0x1b7, "CKR_LIBRARY_LOAD_FAILED", Class::Token, "the library could not load its own parts, which a new process may"),
    row(0x1b8, "CKR_PIN_TOO_WEAK", Class::Pin, "the token does not take such a PIN"),
    row(0x1b9, "CKR_PUBLIC_KEY_INVALID", Class::Request, "the token does not take this public key"),
    row(0x200, "CKR_FUNCTION_REJECTED", Class::Request, "somebody at the token refused this operation"),
    row(0x201, "CKR_TOKEN_RESOURCE_EXCEEDED", Class::Busy, "the token has no room for more at this moment"),
    row(0x202, "CKR_OPERATION_CANCEL_FAILED", Class::Session, "the session cannot get rid of its operation"),
    row(0x203, "CKR_KEY_EXHAUSTED", Class::Configuration, "the key has made as many signatures as it ever may"),
    row(0x204, "CKR_PENDING", Class::Session, "nothing was asked for that may finish later, so that the session is out of step"),
    row(0x205, "CKR_SESSION_ASYNC_NOT_SUPPORTED", Class::Session, "nothing was asked for that may finish later, so that the session is out of step"),
    row(0x206, "CKR_SEED_RANDOM_REQUIRED", Class::Configuration, "the token wants to be given random numbers first"),
    row(0x207, "CKR_OPERATION_NOT_VALIDATED", Class::Configuration, "the token's validated mode forbids this operation"),
    row(0x208, "CKR_TOKEN_NOT_INITIALIZED", Class::Configuration, "the token is blank: it was reset, or never set up"),
    row(0x209, "CKR_PARAMETER_SET_NOT_SUPPORTED", Class::Configuration, "the token does not know these parameters"),
];

/// The number of a return code of the binding.
#[must_use]
#[rustfmt::skip]
pub fn code_of(rv: RvError) -> u64 {
    match rv {
        RvError::Cancel => 0x001,
        RvError::HostMemory => 0x002,
        RvError::SlotIdInvalid => 0x003,
        RvError::GeneralError => 0x005,
        RvError::FunctionFailed => 0x006,
        RvError::ArgumentsBad => 0x007,
        RvError::NoEvent => 0x008,
        RvError::NeedToCreateThreads => 0x009,
        RvError::CantLock => 0x00a,
        RvError::AttributeReadOnly => 0x010,
        RvError::AttributeSensitive => 0x011,
        RvError::AttributeTypeInvalid => 0x012,
        RvError::AttributeValueInvalid => 0x013,
        RvError::ActionProhibited => 0x01b,
        RvError::DataInvalid => 0x020,
        RvError::DataLenRange => 0x021,
        RvError::DeviceError => 0x030,
        RvError::DeviceMemory => 0x031,
        RvError::DeviceRemoved => 0x032,
        RvError::EncryptedDataInvalid => 0x040,
        RvError::EncryptedDataLenRange => 0x041,
        RvError::FunctionCanceled => 0x050,
        RvError::FunctionNotParallel => 0x051,
        RvError::FunctionNotSupported => 0x054,
        RvError::KeyHandleInvalid => 0x060,
        RvError::KeySizeRange => 0x062,
        RvError::KeyTypeInconsistent => 0x063,
        RvError::KeyNotNeeded => 0x064,
        RvError::KeyChanged => 0x065,
        RvError::KeyNeeded => 0x066,
        RvError::KeyIndigestible => 0x067,
        RvError::KeyFunctionNotPermitted => 0x068,
        RvError::KeyNotWrappable => 0x069,
        RvError::KeyUnextractable => 0x06a,
        RvError::MechanismInvalid => 0x070,
        RvError::MechanismParamInvalid => 0x071,
        RvError::ObjectHandleInvalid => 0x082,
        RvError::OperationActive => 0x090,
        RvError::OperationNotInitialized => 0x091,
        RvError::PinIncorrect => 0x0a0,
        RvError::PinInvalid => 0x0a1,
        RvError::PinLenRange => 0x0a2,
        RvError::PinExpired => 0x0a3,
        RvError::PinLocked => 0x0a4,
        RvError::SessionClosed => 0x0b0,
        RvError::SessionCount => 0x0b1,
        RvError::SessionHandleInvalid => 0x0b3,
        RvError::SessionParallelNotSupported => 0x0b4,
        RvError::SessionReadOnly => 0x0b5,
        RvError::SessionExists => 0x0b6,
        RvError::SessionReadOnlyExists => 0x0b7,
        RvError::SessionReadWriteSoExists => 0x0b8,
        RvError::SignatureInvalid => 0x0c0,
        RvError::SignatureLenRange => 0x0c1,
        RvError::TemplateIncomplete => 0x0d0,
        RvError::TemplateInconsistent => 0x0d1,
        RvError::TokenNotPresent => 0x0e0,
        RvError::TokenNotRecognized => 0x0e1,
        RvError::TokenWriteProtected => 0x0e2,
        RvError::UnwrappingKeyHandleInvalid => 0x0f0,
        RvError::UnwrappingKeySizeRange => 0x0f1,
        RvError::UnwrappingKeyTypeInconsistent => 0x0f2,
        RvError::UserAlreadyLoggedIn => 0x100,
        RvError::UserNotLoggedIn => 0x101,
        RvError::UserPinNotInitialized => 0x102,
        RvError::UserTypeInvalid => 0x103,
        RvError::UserAnotherAlreadyLoggedIn => 0x104,
        RvError::UserTooManyTypes => 0x105,
        RvError::WrappedKeyInvalid => 0x110,
        RvError::WrappedKeyLenRange => 0x112,
        RvError::WrappingKeyHandleInvalid => 0x113,
        RvError::WrappingKeySizeRange => 0x114,
        RvError::WrappingKeyTypeInconsistent => 0x115,
        RvError::RandomSeedNotSupported => 0x120,
        RvError::RandomNoRng => 0x121,
        RvError::DomainParamsInvalid => 0x130,
        RvError::CurveNotSupported => 0x140,
        RvError::BufferTooSmall => 0x150,
        RvError::SavedStateInvalid => 0x160,
        RvError::InformationSensitive => 0x170,
        RvError::StateUnsaveable => 0x180,
        RvError::CryptokiNotInitialized => 0x190,
        RvError::CryptokiAlreadyInitialized => 0x191,
        RvError::MutexBad => 0x1a0,
        RvError::MutexNotLocked => 0x1a1,
        RvError::NewPinMode => 0x1b0,
        RvError::NextOtp => 0x1b1,
        RvError::ExceededMaxIterations => 0x1b5,
        RvError::FipsSelfTestFailed => 0x1b6,
        RvError::LibraryLoadFailed => 0x1b7,
        RvError::PinTooWeak => 0x1b8,
        RvError::PublicKeyInvalid => 0x1b9,
        RvError::FunctionRejected => 0x200,
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => code,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use cryptoki::error::Rv;

    use super::*;

    /// Section 5.1 of PKCS#11 v3.1 by number (CKR_OK left out), then what v3.2 adds.
    const STANDARD: [u64; 102] = [
        0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x10, 0x11, 0x12, 0x13, 0x1b, 0x20, 0x21, 0x30, 0x31,
        0x32, 0x40, 0x41, 0x42, 0x50, 0x51, 0x54, 0x60, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x70,
        0x71, 0x82, 0x90, 0x91, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xb0, 0xb1, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xc0,
        0xc1, 0xd0, 0xd1, 0xe0, 0xe1, 0xe2, 0xf0, 0xf1, 0xf2, 0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x110, 0x112,
        0x113, 0x114, 0x115, 0x120, 0x121, 0x130, 0x140, 0x150, 0x160, 0x170, 0x180, 0x190, 0x191, 0x1a0, 0x1a1, 0x1b0,
        0x1b1, 0x1b5, 0x1b6, 0x1b7, 0x1b8, 0x1b9, 0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208,
    ];

    #[test]
    fn every_standard_code_is_in_the_table_once() {
        let codes: Vec<u64> = TABLE.iter().map(|entry| entry.code).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "the table is not in order, or has a code twice");
        let names: HashSet<_> = TABLE.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), TABLE.len(), "a name stands twice");
        for code in STANDARD {
            assert!(codes.contains(&code), "0x{code:x} is missing");
        }
        assert_eq!(TABLE.len(), STANDARD.len() + 1, "0x209 is the only one beside");
    }

    /// Goes over all numbers below the vendors' range that any code has, through the binding and back.
    #[test]
    fn the_binding_and_the_table_agree() {
        for code in 1..0x1000 {
            let Rv::Error(rv) = Rv::from(code) else { panic!("0x{code:x} is no error") };
            assert_eq!(code_of(rv), code, "{rv:?}");
            match rv {
                // The binding knows none of v3.0's later codes; the table must.
                RvError::UnknownErrorCode(_) => {}
                known => {
                    let entry = entry(code);
                    let name = entry.name.trim_start_matches("CKR_").replace('_', "");
                    let debug = format!("{known:?}").to_uppercase();
                    assert_eq!(name, debug, "0x{code:x} is misnamed or not in the table");
                }
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_starts_at_the_lowest_rung() {
        for code in [0x4, 0x300, 0x7fff_ffff, 0x8000_0000, 0x8000_0abc, u64::MAX] {
            assert_eq!(entry(code).class, Class::Session);
            assert_eq!(entry(code).code, code);
        }
    }

    #[test]
    fn classes_that_recovery_stands_on() {
        let cases = [
            (RvError::UserAlreadyLoggedIn, Class::Success),
            (RvError::PinIncorrect, Class::Pin),
            (RvError::PinLocked, Class::Pin),
            (RvError::SessionCount, Class::Busy),
            (RvError::SessionHandleInvalid, Class::Session),
            (RvError::ObjectHandleInvalid, Class::Session),
            (RvError::OperationActive, Class::Session),
            (RvError::UserNotLoggedIn, Class::Login),
            (RvError::GeneralError, Class::Token),
            (RvError::DeviceError, Class::Token),
            (RvError::TokenNotPresent, Class::Token),
            (RvError::CryptokiNotInitialized, Class::Token),
            (RvError::DataInvalid, Class::Request),
            (RvError::MechanismInvalid, Class::Configuration),
        ];
        for (rv, class) in cases {
            assert_eq!(entry(code_of(rv)).class, class, "{rv:?}");
        }
    }

    #[test]
    fn every_reason_is_part_of_a_sentence() {
        for entry in TABLE {
            assert!(!entry.reason.is_empty() && !entry.reason.ends_with('.'), "{}", entry.name);
        }
    }
}
