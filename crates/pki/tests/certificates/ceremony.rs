//! CA certificates of ceremonies, and leaves below them, as OpenSSL, webpki, Go and BoringSSL see them. Each is also stored
//! for `tests/pkilint.sh`.

use std::{fs, sync::Arc, time::Duration};

use istio_hsm_ca_pki::{
    Bundle, CaProfile, Issued, Issuer, Profile, PublicKey, Tbs, Template,
    bundle::{BundleFiles, Input},
    identity::Name,
    request::Subject,
    tbs::Serial,
};
use rcgen::{KeyPair, PublicKeyData, RsaKeySize, SigningKey};

use super::{
    judges::{Presented, boringssl, go, now},
    leaf::directory,
};

const DAY: Duration = Duration::from_secs(86_400);

/// A CA: its key, certificate and judged files.
struct Authority {
    key: KeyPair,
    certificate: Issued,
    issuer: Arc<Issuer>,
}

fn public(key: &KeyPair) -> PublicKey {
    PublicKey::from_spki_der(&key.subject_public_key_info()).unwrap()
}

fn template(subject: &str, key: &KeyPair, path_len: Option<u8>) -> Template {
    let public_key = public(key);
    let subject = subject.parse::<Subject>().unwrap().to_der().unwrap();
    let profile = CaProfile { subject, subject_key_id: public_key.key_id().to_vec(), path_len };
    let (not_before, not_after) = (now() - DAY, now() + 365 * DAY);
    Template { profile: Profile::Ca(profile), public_key, names: Vec::new(), not_before, not_after }
}

fn sign(template: Template, issuer: Arc<Issuer>, key: &KeyPair) -> Issued {
    let tbs = Tbs::build(template, issuer, Serial::from_hash([7; 16])).unwrap();
    let signature = key.sign(tbs.der()).unwrap();
    Issued::assemble(tbs.into(), &signature).unwrap()
}

/// The issuer of a certificate, judged with those above it.
fn judged(certificate: &Issued, chain: &str, root: &str) -> Arc<Issuer> {
    let input = |name: &str, text: &str| Input { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", &certificate.to_pem()),
        cert_chain: input("cert-chain.pem", chain),
        root_cert: input("root-cert.pem", root),
    };
    Arc::clone(Bundle::check(files, now()).unwrap().issuer())
}

fn root(subject: &str, key: KeyPair) -> Authority {
    let template = template(subject, &key, None);
    let certificate = sign(template.clone(), Issuer::of_new_root(&template).unwrap(), &key);
    let issuer = judged(&certificate, "", &certificate.to_pem());
    Authority { key, certificate, issuer }
}

/// What peers see of a workload below an intermediate below the new root, with the cross-certificate of the old root, and
/// once with each of the roots.
fn presented(name: &str, old_key: KeyPair, new_key: KeyPair, ca_key: KeyPair) -> Vec<Presented> {
    let (old, new) = (root("O=Example,CN=Old Root", old_key), root("O=Example,CN=New Root", new_key));
    let cross = sign(template("O=Example,CN=New Root", &new.key, Some(1)), Arc::clone(&old.issuer), &old.key);
    let ca = sign(template("O=Example,CN=Mesh CA", &ca_key, Some(0)), Arc::clone(&new.issuer), &new.key);
    for (kind, certificate) in [("root", &old.certificate), ("cross", &cross), ("intermediate", &ca)] {
        fs::write(directory().join(format!("{name}-{kind}.ca.pem")), certificate.to_pem()).unwrap();
    }
    let workload = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let id = "spiffe://cluster.local/ns/foo/sa/bar".parse().unwrap();
    let leaf = Template {
        profile: Profile::Leaf,
        public_key: public(&workload),
        names: vec![Name::Spiffe(id)],
        not_before: now() - Duration::from_secs(120),
        not_after: now() + DAY,
    };
    let issuer = judged(&ca, &cross.to_pem(), &old.certificate.to_pem());
    let leaf = sign(leaf, issuer, &ca_key);
    [&old, &new]
        .map(|root| Presented {
            leaf: leaf.der().to_vec(),
            key: workload.serialize_pem(),
            sent: format!("{}{}", ca.to_pem(), cross.to_pem()),
            roots: root.certificate.to_pem(),
            crls: String::new(),
        })
        .into()
}

fn all() -> Vec<Presented> {
    let of = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let (p256, p384) = (&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384);
    let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let mut all = presented("ceremony-p384", of(p384), of(p384), of(p256));
    all.extend(presented("ceremony-rsa", rsa(), of(p256), rsa()));
    all
}

#[test]
fn openssl_and_webpki_accept_workloads_below_cas_of_ceremonies() {
    for (at, presented) in all().iter().enumerate() {
        presented.openssl(now()).unwrap_or_else(|error| panic!("{at}: openssl: {error}"));
        presented.webpki(now()).unwrap_or_else(|error| panic!("{at}: webpki: {error}"));
    }
}

#[test]
#[ignore = "needs Go and a Python with grpcio: make test-foreign"]
fn go_and_boringssl_accept_workloads_below_cas_of_ceremonies() {
    let all = all();
    for reasons in [go(&all), boringssl(&all)] {
        assert!(reasons.iter().all(String::is_empty), "{reasons:?}");
    }
}
