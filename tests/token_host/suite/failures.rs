//! Failures of an import, which end it: only a lack of ability leads to a weaker way.

use testkit::faulty;

use super::{
    modules::{Key, Module},
    place::{Place, plug_in},
    profiles::Profile,
};

/// A failure at one call of a function ends the import with a message that names both, and nothing stays in the token.
fn ends_at(profile: Profile, function: &str, code: (u64, &str), remedy: &str) {
    let place = Place::new(Module::Profile(profile));
    place.breaks(&format!("{function} return=0x{:x} {}", code.0, faulty::once()));
    let flags = [profile.import_flags(), &["--allow-plaintext-import"]].concat();
    let done = place.import(&plug_in(Key::P256), &flags);
    assert!(!done.good, "{profile:?} {function} {}: {done:?}", code.1);
    let expected = format!("{function} returned {} (0x{:x})", code.1, code.0);
    let said = format!("{}{}", done.out, done.err);
    assert!(said.contains(&expected) && said.contains(remedy), "{profile:?}: {said}");
    for word in ["new process", "token host", "is looked up"] {
        assert!(!said.contains(word), "the daemon's recovery: {said}");
    }
    place.breaks("");
    // The marker of the import does not stay either.
    assert_eq!(place.keys(), 0, "{profile:?} {function} {}", code.1);
}

#[test]
fn command_says_that_a_call_does_not_return() {
    let place = Place::new(Module::Profile(Profile::NetHsm));
    place.breaks(&format!("C_OpenSession delay=12000 {}", faulty::once()));
    let uri = place.uri();
    let done = place.run(&["--output", "json", "inspect", "--token", &uri]);
    assert!(done.good, "{done:?}");
    assert!(done.err.contains("C_OpenSession has not returned for 10 s"), "{done:?}");
}

#[test]
fn failure_of_the_token_leads_to_no_weaker_way() {
    let storage = "check that the token's storage is not full";
    let connection = "check the HSM and the connection to it";
    let codes = [
        (0x30, "CKR_DEVICE_ERROR", storage),
        (0x5, "CKR_GENERAL_ERROR", storage),
        (0x31, "CKR_DEVICE_MEMORY", "delete objects that are no longer needed"),
        (0x32, "CKR_DEVICE_REMOVED", connection),
        (0xb3, "CKR_SESSION_HANDLE_INVALID", ""),
        (0x101, "CKR_USER_NOT_LOGGED_IN", ""),
        (0xe2, "CKR_TOKEN_WRITE_PROTECTED", "make the token writable"),
    ];
    for (code, name, remedy) in codes {
        ends_at(Profile::CloudHsm, "C_UnwrapKey", (code, name), remedy);
    }
    for profile in [Profile::CloudHsmRsaAes, Profile::Luna, Profile::NoOaep] {
        ends_at(profile, "C_UnwrapKey", (0x30, "CKR_DEVICE_ERROR"), storage);
        ends_at(profile, "C_GenerateKeyPair", (0x5, "CKR_GENERAL_ERROR"), storage);
    }
    ends_at(Profile::NoOaep, "C_GenerateKey", (0x31, "CKR_DEVICE_MEMORY"), "delete objects");
    ends_at(Profile::SmartCard, "C_CreateObject", (0x31, "CKR_DEVICE_MEMORY"), "delete objects");
}
