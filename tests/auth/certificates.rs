//! Client certificates: accepted ones, all kinds of invalid ones, and changes between two requests.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use istio_hsm_ca::auth::client_certificate::{CertificateError, ClientCertificates, Settings, previous::PreviousCa};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::keys::{NOW, at};

pub const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// A CA in software.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().unwrap())
    }

    pub fn with_key(name: &str, key: KeyPair) -> Self {
        Self::until(name, key, at(NOW + 1_000_000))
    }

    /// A CA that is valid now, by the machine's clock.
    pub fn living() -> Self {
        let now = process::clock::now();
        let key = KeyPair::generate().unwrap();
        let mut params = Self::params("ca", now + Duration::from_secs(3600));
        params.not_before = (now - Duration::from_secs(3600)).into();
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn until(name: &str, key: KeyPair, not_after: SystemTime) -> Self {
        let params = Self::params(name, not_after);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn params(name: &str, not_after: SystemTime) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = at(NOW - 1_000_000).into();
        params.not_after = not_after.into();
        params
    }

    /// An intermediate CA issued by this one.
    fn below(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name, at(NOW + 1_000_000)), KeyPair::generate().unwrap());
        Self { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    pub fn leaf_with(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(CART)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = at(NOW - 100).into();
        params.not_after = at(NOW + 3600).into();
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap().into()
    }

    pub fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        self.leaf_with(&KeyPair::generate().unwrap(), change)
    }

    fn as_previous(&self) -> PreviousCa {
        PreviousCa::parse_all(self.pem.as_bytes()).unwrap().remove(0)
    }

    fn check_at(&self, checker: &ClientCertificates, leaf: &[u8], now: u64) -> String {
        let ca = self.as_previous();
        match checker.check(&[CertificateDer::from(leaf)], ca.accepted(), at(now)) {
            Ok(id) => id.to_string(),
            Err(refusal) => refusal.error.reason().to_owned(),
        }
    }

    fn check(&self, checker: &ClientCertificates, leaf: &[u8]) -> String {
        self.check_at(checker, leaf, NOW)
    }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

fn checker(settings: &str) -> ClientCertificates {
    let settings: Settings = toml::from_str(settings).unwrap();
    ClientCertificates::load(settings, &["cluster.local".parse().unwrap()]).unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn leaves_of_every_kind_of_ca_are_known() {
    for algorithm in
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256]
    {
        let ca = Ca::with_key("ca", KeyPair::generate_for(algorithm).unwrap());
        let checker = checker("");
        let leaf = ca.leaf(|_| ());
        for _ in 0..2 {
            assert_eq!(ca.check(&checker, &leaf), CART, "{algorithm:?}");
        }
    }
}

#[test]
fn client_certificate_without_workload_identity_is_refused() {
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;
    let names = |names: Vec<SanType>| -> Change { Box::new(move |params| params.subject_alt_names = names) };
    let extension = |oid: &[u64], critical: bool| -> Change {
        let mut extension = CustomExtension::from_oid_content(oid, vec![5, 0]);
        extension.set_criticality(critical);
        Box::new(move |params| params.custom_extensions = vec![extension])
    };
    let cases: Vec<(&str, Change, &str)> = vec![
        ("as it is", Box::new(|_| ()), CART),
        ("only clientAuth", Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]), CART),
        ("no basicConstraints", Box::new(|p| p.is_ca = IsCa::NoCa), CART),
        ("an unknown extension", extension(&[1, 2, 3, 4], false), CART),
        ("an unknown critical extension", extension(&[1, 2, 3, 4], true), "certificate_malformed"),
        ("a CA", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "certificate_ca"),
        ("no keyUsage", Box::new(|p| p.key_usages = vec![]), "certificate_key_usage"),
        (
            "keyUsage without digitalSignature",
            Box::new(|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
            "certificate_key_usage",
        ),
        ("no extendedKeyUsage", Box::new(|p| p.extended_key_usages = vec![]), "certificate_key_usage"),
        (
            "only serverAuth",
            Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "certificate_key_usage",
        ),
        (
            "anyExtendedKeyUsage",
            Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
            "certificate_key_usage",
        ),
        ("no names", names(vec![]), "certificate_names"),
        ("our serving certificate", names(vec![dns("istio-hsm-ca.istio-system.svc")]), "certificate_names"),
        ("an additional DNS name", names(vec![uri(CART), dns("a.example")]), "certificate_names"),
        ("a DNS name before", names(vec![dns("a.example"), uri(CART)]), "certificate_names"),
        (
            "an additional address",
            names(vec![uri(CART), SanType::IpAddress([127, 0, 0, 1].into())]),
            "certificate_names",
        ),
        ("a mailbox", names(vec![SanType::Rfc822Name("a@b.example".try_into().unwrap())]), "certificate_names"),
        ("two identities", names(vec![uri(CART), uri("spiffe://cluster.local/ns/a/sa/b")]), "certificate_names"),
        ("the same twice", names(vec![uri(CART), uri(CART)]), "certificate_names"),
        ("a web page", names(vec![uri("https://cluster.local/ns/shop/sa/cart")]), "certificate_names"),
        ("a shorter path", names(vec![uri("spiffe://cluster.local/shop/cart")]), "certificate_names"),
        ("empty parts", names(vec![uri("spiffe://cluster.local/ns//sa/cart")]), "certificate_names"),
        ("another trust domain", names(vec![uri("spiffe://evil.local/ns/shop/sa/cart")]), "certificate_trust_domain"),
        ("an alias", names(vec![uri("spiffe://old.local/ns/shop/sa/cart")]), "spiffe://old.local/ns/shop/sa/cart"),
        ("not valid yet", Box::new(|p| p.not_before = at(NOW + 1).into()), "certificate_not_yet_valid"),
        ("expired", Box::new(|p| p.not_after = at(NOW - 1).into()), "certificate_expired"),
        ("the last second", Box::new(|p| p.not_after = at(NOW).into()), CART),
    ];
    let (ca, checker) = (Ca::new("ca"), checker("trust_domain_aliases = ['old.local']"));
    for (name, change, expected) in cases {
        assert_eq!(ca.check(&checker, &ca.leaf(change)), expected, "{name}");
    }
    assert_eq!(checker.check(&[], ca.as_previous().accepted(), at(NOW)).unwrap_err().error, CertificateError::Empty);
    let own = CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap();
    assert_eq!(ca.check(&checker, &own), "certificate_ca");
}

#[test]
fn refusal_shows_what_the_certificate_says_and_what_is_configured() {
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;
    let ca = Ca::new("ca");
    let checker = checker("trust_domain_aliases = ['old.local']\nmax_age = '90s'");
    let cases: Vec<(Change, &str)> = vec![
        (
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://evil.local/ns/a/sa/b")]),
            "the certificate's trust domain is not one of this CA's (it names \"spiffe://evil.local/ns/a/sa/b\", and \
             configured are \"cluster.local\", \"old.local\")",
        ),
        (
            Box::new(|p| p.subject_alt_names = vec![dns("a.example"), uri("https://b/\u{1b}")]),
            "as its name (it names \"DNS:a.example\", \"https://b/\\u{1b}\")",
        ),
        (
            Box::new(|p| p.not_after = at(NOW - 1).into()),
            "; it ends at 2027-01-15T07:59:59.000Z, its issuer's at 2027-",
        ),
        (
            Box::new(|p| p.not_before = at(NOW + 1).into()),
            "; it begins at 2027-01-15T08:00:01.000Z, and it is 2027-01-15T08:00:00.000Z)",
        ),
        (Box::new(|_| ()), "; [auth.client_certificate] max_age is 1m 30s)"),
    ];
    for (change, expected) in cases {
        let leaf = ca.leaf(change);
        let refusal = checker.check(&[leaf], ca.as_previous().accepted(), at(NOW)).unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal} / {expected}");
    }
    let foreign = Ca::new("foreign").leaf(|_| ());
    let refusal = checker.check(&[foreign], ca.as_previous().accepted(), at(NOW)).unwrap_err().to_string();
    let expected = "and its issuer \"O=foreign\"; accepted are certificates of \"O=ca\")";
    assert!(refusal.contains(expected), "{refusal}");
}

#[test]
fn only_direct_leaves_of_the_current_key() {
    let (ca, checker) = (Ca::new("ca"), checker(""));
    let cases = [
        ("a CA of another name", Ca::new("other").leaf(|_| ()), "certificate_unknown_issuer"),
        ("a CA of the same name", Ca::new("ca").leaf(|_| ()), "certificate_signature"),
        ("a CA below", ca.below("below").leaf(|_| ()), "certificate_unknown_issuer"),
        ("a CA below of the same name", ca.below("ca").leaf(|_| ()), "certificate_signature"),
    ];
    for (name, leaf, expected) in cases {
        assert_eq!(ca.check(&checker, &leaf), expected, "{name}");
    }
}

#[test]
fn a_change_of_any_byte_proves_nothing() {
    let (ca, checker) = (Ca::new("ca"), checker(""));
    let leaf = ca.leaf(|_| ());
    assert_eq!(ca.check(&checker, &leaf), CART);
    for at in 0..leaf.len() {
        let mut changed = leaf.to_vec();
        changed[at] ^= 1;
        let result = ca.check(&checker, &changed);
        assert!(result.starts_with("certificate_"), "byte {at}: {result}");
    }
    assert_eq!(ca.check(&checker, &[&leaf[..], &[0]].concat()), "certificate_malformed");
    assert_eq!(ca.check(&checker, &leaf[..leaf.len() - 1]), "certificate_malformed");
    assert_eq!(ca.check(&checker, &vec![0x30; 100_000]), "certificate_malformed");
}

#[test]
fn time_runs_between_two_requests_of_one_connection() {
    let (ca, checker) = (Ca::new("ca"), checker("max_age = '1000s'"));
    let leaf = ca.leaf(|p| p.not_before = at(NOW).into());
    let cases = [
        (NOW - 1, "certificate_not_yet_valid"),
        (NOW, CART),
        (NOW + 1000, CART),
        (NOW + 1001, "certificate_too_old"),
        (NOW + 3601, "certificate_expired"),
    ];
    for (now, expected) in cases {
        assert_eq!(ca.check_at(&checker, &leaf, now), expected, "{now}");
    }
}

#[test]
fn a_leaf_ends_with_its_issuer() {
    let ca = Ca::until("ca", KeyPair::generate().unwrap(), at(NOW + 10));
    let (leaf, checker) = (ca.leaf(|_| ()), checker(""));
    assert_eq!(ca.check_at(&checker, &leaf, NOW + 10), CART);
    assert_eq!(ca.check_at(&checker, &leaf, NOW + 11), "certificate_expired");
}

#[test]
fn previous_cas_by_list_only() {
    // The usual renewal: the same name, another key.
    let (old, new, older) = (Ca::new("ca"), Ca::new("ca"), Ca::new("older"));
    let list = file(&format!("{}{}", old.pem, older.pem));
    let with = checker(&format!("previous_ca_certificates = ['{}']", list.path().display()));
    let (of_old, of_new, of_older) = (old.leaf(|_| ()), new.leaf(|_| ()), older.leaf(|_| ()));
    for _ in 0..2 {
        for leaf in [&of_old, &of_new, &of_older] {
            assert_eq!(new.check(&with, leaf), CART);
        }
    }
    assert_eq!(new.check(&with, &old.leaf(|p| p.subject_alt_names = vec![dns("a.example")])), "certificate_names");
    let without = checker("");
    assert_eq!(new.check(&without, &of_old), "certificate_signature");
    assert_eq!(new.check(&without, &of_older), "certificate_unknown_issuer");

    std::fs::write(list.path(), &older.pem).unwrap();
    with.reload().unwrap();
    assert_eq!(new.check(&with, &of_old), "certificate_signature", "although its signature was cached");
    assert_eq!(new.check(&with, &of_older), CART);
}

#[test]
fn the_current_key_changes_under_a_remembered_check() {
    let (old, new, checker) = (Ca::new("ca"), Ca::new("ca"), checker(""));
    let leaf = old.leaf(|_| ());
    assert_eq!(old.check(&checker, &leaf), CART);
    assert_eq!(new.check(&checker, &leaf), "certificate_signature");
    assert_eq!(old.check(&checker, &leaf), CART);
}

#[test]
fn the_denylist_holds_at_once() {
    let (ca, key) = (Ca::new("ca"), KeyPair::generate().unwrap());
    let (leaf, other) = (ca.leaf_with(&key, |_| ()), ca.leaf(|_| ()));
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.subject_public_key_info());
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let list = file("# nobody yet\n");
    let checker = checker(&format!("denylist = '{}'", list.path().display()));
    let both = || (ca.check(&checker, &leaf), ca.check(&checker, &other));
    let (good, denied) = (CART.to_owned(), "certificate_denied".to_owned());
    assert_eq!(both(), (good.clone(), good.clone()));
    std::fs::write(list.path(), format!("sha256:{hex}\n")).unwrap();
    assert_eq!(both(), (good.clone(), good.clone()), "read only on reload");
    checker.reload().unwrap();
    assert_eq!(both(), (denied.clone(), good.clone()));
    std::fs::write(list.path(), format!("{CART}\n")).unwrap();
    checker.reload().unwrap();
    assert_eq!(both(), (denied.clone(), denied.clone()));
    std::fs::write(list.path(), "\nspiffe://cluster.local/ns/shop\n").unwrap();
    let errors = checker.reload().unwrap_err();
    let path = list.path().display();
    assert!(errors[0].to_string().starts_with(&format!("{path}: line 2: ")), "{}", errors[0]);
    assert_eq!(both(), (denied.clone(), denied), "the old list stays");
}

#[test]
fn files_that_cannot_be_used() {
    let (leaf, bad) =
        (Ca::new("ca").leaf(|_| ()), file("-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n"));
    let leaf = file(&pem(&leaf));
    let empty = file("");
    for (path, message) in [
        ("/nonexistent/ca.pem".into(), "cannot be read"),
        (leaf.path().display().to_string(), "certificate 1 is not a CA certificate"),
        (bad.path().display().to_string(), "the PEM text is malformed: line 2"),
        (empty.path().display().to_string(), "no certificate"),
    ] {
        let settings: Settings = toml::from_str(&format!("previous_ca_certificates = ['{path}']")).unwrap();
        let errors = ClientCertificates::load(settings, &[]).unwrap_err();
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        let error = error.to_string();
        assert!(error.starts_with(&path) && error.contains(message), "{error}");
    }
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

#[test]
fn disabled_client_certificates_are_refused() {
    let (ca, checker) = (Ca::new("ca"), checker("disabled = true"));
    assert_eq!(ca.check(&checker, &ca.leaf(|_| ())), "certificate_disabled");
}

proptest! {
    #[test]
    fn certificate_checker_does_not_panic_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (ca, checker) = (Ca::new("ca"), checker(""));
        prop_assert!(ca.check(&checker, &bytes).starts_with("certificate_"));
    }

    #[test]
    fn no_broken_leaf_panics(cut in 0usize..600, place in 0usize..600, byte in any::<u8>()) {
        let (ca, checker) = (Ca::new("ca"), checker(""));
        let mut leaf = ca.leaf(|_| ()).to_vec();
        if let Some(at) = leaf.get_mut(place) {
            *at = byte;
        }
        leaf.truncate(leaf.len().saturating_sub(cut));
        let _ = ca.check(&checker, &leaf);
    }
}
