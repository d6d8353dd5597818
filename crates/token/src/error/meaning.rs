//! What a return code means to a person, and what to do about it.
//!
//! [`super::codes`] says what the daemon does after a code, and why; nothing here depends on that.

use cryptoki::context::Function;

/// The meaning of a code whose entry in the table explains the daemon's recovery instead.
pub(super) fn meaning(code: u64) -> Option<&'static str> {
    Some(match code {
        0x001 | 0x050 => "the call was aborted",
        0x002 => "the process is out of memory",
        0x003 => "the slot does not exist any more",
        0x005 => "the library failed and does not say why",
        0x006 => "the token could not perform the call and does not say why",
        0x007 => "the library does not accept the arguments of the call",
        0x008 | 0x051 | 0x064..=0x067 | 0x0b4 | 0x0c0 | 0x0c1 | 0x160 | 0x180 | 0x204 | 0x205 => {
            "a code that does not belong to this call"
        }
        0x031 => "the token's memory is full",
        0x032 => "the token was removed during the call",
        0x060 | 0x082 => "the object does not exist any more",
        0x063 => "the key is of another type than the mechanism needs",
        0x068 => "the key may not be used for this operation",
        0x090 => "the session is busy with another operation",
        0x091 => "the session has lost its operation",
        0x0a0 => "the PIN is wrong",
        0x0a2 => "the PIN is too short or too long for this token",
        0x0b1 => "all sessions of the token are in use",
        0x0b3 => "the session has ended",
        0x0f0 => "the unwrapping key does not exist any more",
        0x100 => "a user is logged in already",
        0x101 => "no user is logged in",
        0x104 => "another user is logged in",
        0x113 => "the wrapping key does not exist any more",
        0x121 => "the token has no random number generator",
        0x150 => "the token's output is longer than it announced",
        0x1b6 => "the module failed its self-test and has shut down",
        0x1b7 => "the library could not load a library that it needs",
        _ => return None,
    })
}

/// What a person can do after a code of a function; `None` where that depends on more than these. C_Initialize and
/// C_Login have remedies of their own ([`crate::module`]).
pub(super) fn advice(code: u64, function: Function) -> Option<&'static str> {
    const FULL: &str = "delete objects that are no longer needed by the vendor's tool, or give the token more storage";
    const STORAGE: &str = "check that the token's storage is not full and that this user may write it (SoftHSM: the \
                           directory that directories.tokendir in its configuration names)";
    const CONNECTION: &str = "check the HSM and the connection to it by the vendor's tool, and run this again";
    let writes = writes(function);
    Some(match code {
        0x002 => "raise the process's memory limit",
        0x005 | 0x006 | 0x030 if writes => STORAGE,
        0x030 | 0x032 | 0x0e0 | 0x0e1 => CONNECTION,
        0x031 if writes => FULL,
        0x031 | 0x0b1 | 0x201 => "end other applications' sessions, or raise the token's limit of sessions",
        0x068 => "use a key that may sign: CKA_SIGN must be true and CKA_ALWAYS_AUTHENTICATE false",
        0x070 if matches!(function, Function::SignInit | Function::Sign) => {
            "the key's CKA_ALLOWED_MECHANISMS must include CKM_ECDSA, CKM_EDDSA or CKM_RSA_PKCS, as its type requires"
        }
        0x0b5 | 0x0e2 => "make the token writable (by the vendor's tool, or the permissions of its storage)",
        0x0b8 => "log the security officer out",
        0x101 => "give the PIN: --pin-file, or pin-source=file:... in the URI",
        0x203 => "use another key: this one has made as many signatures as the token allows",
        0x206 | 0x207 => "see the vendor's documentation of the token's security mode",
        0x208 => "initialize the token by the vendor's tool",
        _ => return None,
    })
}

/// Whether a function writes the token's storage.
fn writes(function: Function) -> bool {
    matches!(
        function,
        Function::CopyObject
            | Function::CreateObject
            | Function::DestroyObject
            | Function::GenerateKey
            | Function::GenerateKeyPair
            | Function::SetAttributeValue
            | Function::UnwrapKey
    )
}

#[cfg(test)]
mod tests {
    use super::{super::TABLE, *};

    /// Words about what a daemon does next, which mislead in a command that ends.
    #[test]
    fn no_meaning_speaks_of_recovery() {
        for entry in TABLE {
            let meaning = meaning(entry.code).unwrap_or(entry.reason);
            for word in
                ["again", "new process", "unreliable", "repeated", "is looked up", "state is unknown", "may succeed"]
            {
                assert!(!meaning.contains(word), "{}: {meaning}", entry.name);
            }
        }
    }

    #[test]
    fn advice_depends_on_what_was_called() {
        for (code, function, expected) in [
            (0x006, Function::CreateObject, Some("storage is not full")),
            (0x006, Function::Sign, None),
            (0x030, Function::GenerateKeyPair, Some("storage is not full")),
            (0x030, Function::OpenSession, Some("connection to it")),
            (0x031, Function::UnwrapKey, Some("delete objects")),
            (0x031, Function::OpenSession, Some("other applications' sessions")),
            (0x068, Function::SignInit, Some("CKA_SIGN must be true")),
            (0x070, Function::SignInit, Some("CKA_ALLOWED_MECHANISMS")),
            (0x070, Function::GenerateKeyPair, None),
            (0x0e2, Function::CreateObject, Some("make the token writable")),
        ] {
            let advice = advice(code, function);
            assert_eq!(advice.is_some(), expected.is_some(), "{code:#x} {function:?}: {advice:?}");
            assert!(advice.is_none_or(|text| text.contains(expected.unwrap())), "{code:#x} {function:?}: {advice:?}");
        }
    }
}
