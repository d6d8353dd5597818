//! Building blocks for the tests of this crate and of `policy`: software keys, a software CA, hand-made CSRs.

pub mod draft;

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use der::{Encode, Header, Length, Tag, TagNumber};
use rcgen::{KeyPair, PublicKeyData, RsaKeySize, SigningKey};

use super::{
    Bundle, Issuer, Profile, PublicKey, Template, VerifiedCsr, algorithm,
    bundle::{BundleFiles, Input},
    crl::{CrlContent, CrlIssuer, CrlTbs, SignedCrl},
};
use crate::identity::Name;

/// 2026-01-01, the current time in the tests.
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

/// One day.
pub const DAY: Duration = Duration::from_secs(86_400);

/// Software keys, one of each type, generated once.
pub static P256: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
pub static P384: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
pub static ED25519: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
pub static RSA: LazyLock<KeyPair> =
    LazyLock::new(|| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap());
/// Of a type that certificates above the CA's may have, and the CA's not.
pub static P521: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap());
/// The workload's key.
pub static WORKLOAD: LazyLock<KeyPair> =
    LazyLock::new(|| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());

/// One key of each type.
pub fn keys() -> [&'static KeyPair; 4] {
    [&P256, &P384, &ED25519, &RSA]
}

/// The public key.
pub fn public(key: &KeyPair) -> PublicKey {
    PublicKey::from_spki_der(&key.subject_public_key_info()).unwrap()
}

/// A software CA that is its own root, valid for ten years around [`now`].
pub struct SoftCa {
    pub key: &'static KeyPair,
    pub issuer: Arc<Issuer>,
}

impl SoftCa {
    pub fn new(key: &'static KeyPair) -> Self {
        Self::with_life(key, (2025, 1, 1), (2035, 1, 1))
    }

    pub fn with_life(key: &'static KeyPair, from: (i32, u8, u8), to: (i32, u8, u8)) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Istio");
        params.distinguished_name.push(rcgen::DnType::CommonName, "Root CA");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
        let certificate = params.self_signed(key).unwrap();
        Self { key, issuer: plug_in(&certificate.pem(), &certificate.pem()) }
    }
}

/// A CRL of a software CA without entries, in PEM; of the day before [`now`].
pub fn crl(ca: &SoftCa, number: u64, next_update: SystemTime) -> String {
    let issuer = CrlIssuer::from_certificate(ca.issuer.certificate()).unwrap();
    let content = CrlContent { number, this_update: now() - DAY, next_update, entries: Vec::new() };
    let tbs = Arc::new(CrlTbs::build(issuer, content).unwrap());
    let signature = ca.key.sign(tbs.der()).unwrap();
    SignedCrl::assemble(tbs, &signature).unwrap().to_pem()
}

/// The issuer of a plug-in CA's files, without a cert-chain.pem.
pub fn plug_in(ca_cert: &str, root_cert: &str) -> Arc<Issuer> {
    let input = |name: &str, text: &str| Input { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", ca_cert),
        cert_chain: input("cert-chain.pem", ""),
        root_cert: input("root-cert.pem", root_cert),
    };
    Arc::clone(Bundle::check(files, now()).unwrap().issuer())
}

/// A constructed element with these parts.
pub fn element(tag: Tag, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let length = Length::try_from(parts.concat().len()).unwrap();
    Header::new(tag, length).encode_to_vec(&mut out).unwrap();
    [out, parts.concat()].concat()
}

/// A context-specific tag.
pub fn context(number: u32, constructed: bool) -> Tag {
    TagNumber(number).context_specific(constructed)
}

/// The content of the extension subjectAltName with (context tag, content) of each name.
pub fn san_value(names: &[(u32, &[u8])]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|(number, content)| element(context(*number, false), &[content])).collect();
    element(Tag::Sequence, &[&names.concat()])
}

/// An Extension; `oid` is the content of its object identifier.
pub fn extension(oid: &[u8], critical: Option<u8>, value: &[u8]) -> Vec<u8> {
    let oid = element(Tag::ObjectIdentifier, &[oid]);
    let critical = critical.map(|byte| element(Tag::Boolean, &[&[byte]])).unwrap_or_default();
    element(Tag::Sequence, &[&oid, &critical, &element(Tag::OctetString, &[value])])
}

/// The attribute extensionRequest.
pub fn extension_request(extensions: &[Vec<u8>]) -> Vec<u8> {
    let list = element(Tag::Sequence, &[&extensions.concat()]);
    attribute(b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e", &list)
}

/// An Attribute with one value.
pub fn attribute(oid: &[u8], value: &[u8]) -> Vec<u8> {
    element(Tag::Sequence, &[&element(Tag::ObjectIdentifier, &[oid]), &element(Tag::Set, &[value])])
}

/// A CertificationRequestInfo.
pub fn info(version: u8, subject: &[u8], spki: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let attributes = element(context(0, true), &[&attributes.concat()]);
    element(Tag::Sequence, &[&element(Tag::Integer, &[&[version]]), subject, spki, &attributes])
}

/// A CertificationRequest from its parts.
pub fn request(info: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    element(Tag::Sequence, &[info, algorithm, &element(Tag::BitString, &[b"\0", signature])])
}

/// A CertificationRequest signed with a key.
pub fn signed_request(key: &KeyPair, subject: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let info = info(0, subject, &key.subject_public_key_info(), attributes);
    let algorithm = algorithm::identifier(public(key).signature_algorithm());
    request(&info, algorithm, &key.sign(&info).unwrap())
}

/// A workload's CSR for these names; without names it has no extension.
pub fn csr(names: &[(u32, &[u8])]) -> VerifiedCsr {
    let wanted = extension_request(&[extension(b"\x55\x1d\x11", Some(0xff), &san_value(names))]);
    let attributes = if names.is_empty() { Vec::new() } else { vec![wanted] };
    VerifiedCsr::from_der(&signed_request(&WORKLOAD, b"\x30\x00", &attributes)).unwrap()
}

/// A name with the prefix `DNS:`, `IP:` or `URI:`.
pub fn san(text: &str) -> Name {
    match text.split_once(':') {
        Some(("DNS", name)) => Name::Dns(name.parse().unwrap()),
        Some(("IP", address)) => Name::Ip(address.parse().unwrap()),
        Some(("URI", id)) => Name::Spiffe(id.parse().unwrap()),
        _ => panic!("{text}"),
    }
}

/// A workload's grant at [`now`].
pub fn leaf(names: &[&str]) -> Template {
    Template {
        profile: Profile::Leaf,
        public_key: public(&WORKLOAD),
        names: names.iter().map(|text| san(text)).collect(),
        not_before: now() - Duration::from_secs(120),
        not_after: now() + DAY,
    }
}

/// The SPIFFE ID of the tests' workload, as [`san`] reads it.
pub const ID: &str = "URI:spiffe://cluster.local/ns/foo/sa/bar";
