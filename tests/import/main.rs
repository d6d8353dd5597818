//! The CA key is imported into a token and cannot be extracted.

mod killed;

use cryptoki::{
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use pki::PublicKey;
use rcgen::RsaKeySize;
use secrecy::SecretString;
use testkit::{
    ca::TestCa,
    softhsm::{TestToken, is_softhsm, pin},
};
use token::{
    adopt::{self, Access, Adoption},
    generate,
    import::{self, Control, How, ImportError, ImportReport, Options, Problem, WrapAttempt},
    inspect,
    key::{self, Accepted, CANARY_KEY_LABEL, Hints, KeyError, LOG_KEY_LABEL, objects::Placed, proof::ProofError},
    mechanism,
    module::{LoginError, PinState},
};

const LABEL: &str = "istio-ca";

fn options(allow_plaintext: bool) -> Options {
    Options { label: LABEL.to_owned(), allow_plaintext, kwp_mechanism: None, accepted: Accepted::default() }
}

/// Plans and runs an import in a separate session, as the command does.
fn import_with(
    token: &TestToken,
    ca: &TestCa,
    certificate: &[u8],
    options: &Options,
) -> Result<ImportReport, ImportError> {
    let ready = import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), options).unwrap();
    import::run(ready, &ca.key, certificate)
}

fn import(token: &TestToken, ca: &TestCa) -> ImportReport {
    import_with(token, ca, &ca.certificate, &options(false)).unwrap()
}

fn signs(session: &Session, key: &PublicKey) {
    let handle = key::find_private_key(session, key).unwrap();
    let signature = mechanism::sign(session, handle, key, b"message").unwrap();
    key.verify(key.signature_algorithm(), b"message", &signature).unwrap();
}

/// Everything in the token that is visible after login, to detect changes.
fn snapshot(session: &Session) -> Vec<String> {
    let mut objects = Vec::new();
    let classes = [
        ObjectClass::PRIVATE_KEY,
        ObjectClass::PUBLIC_KEY,
        ObjectClass::SECRET_KEY,
        ObjectClass::CERTIFICATE,
        ObjectClass::DATA,
    ];
    for class in classes {
        for object in session.find_objects(&[Attribute::Class(class)]).unwrap() {
            let id = key::public::id_of(session, object).unwrap();
            let label = key::public::label_of(session, object).unwrap();
            objects.push(format!("{class} {label:?} {id:?} {object}"));
        }
    }
    objects.sort();
    objects
}

fn of_class(session: &Session, class: ObjectClass, key: &PublicKey) -> Vec<ObjectHandle> {
    session
        .find_objects(&[Attribute::Class(class), Attribute::Token(true), Attribute::Id(key.key_id().to_vec())])
        .unwrap()
}

/// A private object with the key's ID that belongs to another key.
fn impostor(session: &Session, key: &PublicKey, label: &str) -> ObjectHandle {
    session
        .create_object(&[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Id(key.key_id().to_vec()),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::EcParams(key.ec_parameters_der().unwrap().to_vec()),
            Attribute::Value(vec![7; 32]),
        ])
        .unwrap()
}

fn mark(session: &Session, key: &PublicKey) {
    let label = format!("istio-hsm-ca import under way: {}", key::hex(&key.key_id()));
    session
        .create_object(&[
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Application(b"istio-hsm-ca".to_vec()),
            Attribute::Label(label.into_bytes()),
        ])
        .unwrap();
}

fn imports_wrapped(ca: &TestCa) {
    let token = TestToken::new("wrapped");
    let key = ca.key.public_key();
    let report = import(&token, ca);

    assert!(matches!(report.private_key, How::Wrapped { .. }), "{report:?}");
    assert_eq!((report.public_key, report.certificate), (Placed::Written, Placed::Written));
    assert_eq!(report.restricted_to_mechanism, Some(true));
    assert!(report.notes.is_empty() && report.cleared.is_empty(), "{report:?}");
    let WrapAttempt::Refused { answer, control } = &report.wrap_attempt else { panic!("{report:?}") };
    assert!(answer.contains("CKR_KEY_UNEXTRACTABLE") || answer.contains("CKR_KEY_FUNCTION_NOT_PERMITTED"), "{answer}");
    assert_eq!(*control, Control::Wrapped);
    let flags = report.attributes;
    assert_eq!((flags.sensitive, flags.extractable, flags.sign), (Some(true), Some(false), Some(true)));
    assert_eq!((flags.token, flags.private, flags.modifiable), (Some(true), Some(true), Some(false)));
    for forbidden in [flags.decrypt, flags.unwrap, flags.derive, flags.sign_recover, flags.always_authenticate] {
        assert_ne!(forbidden, Some(true), "{flags:?}");
    }
    for never in [flags.local, flags.always_sensitive, flags.never_extractable] {
        assert_ne!(never, Some(true), "an imported key claims to be local: {flags:?}");
    }

    // In another session, as in `serve`; the token has exactly three objects of the key.
    let other = token.session();
    signs(&other, key);
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY, ObjectClass::CERTIFICATE] {
        assert_eq!(of_class(&other, class, key).len(), 1, "{class}");
    }
    assert!(other.find_objects(&[Attribute::Token(false)]).unwrap().is_empty(), "session objects are left");
    assert!(other.find_objects(&[Attribute::Class(ObjectClass::DATA)]).unwrap().is_empty(), "the marker is left");
    let private = key::find_private_key(&other, key).unwrap();
    assert!(other.update_attributes(private, &[Attribute::Unwrap(true)]).is_err(), "the key can be changed");
    assert!(other.copy_object(private, &[Attribute::Extractable(true)]).is_err(), "a copy can be extractable");
}

#[test]
fn rsa_2048_key_is_imported_wrapped() {
    imports_wrapped(&TestCa::rsa(RsaKeySize::_2048));
}

#[test]
fn rsa_4096_key_is_imported_wrapped() {
    imports_wrapped(&TestCa::rsa(RsaKeySize::_4096));
}

#[test]
fn p256_key_is_imported_wrapped() {
    imports_wrapped(&TestCa::p256());
}

#[test]
fn p384_key_is_imported_wrapped() {
    imports_wrapped(&TestCa::p384());
}

#[test]
fn ed25519_key_is_imported_in_plaintext_only_with_the_flag() {
    let token = TestToken::new("ed25519");
    let session = token.session();
    let ca = TestCa::ed25519();
    let before = snapshot(&session);
    let problems = import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), &options(false)).unwrap_err();
    assert!(matches!(problems.as_slice(), [Problem::NotWrapped { .. }]), "{problems:?}");
    assert_eq!(snapshot(&session), before);

    let ready = import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), &options(true)).unwrap();
    assert!(!ready.already_there());
    let report = import::run(ready, &ca.key, &ca.certificate).unwrap();
    assert_eq!(report.private_key, How::Clear);
    signs(&session, ca.key.public_key());
}

#[test]
fn the_flag_allows_the_clear_and_does_not_ask_for_it() {
    let token = TestToken::new("flag");
    let ca = TestCa::p256();
    let report = import_with(&token, &ca, &ca.certificate, &options(true)).unwrap();
    assert!(matches!(report.private_key, How::Wrapped { .. }), "{report:?}");
}

#[test]
fn every_type_can_go_in_the_clear() {
    // For tokens that cannot unwrap; this one can, so the import in the clear is selected explicitly.
    let token = TestToken::new("clear");
    let session = token.session();
    for ca in [TestCa::rsa(RsaKeySize::_2048), TestCa::p256(), TestCa::p384(), TestCa::ed25519()] {
        let key = ca.key.public_key();
        let name = key::template::Name { id: &key.key_id(), label: LABEL };
        let flags = key::template::private(key.algorithm(), &name, None, false);
        let template = import::ClearTemplate::new(&ca.key, flags).unwrap();
        let object = session.create_object(template.attributes()).unwrap();
        key::proof::signs(&session, object, key).unwrap();
        key::proof::attributes(&session, object, false, &Accepted::default()).unwrap();
        key::proof::unreadable(&session, object, key.algorithm()).unwrap();
    }
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let token = TestToken::new("wrong-pin");
    let ca = TestCa::p256();
    let wrong = SecretString::from("wrong-pin");
    let problems = import::plan(&token.module, &token.uri, &wrong, ca.key.public_key(), &options(false)).unwrap_err();
    assert!(matches!(problems.as_slice(), [Problem::Login(LoginError::WrongPin { .. })]), "{problems:?}");
    assert!(!format!("{problems:?} {}", problems[0]).contains("wrong-pin\""), "the PIN is printed");
    assert_eq!(token.token.current_info().unwrap().pin, PinState::CountLow);
    import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), &options(false)).unwrap();
    assert_eq!(token.token.current_info().unwrap().pin, PinState::Normal);
}

#[test]
fn missing_token_is_reported_with_those_present() {
    let token = TestToken::new("present");
    let uri = "pkcs11:token=absent".parse().unwrap();
    let problems =
        import::plan(&token.module, &uri, &pin(), TestCa::p256().key.public_key(), &options(false)).unwrap_err();
    let text = problems[0].to_string();
    assert!(text.contains("pkcs11:token=absent") && text.contains(&token.token.info().label), "{text}");
}

#[test]
fn the_same_key_again_changes_nothing() {
    let token = TestToken::new("again");
    let session = token.session();
    let ca = TestCa::p256();
    let first = import(&token, &ca);
    let before = snapshot(&session);
    let other_label = Options { label: "another label".to_owned(), ..options(false) };
    let ready = import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), &other_label).unwrap();
    assert!(ready.already_there() && !ready.interrupted());
    let again = import::run(ready, &ca.key, &ca.certificate).unwrap();
    assert_eq!(again.private_key, How::AlreadyThere);
    assert_eq!((again.public_key, again.certificate), (Placed::Unchanged, Placed::Unchanged));
    assert_eq!(again.label, LABEL);
    assert_eq!(again.attributes, first.attributes);
    assert_eq!(again.service_keys.log.verifier(), first.service_keys.log.verifier());
    assert_eq!(again.service_keys.canary.verifier(), first.service_keys.canary.verifier());
    assert_eq!(snapshot(&session), before);
}

#[test]
fn a_renewed_certificate_takes_the_place_of_the_old_one() {
    let token = TestToken::new("renewed");
    let session = token.session();
    let ca = TestCa::p256();
    let key = ca.key.public_key();
    import(&token, &ca);
    let foreign = session
        .create_object(&[
            Attribute::Class(ObjectClass::CERTIFICATE),
            Attribute::CertificateType(cryptoki::object::CertificateType::X_509),
            Attribute::Token(true),
            Attribute::Id(key.key_id().to_vec()),
            Attribute::Label(b"somebody else's".to_vec()),
            Attribute::Subject(vec![0x30, 0]),
            Attribute::Value(vec![0x30, 0]),
        ])
        .unwrap();
    let private = key::find_private_key(&session, key).unwrap();
    let renewed = ca.renewed();
    let report = import_with(&token, &ca, &renewed, &options(false)).unwrap();
    assert_eq!((report.private_key, report.certificate), (How::AlreadyThere, Placed::Replaced));
    assert_eq!(key::find_private_key(&session, key).unwrap(), private);
    let left = key::objects::certificates(&session).unwrap();
    let ours: Vec<_> = left.iter().filter(|(_, label, _)| label == LABEL).collect();
    assert!(matches!(ours.as_slice(), [(_, _, value)] if *value == renewed));
    assert!(left.iter().any(|(object, ..)| *object == foreign), "a foreign certificate was deleted");
}

#[test]
fn another_keys_certificate_is_refused() {
    let token = TestToken::new("mismatch");
    let session = token.session();
    let before = snapshot(&session);
    for certificate in [TestCa::p256().certificate, b"no DER".to_vec()] {
        let error = import_with(&token, &TestCa::p256(), &certificate, &options(false)).unwrap_err();
        assert!(matches!(error, ImportError::Certificate(_)), "{error:?}");
    }
    assert_eq!(snapshot(&session), before);
}

#[test]
fn another_private_key_than_the_planned_one_is_refused() {
    let token = TestToken::new("other-key");
    let session = token.session();
    let before = snapshot(&session);
    let ca = TestCa::p256();
    let ready = import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), &options(false)).unwrap();
    let error = import::run(ready, &TestCa::p256().key, &ca.certificate).unwrap_err();
    assert!(matches!(error, ImportError::Proof(ProofError::WrongSignature)), "{error:?}");
    assert_eq!(snapshot(&session), before);
}

#[test]
fn another_key_under_the_same_id_does_no_harm() {
    let token = TestToken::new("duplicate");
    let session = token.session();
    let ca = TestCa::p256();
    let key = ca.key.public_key();
    import(&token, &ca);
    impostor(&session, key, "second");
    let before = snapshot(&session);
    signs(&session, key);
    let report = import(&token, &ca);
    assert_eq!(report.private_key, How::AlreadyThere);
    assert_eq!(snapshot(&session), before);
}

#[test]
fn a_strange_object_of_the_same_id_is_let_be() {
    let token = TestToken::new("strange");
    let session = token.session();
    let ca = TestCa::p256();
    impostor(&session, ca.key.public_key(), LABEL);
    let before = snapshot(&session);
    let problems = import::plan(&token.module, &token.uri, &pin(), ca.key.public_key(), &options(false)).unwrap_err();
    assert!(matches!(problems.as_slice(), [Problem::Existing(ImportError::Unproven { .. })]), "{problems:?}");
    assert_eq!(snapshot(&session), before);
}

#[test]
fn remains_of_an_interrupted_import_are_reported_and_removed() {
    let token = TestToken::new("interrupted");
    let session = token.session();
    let ca = TestCa::p256();
    let key = ca.key.public_key();
    mark(&session, key);
    impostor(&session, key, LABEL);
    let ready = import::plan(&token.module, &token.uri, &pin(), key, &options(false)).unwrap();
    assert!(ready.interrupted() && !ready.already_there());
    let report = import::run(ready, &ca.key, &ca.certificate).unwrap();
    assert_eq!(report.cleared.len(), 2, "{report:?}");
    assert!(matches!(report.private_key, How::Wrapped { .. }));
    assert!(session.find_objects(&[Attribute::Class(ObjectClass::DATA)]).unwrap().is_empty(), "the marker is left");
    signs(&session, key);
}

#[test]
fn remains_of_another_keys_import_are_only_reported() {
    let token = TestToken::new("other-mark");
    let session = token.session();
    let (ca, other) = (TestCa::p256(), TestCa::p256());
    mark(&session, other.key.public_key());
    let strange = impostor(&session, other.key.public_key(), LABEL);
    let report = import(&token, &ca);
    let id = key::hex(&other.key.public_key().key_id());
    assert!(report.notes.iter().any(|note| note.contains(&id)), "{report:?}");
    assert_eq!(of_class(&session, ObjectClass::PRIVATE_KEY, other.key.public_key()), [strange]);
    assert_eq!(session.find_objects(&[Attribute::Class(ObjectClass::DATA)]).unwrap().len(), 1);
}

#[test]
fn a_failure_removes_what_was_made() {
    let token = TestToken::new("undo");
    let ca = TestCa::p256();
    // The first session keeps the login; the second may not write token objects, so that the import fails half-way.
    let writing = token.session();
    let before = snapshot(&writing);
    let reading = token.token.open_session(false).unwrap();
    let ready = import::plan_in_session(token.token.clone(), reading, ca.key.public_key(), &options(false)).unwrap();
    let error = import::run(ready, &ca.key, &ca.certificate).unwrap_err();
    assert!(!matches!(error, ImportError::NotUndone { .. }), "{error:?}");
    assert_eq!(snapshot(&writing), before);

    let mut made = key::objects::Made::new(&writing);
    let name = key::template::Name { id: b"undone", label: "undone" };
    key::objects::place_public(&writing, ca.key.public_key(), &name, &mut made).unwrap();
    assert_ne!(snapshot(&writing), before);
    assert_eq!(made.undo(), 0);
    assert_eq!(snapshot(&writing), before);
}

#[test]
fn generated_keys_sign_and_are_never_overwritten() {
    use pki::KeyAlgorithm::{Ed25519, P256, P384, Rsa};
    let token = TestToken::new("generate");
    let session = token.session();
    for algorithm in [P256, P384, Ed25519, Rsa { bits: 2048 }, Rsa { bits: 3072 }] {
        let label = format!("ca {algorithm}");
        let made = generate::run(&token.token, &session, algorithm, &label, &Accepted::default()).unwrap();
        assert_eq!(made.public_key.algorithm(), algorithm);
        let flags = made.attributes;
        assert_eq!((flags.sensitive, flags.extractable, flags.modifiable), (Some(true), Some(false), Some(false)));
        if is_softhsm() {
            assert_eq!(flags.local, Some(true));
            assert_eq!((flags.always_sensitive, flags.never_extractable), (Some(true), Some(true)));
        }
        signs(&session, &made.public_key);
        let before = snapshot(&session);
        let error = generate::run(&token.token, &session, algorithm, &label, &Accepted::default()).unwrap_err();
        assert!(matches!(error, generate::GenerateError::LabelTaken(_)), "{error:?}");
        assert_eq!(snapshot(&session), before);
    }
    let contents = inspect::contents(&session).unwrap();
    assert_eq!(contents.keys.len(), 7, "not five and the two service keys");
    assert!(contents.keys.iter().all(|key| key.unfit.is_none() && key.key_sha256.is_some()));
}

#[test]
fn service_keys_are_found_by_their_labels() {
    let token = TestToken::new("service");
    let session = token.session();
    let ca = TestCa::p256();
    let report = import(&token, &ca);
    for (label, reported) in
        [(LOG_KEY_LABEL, &report.service_keys.log), (CANARY_KEY_LABEL, &report.service_keys.canary)]
    {
        let found = key::find_by_label(&session, label).unwrap();
        assert_eq!(reported.verifier().unwrap().key_sha256, key::hex(&found.public_key.fingerprint()));
        signs(&session, &found.public_key);
    }
    assert!(matches!(key::find_by_label(&session, "none of ours"), Err(KeyError::NotFound(_))));
}

#[test]
fn a_public_half_without_a_private_one_is_cleared() {
    let token = TestToken::new("orphan");
    let session = token.session();
    let ca = TestCa::p256();
    let id = ca.key.public_key().key_id();
    let name = key::template::Name { id: &id, label: CANARY_KEY_LABEL };
    session.create_object(&key::template::public(ca.key.public_key(), &name)).unwrap();
    let report = import(&token, &ca);
    assert_eq!(report.service_keys.cleared.len(), 1, "{report:?}");
    key::find_by_label(&session, CANARY_KEY_LABEL).unwrap();
}

#[test]
fn inspect_tells_certificates_and_tokens() {
    let token = TestToken::new("inspect");
    let session = token.session();
    let ca = TestCa::p256();
    let report = import(&token, &ca);
    let contents = inspect::contents(&session).unwrap();
    let [certificate] = contents.certificates.as_slice() else { panic!("{contents:?}") };
    assert_eq!((&certificate.sha256, &certificate.id), (&report.certificate_sha256, &report.id));
    let content = certificate.content.as_ref().unwrap();
    assert_eq!(content.key_sha256, report.key_sha256);
    assert!(content.key_present && content.subject.contains("test CA"));
    assert!(inspect::module(&token.module).unwrap().tokens.iter().any(|view| view.info == *token.token.info()));
    serde_json::to_string(&contents).unwrap();
    serde_json::to_string(&report).unwrap();
}

#[test]
fn install_stores_a_certificate_for_a_generated_key() {
    let token = TestToken::new("install");
    let session = token.session();
    let ca = TestCa::p256();
    let key = ca.key.public_key();
    let adoption =
        Adoption { hints: Hints::default(), accepted: Accepted::default(), origin: adopt::Origin::Generated };
    let install = |certificate: &[u8]| {
        let access = Access { session: &session, read_only: None };
        adopt::run(&token.token, access, key, certificate, &adoption)
    };
    assert!(matches!(install(&ca.certificate), Err(generate::GenerateError::Key(_))));
    import(&token, &ca);
    let renewed = ca.renewed();
    let installed = install(&renewed).unwrap();
    assert_eq!((installed.certificate, installed.public_key), (Placed::Replaced, Placed::Unchanged));
    assert!(installed.disabled().is_empty(), "log key and canary are there");
    assert_eq!(install(&renewed).unwrap().certificate, Placed::Unchanged);
    let error = install(&TestCa::p256().certificate).unwrap_err();
    assert!(matches!(error, generate::GenerateError::Certificate(_)), "{error:?}");
}
