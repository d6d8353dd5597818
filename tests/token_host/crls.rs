//! CRLs: a compromised daemon gets only those that the host's own limits permit.

use std::{sync::Arc, time::Duration};

use der::{AnyRef, Decode, Tag};
use pki::{
    CrlTbs, Issuer, SignedCrl,
    crl::{CrlContent, CrlIssuer, Reason, RevokedEntry, SerialNumber, TBS_MAX},
    testing::{context, element, extension},
};
use process::clock;
use token_host::protocol::Kind;

use super::{
    forged::{Forgery, child, forgery, parts, with},
    harness::{Site, root},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The host's own maximum lifetime of a CRL.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// A CRL that the host signs, with a change.
fn crl(issuer: &Arc<Issuer>, number: u64, change: impl FnOnce(&mut CrlContent)) -> CrlTbs {
    let now = now();
    let entry = RevokedEntry {
        serial: "0a".parse().unwrap(),
        revoked_at: now - DAY,
        reason: Reason::KeyCompromise,
        expires: now + DAY,
    };
    let this_update = now - Duration::from_secs(120);
    let mut content = CrlContent { number, this_update, next_update: now + MAX_LIFETIME, entries: vec![entry] };
    change(&mut content);
    CrlTbs::build(CrlIssuer::from_certificate(issuer.certificate()).unwrap(), content).unwrap()
}

/// The time in whole seconds, as a CRL has it.
fn now() -> std::time::SystemTime {
    let since = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    std::time::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// A list with another list of extensions.
fn extended(tbs: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let fields = parts(tbs);
    let mut extensions = parts(AnyRef::from_der(&fields[6]).unwrap().value());
    change(&mut extensions);
    with(tbs, 6, &element(context(0, true), &[&element(Tag::Sequence, &[&extensions.concat()])]))
}

/// CRLs that no host may sign after it has signed `honest`, whose number is 7.
pub(super) fn forgeries(issuer: &Arc<Issuer>, honest: &[u8]) -> Vec<Forgery> {
    let with_number = |number: u64, change: fn(&mut CrlContent)| crl(issuer, number, change).der().to_vec();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let old = crl(issuer, 8, |content| {
        content.this_update -= minutes(5);
        content.next_update -= minutes(10);
    });
    let old = old.der().to_vec();
    let early = crl(issuer, 8, |content| content.this_update += minutes(7)).der().to_vec();
    let ended = crl(issuer, 8, |content| {
        content.this_update -= DAY;
        content.next_update = content.this_update + minutes(1);
    });
    let late = crl(issuer, 8, |content| {
        content.this_update += minutes(2);
        content.next_update += minutes(3);
    });
    let delta = extension(b"\x55\x1d\x1b", Some(0xff), &element(Tag::Integer, &[&[1]]));
    let foreign = element(Tag::Sequence, &[&element(context(0, false), &[&[1; 20]])]);
    let foreign = extension(b"\x55\x1d\x23", None, &foreign);
    let entry = |serial: u8| element(Tag::Sequence, &[&element(Tag::Integer, &[&[serial]]), &parts(honest)[3]]);
    let entries = |serials: &[u8]| {
        let entries: Vec<_> = serials.iter().map(|serial| entry(*serial)).collect();
        with(honest, 5, &element(Tag::Sequence, &[&entries.concat()]))
    };
    let cases = [
        ("form", "nothing", Vec::new(), ""),
        ("form", "a leaf", super::forged::leaf(issuer, |_| {}), ""),
        ("form", "half a list", honest[..honest.len() / 2].to_vec(), ""),
        ("form", "a list and more", [honest, b"\0"].concat(), ""),
        ("form", "a delta CRL", extended(honest, |list| list.push(delta)), "critical"),
        ("issuer", "another name", with(honest, 2, b"\x30\x00"), "not the subject"),
        ("issuer", "another key identifier", extended(honest, |list| list[0] = foreign), "key identifier"),
        ("number", "the same for another list", with_number(7, |content| content.entries.clear()), "was signed"),
        ("number", "a smaller one", with_number(6, |_| {}), "was signed"),
        ("number", "none", extended(honest, |list| list.truncate(1)), "missing"),
        ("validity", "thisUpdate long ago", old, "long before now"),
        ("validity", "thisUpdate in the future", early, "in the future"),
        ("validity", "nextUpdate in the past", ended.der().to_vec(), "has passed"),
        ("validity", "nextUpdate too late", late.der().to_vec(), "later than"),
        ("entries", "unsorted", entries(&[2, 1]), "not sorted"),
        ("entries", "twice", entries(&[2, 2]), "not sorted"),
        ("entries", "an empty list", entries(&[]), "must be absent"),
        (
            "signature",
            "another algorithm",
            with(honest, 1, b"\x30\x05\x06\x03\x2b\x65\x70"),
            "not that of the CA's key",
        ),
    ];
    let forgery = |(field, name, message, word)| forgery(("CRL", field), name, Kind::Crl, message, word);
    let mut forgeries: Vec<_> = cases.into_iter().map(forgery).collect();
    let mut long = crl(issuer, 8, |content| content.entries = many(13_000)).der().to_vec();
    // Beyond the limit by entries that the builder would not have made.
    while long.len() <= TBS_MAX {
        let mut fields = parts(&long);
        let more = entry(1);
        let length = AnyRef::from_der(&fields[5]).unwrap().value().to_vec();
        fields[5] = element(Tag::Sequence, &[&more.repeat(2000), &length]);
        long = element(Tag::Sequence, &[&fields.concat()]);
    }
    forgeries.push(forgery(("size", "too large a list", long, "")));
    forgeries
}

fn many(count: u32) -> Vec<RevokedEntry> {
    let serial = |number: u32| SerialNumber::new(&[&[0x70; 12][..], &number.to_be_bytes()].concat()).unwrap();
    let entry = |number| RevokedEntry {
        serial: serial(number),
        revoked_at: now() - DAY,
        reason: Reason::KeyCompromise,
        expires: now() + DAY,
    };
    (0..count).map(entry).collect()
}

/// The first CRL that a host signs.
pub(super) fn honest(issuer: &Arc<Issuer>) -> Vec<u8> {
    crl(issuer, 7, |_| {}).der().to_vec()
}

#[test]
fn host_that_allows_crls_signs_them_and_refuses_forged_ones() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    let mut settings = site.host_settings();
    settings.max_crl_lifetime = Some(MAX_LIFETIME);
    forger.hello(&serde_json::to_vec(&settings).unwrap());
    let (key, honest) = (site.issuer.public_key(), honest(&site.issuer));
    for _ in 0..2 {
        forger.signs(Kind::Crl, key, &honest);
        forger.refuses(&site.issuer, &forgeries(&site.issuer, &honest));
    }
    // A list of several frames' former size, empty ones, and greater numbers.
    forger.signs(Kind::Crl, key, crl(&site.issuer, 8, |content| content.entries = many(13_000)).der());
    forger.signs(Kind::Crl, key, crl(&site.issuer, u64::MAX, |content| content.entries.clear()).der());
    let signed = forger.status().signed;
    assert_eq!(signed.iter().filter(|count| count.kind == Kind::Crl).map(|count| count.count).sum::<u64>(), 4);
    drop(forger);
    assert!(host.wait().unwrap().success());
}

#[test]
fn host_without_the_permission_signs_no_crl() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let refused = forgery(("CRL", "permission"), "any", Kind::Crl, honest(&site.issuer), "does not allow CRLs");
    forger.refuses(&site.issuer, &[refused]);
    drop(forger);
    assert!(host.wait().unwrap().success());
}

#[test]
fn signature_of_the_token_makes_a_crl_that_may_be_released() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    let mut settings = site.host_settings();
    settings.max_crl_lifetime = Some(MAX_LIFETIME);
    forger.hello(&serde_json::to_vec(&settings).unwrap());
    let tbs = Arc::new(crl(&site.issuer, 1, |_| {}));
    let signature = forger.signature(Kind::Crl, site.issuer.public_key().fingerprint(), tbs.der());
    assert!(SignedCrl::assemble(Arc::clone(&tbs), &signature).is_ok());
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let other = CrlIssuer::from_certificate(&pki::pem::blocks(root(&other).as_bytes()).unwrap().remove(0).der).unwrap();
    let content = CrlContent { number: 1, this_update: now(), next_update: now() + DAY, entries: Vec::new() };
    let foreign = Arc::new(CrlTbs::build(other, content).unwrap());
    assert!(SignedCrl::assemble(foreign, &signature).is_err());
    drop(forger);
    assert!(host.wait().unwrap().success());
}
