//! Certificates and chains that Istio's clients would refuse.

use std::time::Duration;

use der::Tag;
use pki::{
    bundle::Problem,
    pem,
    testing::{
        DAY, ED25519, P256, P384, RSA,
        draft::{
            Draft, authority_key_id, basic_constraints, common_name, extended_key_usage, key_usage, name_constraints,
            require_explicit_policy, subject_key_id,
        },
        extension, now, san_value,
    },
};

use super::{
    desk::{Desk, ROOT_ID, UPPER_ID, ca, name, root, upper},
    page::Section,
};

/// DER AlgorithmIdentifier of ecdsa-with-SHA1.
const ECDSA_SHA1: &[u8] = b"\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01";

/// What is wrong, and how the files come to be so.
const CASES: &[(&str, fn(&Desk))] = &[
    ("A root in ca-cert.pem and the CA in root-cert.pem", |desk| {
        let direct = Draft::under(&name("Mesh CA"), &P256, &name("Root CA"), now()).pem(&P384);
        desk.write("ca-cert.pem", root().pem(&P384));
        desk.write("root-cert.pem", &direct);
        desk.write("cert-chain.pem", direct + &root().pem(&P384));
    }),
    ("The same, where the key cannot be read", |desk| {
        desk.write("ca-cert.pem", root().pem(&P384));
        desk.write("root-cert.pem", Draft::under(&name("Mesh CA"), &P256, &name("Root CA"), now()).pem(&P384));
        desk.write("ca-key.pem", pem::encode("PUBLIC KEY", b"0"));
    }),
    ("The root first in ca-cert.pem", |desk| {
        desk.write("ca-cert.pem", format!("{}{}", desk.text("root-cert.pem"), desk.text("ca-cert.pem")));
    }),
    ("The CA's certificate in cert-chain.pem alone", |desk| {
        desk.write("cert-chain.pem", format!("{}{}", desk.text("ca-cert.pem"), desk.text("cert-chain.pem")));
        desk.write("ca-cert.pem", upper().pem(&P384));
    }),
    ("An intermediate that is missing", |desk| desk.write("cert-chain.pem", "")),
    ("A root that is missing", |desk| {
        desk.write("root-cert.pem", Draft::new(&name("Another root"), &ED25519, now()).pem(&ED25519));
    }),
    ("A root of the same name and another key", |desk| {
        desk.write("root-cert.pem", Draft::new(&name("Root CA"), &ED25519, now()).pem(&ED25519));
    }),
    ("A root that was made again with another key identifier", |desk| {
        desk.write(
            "root-cert.pem",
            Draft::new(&name("Root CA"), &P384, now()).with(subject_key_id(&[1; 8])).pem(&P384),
        );
    }),
    ("An authorityKeyIdentifier with the serial number of the root before its renewal", |desk| {
        let authority = authority_key_id(Some(ROOT_ID), Some((&name("Root CA"), &[9])));
        let draft = Draft::under(&name("Upper CA"), &RSA, &name("Root CA"), now()).with(subject_key_id(UPPER_ID));
        desk.write("cert-chain.pem", draft.with(authority).pem(&P384));
    }),
    ("An authorityKeyIdentifier with another issuer of the root", |desk| {
        let authority = authority_key_id(None, Some((&name("A CA further up"), &[1])));
        let draft = Draft::under(&name("Upper CA"), &RSA, &name("Root CA"), now()).with(subject_key_id(UPPER_ID));
        desk.write("cert-chain.pem", draft.with(authority).pem(&P384));
    }),
    ("An issuer's name in another string type", |desk| {
        let printable = common_name(Tag::PrintableString, b"Root CA");
        desk.write("cert-chain.pem", Draft { issuer: printable, ..upper() }.pem(&P384));
    }),
    ("Two roots of one name, of which another key's comes first", |desk| {
        let other = Draft::new(&name("Root CA"), &ED25519, now()).pem(&ED25519);
        desk.write("root-cert.pem", other + &root().pem(&P384));
    }),
    ("An expired root next to its renewal", |desk| {
        let old = Draft { not_after: now() - DAY, serial: vec![7], ..root() };
        desk.write("root-cert.pem", format!("{}{}", desk.text("root-cert.pem"), old.pem(&P384)));
    }),
    ("A negative serial number", |desk| desk.write("ca-cert.pem", Draft { serial: vec![0xfb], ..ca() }.pem(&RSA))),
    ("A negative serial number outside the path", |desk| {
        let stray = Draft { serial: vec![0x80, 1], ..Draft::new(&name("Another"), &ED25519, now()) };
        desk.write("cert-chain.pem", desk.text("cert-chain.pem") + &stray.pem(&ED25519));
    }),
    ("SHA-1 below the root", |desk| {
        let sign = |tbs: &[u8]| {
            desk.write("tbs", tbs);
            desk.write("root.key", P384.serialize_pem());
            desk.shell("openssl dgst -sha1 -sign root.key -out signature tbs");
            desk.read("signature")
        };
        let signed = upper().signed(ECDSA_SHA1, sign);
        desk.write("cert-chain.pem", pem::encode("CERTIFICATE", &signed));
    }),
    ("Version 1, as the CA and root", |desk| {
        let old =
            Draft { version: None, extensions: Vec::new(), ..Draft::new(&name("Mesh CA"), &P256, now()) }.pem(&P256);
        desk.write("ca-cert.pem", &old);
        desk.write("root-cert.pem", &old);
        desk.write("cert-chain.pem", "");
    }),
    ("Version 1 below the root", |desk| {
        desk.write("cert-chain.pem", Draft { version: None, extensions: Vec::new(), ..upper() }.pem(&P384));
    }),
    ("Version 2", |desk| {
        desk.write("cert-chain.pem", Draft { version: Some(1), extensions: Vec::new(), ..upper() }.pem(&P384));
    }),
    ("A unique identifier", |desk| {
        desk.write("ca-cert.pem", Draft { has_unique_id: true, ..ca() }.pem(&RSA));
    }),
    ("A CA's key of type RSASSA-PSS", |desk| {
        desk.write("ca-cert.pem", with_key(desk, "openssl genpkey -algorithm RSA-PSS"))
    }),
    ("A CA's key on P-521", |desk| {
        desk.write("ca-cert.pem", with_key(desk, "openssl ecparam -name secp521r1 -genkey -noout"));
    }),
    ("A CA's key on secp256k1", |desk| {
        desk.write("ca-cert.pem", with_key(desk, "openssl ecparam -name secp256k1 -genkey -noout"));
    }),
    ("Explicit curve parameters", |desk| {
        let make = "openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit";
        desk.write("ca-cert.pem", with_key(desk, make));
    }),
    ("An issuer's key of type RSASSA-PSS", |desk| {
        desk.shell(
            "openssl genpkey -algorithm RSA-PSS > pss.key; openssl pkey -in pss.key -pubout -outform DER > spki",
        );
        let draft = Draft { spki: desk.read("spki"), ..root() };
        desk.write("root-cert.pem", draft.pem(&P384));
    }),
    ("Six CAs between the CA and its root", |desk| {
        let mut chain = String::new();
        for level in 0..6 {
            let (above, own) = (format!("Level {level}"), format!("Level {}", level + 1));
            let above = if level == 0 { name("Root CA") } else { name(&above) };
            let keys = [&*P384, &*RSA];
            chain += &Draft::under(&name(&own), keys[usize::from(level % 2 == 0)], &above, now()).pem(keys[level % 2]);
        }
        desk.write("cert-chain.pem", chain);
        desk.write("ca-cert.pem", Draft::under(&name("Mesh CA"), &P256, &name("Level 6"), now()).pem(&P384));
    }),
    ("CA:FALSE", |desk| {
        let extensions = vec![basic_constraints(false, None), key_usage(true)];
        desk.write("ca-cert.pem", Draft { extensions, ..ca() }.pem(&RSA));
    }),
    ("No basicConstraints", |desk| {
        desk.write("ca-cert.pem", Draft { extensions: vec![key_usage(true)], ..ca() }.pem(&RSA));
    }),
    ("A keyUsage without keyCertSign", |desk| {
        let extensions = vec![basic_constraints(true, None), key_usage(false)];
        desk.write("ca-cert.pem", Draft { extensions, ..ca() }.pem(&RSA));
    }),
    ("A path length that is too small", |desk| {
        let extensions = vec![basic_constraints(true, Some(0)), key_usage(true), subject_key_id(UPPER_ID)];
        desk.write("cert-chain.pem", Draft { extensions, ..upper() }.pem(&P384));
    }),
    ("A path length that rustls-webpki cannot read", |desk| {
        let extensions = vec![basic_constraints(true, Some(256)), key_usage(true), subject_key_id(UPPER_ID)];
        desk.write("cert-chain.pem", Draft { extensions, ..upper() }.pem(&P384));
    }),
    ("A CA for servers alone", |desk| desk.write("ca-cert.pem", ca().with(extended_key_usage(&[1])).pem(&RSA))),
    ("A CA that has expired", |desk| {
        desk.write("ca-cert.pem", Draft { not_after: now() - DAY, ..ca() }.pem(&RSA));
    }),
    ("A CA that is not yet valid", |desk| {
        desk.write("ca-cert.pem", Draft { not_before: now() + Duration::from_secs(60), ..ca() }.pem(&RSA));
    }),
    ("A constraint on URI names", |desk| {
        let draft = upper().with(name_constraints(&[(6, b"cluster.local")], &[]));
        desk.write("cert-chain.pem", draft.pem(&P384));
    }),
    ("A constraint on directory names", |desk| {
        let draft = upper().with(name_constraints(&[(4, &name("Mesh CA"))], &[]));
        desk.write("cert-chain.pem", draft.pem(&P384));
    }),
    ("A constraint that forbids the CA's own name", |desk| {
        desk.write("cert-chain.pem", upper().with(name_constraints(&[(2, b"svc")], &[])).pem(&P384));
        let names = extension(b"\x55\x1d\x11", None, &san_value(&[(2, b"ca.istio.io")]));
        desk.write("ca-cert.pem", ca().with(names).pem(&RSA));
    }),
    ("A critical extension that clients do not know", |desk| {
        desk.write("ca-cert.pem", ca().with(extension(b"\x2a\x03\x04", Some(0xff), b"\x05\x00")).pem(&RSA));
    }),
    ("A critical subjectKeyIdentifier", |desk| {
        let extensions = vec![basic_constraints(true, None), extension(b"\x55\x1d\x0e", Some(0xff), b"\x04\x01\x01")];
        desk.write("ca-cert.pem", Draft { extensions, ..ca() }.pem(&RSA));
    }),
    ("A required certificate policy", |desk| {
        desk.write("ca-cert.pem", ca().with(require_explicit_policy(0)).pem(&RSA));
    }),
    ("A name with characters that its string type does not have", |desk| {
        let subject = common_name(Tag::PrintableString, b"mesh@example.com");
        desk.write("ca-cert.pem", Draft { subject, ..ca() }.pem(&RSA));
    }),
    ("A name in T61String and one in BMPString", |desk| {
        let upper_name = common_name(Tag::TeletexString, b"Z\xfcrich CA");
        let units: Vec<u8> = "Αθήνα CA".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let draft = Draft { issuer: upper_name, subject: common_name(Tag::BmpString, &units), ..ca() };
        desk.write("ca-cert.pem", draft.pem(&RSA));
    }),
    ("An extension twice", |desk| desk.write("ca-cert.pem", ca().with(key_usage(true)).pem(&RSA))),
    ("A certificate that is cut off", |desk| {
        let der = pem::blocks(desk.text("ca-cert.pem").as_bytes()).unwrap().remove(0).der;
        desk.write("ca-cert.pem", pem::encode("CERTIFICATE", &der[..der.len() - 9]));
    }),
];

/// The CA's certificate, for a key that openssl makes.
fn with_key(desk: &Desk, make: &str) -> String {
    desk.shell(&format!("{make} > other.key; openssl pkey -in other.key -pubout -outform DER > spki"));
    // So that the key's own file has no part in it.
    desk.write("ca-key.pem", pem::encode("PUBLIC KEY", b"0"));
    Draft { spki: desk.read("spki"), ..ca() }.pem(&RSA)
}

pub fn section() -> Section {
    let cases = CASES.iter().map(|(input, spoil)| {
        let desk = Desk::new();
        spoil(&desk);
        let mut case = desk.case(input);
        case.messages.retain(|(message, _)| !message.starts_with("ca-key.pem: there is no private key"));
        case
    });
    Section {
        title: "Certificates and chains",
        about: "A chain is refused when one of the clients in a mesh would refuse the workloads' certificates below it: Envoy \
                (BoringSSL), ztunnel (rustls-webpki), Istio's agent and istiod (Go). [BUNDLES.md](BUNDLES.md) lists every rule.",
        cases: cases.collect(),
    }
}

#[test]
fn files_of_a_good_ca_are_accepted() {
    assert_eq!(Desk::new().problems(), Vec::<Problem>::new());
}

#[test]
fn a_root_of_version_1_is_issued_again_by_the_command_in_the_remedy() {
    let desk = Desk::new();
    CASES.iter().find(|(input, _)| *input == "Version 1, as the CA and root").unwrap().1(&desk);
    let problems = desk.problems();
    let remedy = problems[0].remedy.as_ref().unwrap();
    let command = &remedy[remedy.find("openssl x509").unwrap()..remedy.find("; use the result").unwrap()];
    desk.shell(command);
    let old = desk.text("root-cert.pem");
    desk.write("ca-cert.pem", desk.text("ca-cert-v3.pem"));
    desk.write("root-cert.pem", desk.text("ca-cert-v3.pem") + &old);
    // openssl's certificate begins now, and the tests take place in a fixed year.
    let left: Vec<_> =
        desk.problems().into_iter().filter(|problem| !problem.reason.contains("not yet valid")).collect();
    assert_eq!(left, Vec::<Problem>::new());
}
