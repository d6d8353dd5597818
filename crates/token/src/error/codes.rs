//! The table of return codes: number, name, recovery and the reason for that recovery.
//!
//! Numbers and names are those of PKCS#11 v3.1 (section 5.1), with the additions of v3.2. A code that is not in the
//! table is vendor-defined or from a later standard; recovery starts with a new session then.

use cryptoki::error::RvError;

use super::Recovery;

/// A return code and its recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// CK_RV.
    pub code: u64,
    /// Name in the standard.
    pub name: &'static str,
    /// First step.
    pub recovery: Recovery,
    /// Why this is the recovery; messages have the code's meaning where that is something else.
    pub reason: &'static str,
}

/// CKR_VENDOR_DEFINED, the first vendor-defined code.
const VENDOR_DEFINED: u64 = 0x8000_0000;

/// The entry of a code, including codes that are not in [`TABLE`].
#[must_use]
pub fn entry(code: u64) -> Entry {
    if let Some(entry) = TABLE.iter().find(|entry| entry.code == code) {
        return *entry;
    }
    if code >= VENDOR_DEFINED {
        return Entry {
            code,
            name: "CKR_VENDOR_DEFINED",
            recovery: Recovery::NewSession,
            reason: "vendor-defined, see the vendor's documentation; a new session is tried first",
        };
    }
    Entry {
        code,
        name: "an unknown code",
        recovery: Recovery::NewSession,
        reason: "not a standard code; a new session is tried first",
    }
}

const fn row(code: u64, name: &'static str, recovery: Recovery, reason: &'static str) -> Entry {
    Entry { code, name, recovery, reason }
}

/// Every return code of the standard except CKR_OK, sorted by number.
#[rustfmt::skip]
pub const TABLE: &[Entry] = &[
    row(0x001, "CKR_CANCEL", Recovery::NewSession, "the call was aborted, so the session state is unknown"),
    row(0x002, "CKR_HOST_MEMORY", Recovery::NewProcess, "this process is out of memory; a new one starts with less"),
    row(0x003, "CKR_SLOT_ID_INVALID", Recovery::NewProcess, "slots are renumbered when the library starts again; the token is then found by its label"),
    row(0x005, "CKR_GENERAL_ERROR", Recovery::NewProcess, "the library reports a possibly unrecoverable error"),
    row(0x006, "CKR_FUNCTION_FAILED", Recovery::NewSession, "the same call may succeed when repeated"),
    row(0x007, "CKR_ARGUMENTS_BAD", Recovery::NewSession, "the arguments are always valid, but some libraries return this for sessions opened in quick succession"),
    row(0x008, "CKR_NO_EVENT", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x009, "CKR_NEED_TO_CREATE_THREADS", Recovery::FixConfiguration, "the library requires a threading mode that is not offered"),
    row(0x00a, "CKR_CANT_LOCK", Recovery::FixConfiguration, "the library cannot use operating system locks, so threads cannot share it"),
    row(0x010, "CKR_ATTRIBUTE_READ_ONLY", Recovery::RejectRequest, "the token does not allow setting this attribute"),
    row(0x011, "CKR_ATTRIBUTE_SENSITIVE", Recovery::RejectRequest, "the token does not reveal the value, as intended"),
    row(0x012, "CKR_ATTRIBUTE_TYPE_INVALID", Recovery::RejectRequest, "the token does not support this attribute for that object"),
    row(0x013, "CKR_ATTRIBUTE_VALUE_INVALID", Recovery::RejectRequest, "the token does not accept this value"),
    row(0x01b, "CKR_ACTION_PROHIBITED", Recovery::RejectRequest, "forbidden by the object's attributes or the token's policy"),
    row(0x020, "CKR_DATA_INVALID", Recovery::RejectRequest, "the token does not accept this input"),
    row(0x021, "CKR_DATA_LEN_RANGE", Recovery::RejectRequest, "the token does not accept input of this length"),
    row(0x030, "CKR_DEVICE_ERROR", Recovery::NewProcess, "the device or the connection to it has failed"),
    row(0x031, "CKR_DEVICE_MEMORY", Recovery::Retry, "the token's memory is full until other clients close sessions"),
    row(0x032, "CKR_DEVICE_REMOVED", Recovery::NewProcess, "the token was removed during the call, which ends all sessions"),
    row(0x040, "CKR_ENCRYPTED_DATA_INVALID", Recovery::RejectRequest, "the token cannot decrypt this input"),
    row(0x041, "CKR_ENCRYPTED_DATA_LEN_RANGE", Recovery::RejectRequest, "the token cannot decrypt input of this length"),
    row(0x042, "CKR_AEAD_DECRYPT_FAILED", Recovery::RejectRequest, "the input does not authenticate"),
    row(0x050, "CKR_FUNCTION_CANCELED", Recovery::NewSession, "the call was aborted, so the session state is unknown"),
    row(0x051, "CKR_FUNCTION_NOT_PARALLEL", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x054, "CKR_FUNCTION_NOT_SUPPORTED", Recovery::FixConfiguration, "the library lacks a required function"),
    row(0x060, "CKR_KEY_HANDLE_INVALID", Recovery::NewSession, "handles become invalid with their session or when objects are renumbered; the key is looked up again"),
    row(0x062, "CKR_KEY_SIZE_RANGE", Recovery::FixConfiguration, "the token does not support this key size"),
    row(0x063, "CKR_KEY_TYPE_INCONSISTENT", Recovery::NewSession, "the handle may refer to another object now; the key is looked up again"),
    row(0x064, "CKR_KEY_NOT_NEEDED", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x065, "CKR_KEY_CHANGED", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x066, "CKR_KEY_NEEDED", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x067, "CKR_KEY_INDIGESTIBLE", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x068, "CKR_KEY_FUNCTION_NOT_PERMITTED", Recovery::NewSession, "the lookup verified CKA_SIGN, so the handle may refer to another object now"),
    row(0x069, "CKR_KEY_NOT_WRAPPABLE", Recovery::RejectRequest, "the token does not wrap this key"),
    row(0x06a, "CKR_KEY_UNEXTRACTABLE", Recovery::RejectRequest, "the key cannot be extracted, as intended"),
    row(0x070, "CKR_MECHANISM_INVALID", Recovery::FixConfiguration, "the token or the key's CKA_ALLOWED_MECHANISMS lacks this mechanism"),
    row(0x071, "CKR_MECHANISM_PARAM_INVALID", Recovery::FixConfiguration, "the token does not accept the mechanism parameters"),
    row(0x082, "CKR_OBJECT_HANDLE_INVALID", Recovery::NewSession, "the object was deleted or renumbered and is looked up again"),
    row(0x090, "CKR_OPERATION_ACTIVE", Recovery::NewSession, "an earlier failed call left the session permanently busy"),
    row(0x091, "CKR_OPERATION_NOT_INITIALIZED", Recovery::NewSession, "the session lost its operation between two calls"),
    row(0x0a0, "CKR_PIN_INCORRECT", Recovery::FixPin, "the PIN is wrong, and every further attempt may lock the token"),
    row(0x0a1, "CKR_PIN_INVALID", Recovery::FixPin, "the PIN contains characters that the token does not accept"),
    row(0x0a2, "CKR_PIN_LEN_RANGE", Recovery::FixPin, "the PIN length is out of range, so it cannot be this token's PIN"),
    row(0x0a3, "CKR_PIN_EXPIRED", Recovery::FixPin, "the PIN has expired and must be changed first"),
    row(0x0a4, "CKR_PIN_LOCKED", Recovery::FixPin, "the PIN is locked until the security officer unlocks it"),
    row(0x0b0, "CKR_SESSION_CLOSED", Recovery::NewSession, "the session is closed"),
    row(0x0b1, "CKR_SESSION_COUNT", Recovery::Retry, "all sessions are in use, possibly by a host that died and whose sessions the token has not closed yet"),
    row(0x0b3, "CKR_SESSION_HANDLE_INVALID", Recovery::NewSession, "the session ended through inactivity or because the token was removed"),
    row(0x0b4, "CKR_SESSION_PARALLEL_NOT_SUPPORTED", Recovery::NewSession, "returned only by functions this program never calls, so the library state is unreliable"),
    row(0x0b5, "CKR_SESSION_READ_ONLY", Recovery::RejectRequest, "the session is read-only"),
    row(0x0b6, "CKR_SESSION_EXISTS", Recovery::RejectRequest, "the token cannot be initialized while sessions are open"),
    row(0x0b7, "CKR_SESSION_READ_ONLY_EXISTS", Recovery::RejectRequest, "the security officer cannot log in while read-only sessions are open"),
    row(0x0b8, "CKR_SESSION_READ_WRITE_SO_EXISTS", Recovery::Retry, "the security officer is logged in; sessions can be opened after the logout"),
    row(0x0c0, "CKR_SIGNATURE_INVALID", Recovery::NewSession, "signatures are verified in software, so the session state is unreliable"),
    row(0x0c1, "CKR_SIGNATURE_LEN_RANGE", Recovery::NewSession, "signatures are verified in software, so the session state is unreliable"),
    row(0x0d0, "CKR_TEMPLATE_INCOMPLETE", Recovery::RejectRequest, "the token requires more attributes in the template"),
    row(0x0d1, "CKR_TEMPLATE_INCONSISTENT", Recovery::RejectRequest, "the token does not accept this combination of attributes"),
    row(0x0e0, "CKR_TOKEN_NOT_PRESENT", Recovery::NewProcess, "no token is present"),
    row(0x0e1, "CKR_TOKEN_NOT_RECOGNIZED", Recovery::NewProcess, "the library does not recognize the token in the slot"),
    row(0x0e2, "CKR_TOKEN_WRITE_PROTECTED", Recovery::FixConfiguration, "the token is write-protected"),
    row(0x0f0, "CKR_UNWRAPPING_KEY_HANDLE_INVALID", Recovery::NewSession, "the unwrapping key died with its session"),
    row(0x0f1, "CKR_UNWRAPPING_KEY_SIZE_RANGE", Recovery::RejectRequest, "the token does not unwrap with a key of this size"),
    row(0x0f2, "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", Recovery::RejectRequest, "the token does not unwrap with a key of this type"),
    row(0x100, "CKR_USER_ALREADY_LOGGED_IN", Recovery::Ignore, "the login state is shared by the process, and another session has logged in"),
    row(0x101, "CKR_USER_NOT_LOGGED_IN", Recovery::Relogin, "the token has ended the login"),
    row(0x102, "CKR_USER_PIN_NOT_INITIALIZED", Recovery::FixPin, "the security officer has set no user PIN yet"),
    row(0x103, "CKR_USER_TYPE_INVALID", Recovery::FixConfiguration, "the token does not support this user type"),
    row(0x104, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Recovery::NewProcess, "another user is logged in within this process; a new process has its own login"),
    row(0x105, "CKR_USER_TOO_MANY_TYPES", Recovery::Retry, "too many users are logged in at the token at once"),
    row(0x110, "CKR_WRAPPED_KEY_INVALID", Recovery::RejectRequest, "the token cannot unwrap this key"),
    row(0x112, "CKR_WRAPPED_KEY_LEN_RANGE", Recovery::RejectRequest, "the token cannot unwrap a key of this length"),
    row(0x113, "CKR_WRAPPING_KEY_HANDLE_INVALID", Recovery::NewSession, "the wrapping key died with its session"),
    row(0x114, "CKR_WRAPPING_KEY_SIZE_RANGE", Recovery::RejectRequest, "the token does not wrap with a key of this size"),
    row(0x115, "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", Recovery::RejectRequest, "the token does not wrap with a key of this type"),
    row(0x120, "CKR_RANDOM_SEED_NOT_SUPPORTED", Recovery::RejectRequest, "the token does not accept a seed"),
    row(0x121, "CKR_RANDOM_NO_RNG", Recovery::NewProcess, "the token has no random number generator; ECDSA without one would reveal the key"),
    row(0x130, "CKR_DOMAIN_PARAMS_INVALID", Recovery::RejectRequest, "the token does not accept these curve parameters"),
    row(0x140, "CKR_CURVE_NOT_SUPPORTED", Recovery::FixConfiguration, "the token does not support this curve"),
    row(0x150, "CKR_BUFFER_TOO_SMALL", Recovery::NewSession, "the token needs a larger buffer than it announced, so its output cannot be trusted"),
    row(0x160, "CKR_SAVED_STATE_INVALID", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x170, "CKR_INFORMATION_SENSITIVE", Recovery::RejectRequest, "the token does not reveal the value, as intended"),
    row(0x180, "CKR_STATE_UNSAVEABLE", Recovery::NewSession, "returned only by functions this program never calls, so the session state is unreliable"),
    row(0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", Recovery::NewProcess, "the library has lost its state"),
    row(0x191, "CKR_CRYPTOKI_ALREADY_INITIALIZED", Recovery::Ignore, "the library is already initialized"),
    row(0x1a0, "CKR_MUTEX_BAD", Recovery::NewProcess, "the library's locks are broken"),
    row(0x1a1, "CKR_MUTEX_NOT_LOCKED", Recovery::NewProcess, "the library's locks are broken"),
    row(0x1b0, "CKR_NEW_PIN_MODE", Recovery::FixPin, "the token requires a new PIN to be set first"),
    row(0x1b1, "CKR_NEXT_OTP", Recovery::FixPin, "the token requires a one-time password, which a daemon cannot provide"),
    row(0x1b5, "CKR_EXCEEDED_MAX_ITERATIONS", Recovery::RejectRequest, "the token could not generate the requested value"),
    row(0x1b6, "CKR_FIPS_SELF_TEST_FAILED", Recovery::NewProcess, "the module has shut itself down and must start again"),
    row(0x1b7, "CKR_LIBRARY_LOAD_FAILED", Recovery::NewProcess, "the library could not load a dependency; a new process may succeed"),
    row(0x1b8, "CKR_PIN_TOO_WEAK", Recovery::FixPin, "the token does not accept such a PIN"),
    row(0x1b9, "CKR_PUBLIC_KEY_INVALID", Recovery::RejectRequest, "the token does not accept this public key"),
    row(0x200, "CKR_FUNCTION_REJECTED", Recovery::RejectRequest, "a person at the token rejected the operation"),
    row(0x201, "CKR_TOKEN_RESOURCE_EXCEEDED", Recovery::Retry, "the token has no resources left at the moment"),
    row(0x202, "CKR_OPERATION_CANCEL_FAILED", Recovery::NewSession, "the session cannot cancel its operation"),
    row(0x203, "CKR_KEY_EXHAUSTED", Recovery::FixConfiguration, "the key has reached its maximum number of signatures"),
    row(0x204, "CKR_PENDING", Recovery::NewSession, "asynchronous calls are not used, so the session state is unreliable"),
    row(0x205, "CKR_SESSION_ASYNC_NOT_SUPPORTED", Recovery::NewSession, "asynchronous calls are not used, so the session state is unreliable"),
    row(0x206, "CKR_SEED_RANDOM_REQUIRED", Recovery::FixConfiguration, "the token requires a seed first"),
    row(0x207, "CKR_OPERATION_NOT_VALIDATED", Recovery::FixConfiguration, "forbidden in the token's validated mode"),
    row(0x208, "CKR_TOKEN_NOT_INITIALIZED", Recovery::FixConfiguration, "the token is not initialized: it was reset or never set up"),
    row(0x209, "CKR_PARAMETER_SET_NOT_SUPPORTED", Recovery::FixConfiguration, "the token does not support this parameter set"),
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
        assert_eq!(names.len(), TABLE.len(), "duplicate name");
        for code in STANDARD {
            assert!(codes.contains(&code), "0x{code:x} is missing");
        }
        assert_eq!(TABLE.len(), STANDARD.len() + 1, "0x209 is the only addition");
    }

    #[test]
    fn table_matches_the_names_of_the_binding() {
        for code in 1..0x1000 {
            let Rv::Error(rv) = Rv::from(code) else { panic!("0x{code:x} is not an error") };
            assert_eq!(code_of(rv), code, "{rv:?}");
            match rv {
                // The binding lacks the codes added since v3.0.
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
    fn unknown_codes_need_a_new_session() {
        for code in [0x4, 0x300, 0x7fff_ffff, 0x8000_0000, 0x8000_0abc, u64::MAX] {
            assert_eq!(entry(code).recovery, Recovery::NewSession);
            assert_eq!(entry(code).code, code);
        }
    }

    #[test]
    fn recoveries_that_the_host_relies_on() {
        let cases = [
            (RvError::UserAlreadyLoggedIn, Recovery::Ignore),
            (RvError::PinIncorrect, Recovery::FixPin),
            (RvError::PinLocked, Recovery::FixPin),
            (RvError::SessionCount, Recovery::Retry),
            (RvError::SessionHandleInvalid, Recovery::NewSession),
            (RvError::ObjectHandleInvalid, Recovery::NewSession),
            (RvError::OperationActive, Recovery::NewSession),
            (RvError::UserNotLoggedIn, Recovery::Relogin),
            (RvError::GeneralError, Recovery::NewProcess),
            (RvError::DeviceError, Recovery::NewProcess),
            (RvError::TokenNotPresent, Recovery::NewProcess),
            (RvError::CryptokiNotInitialized, Recovery::NewProcess),
            (RvError::DataInvalid, Recovery::RejectRequest),
            (RvError::MechanismInvalid, Recovery::FixConfiguration),
        ];
        for (rv, recovery) in cases {
            assert_eq!(entry(code_of(rv)).recovery, recovery, "{rv:?}");
        }
    }

    #[test]
    fn reasons_are_sentence_fragments() {
        for entry in TABLE {
            assert!(!entry.reason.is_empty() && !entry.reason.ends_with('.'), "{}", entry.name);
        }
    }
}
