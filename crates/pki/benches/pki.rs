//! Cost of the pure parts: verifying the CSR, building the TBSCertificate with its lint, verifying the result.
//!
//! `cargo bench --bench pki`; the key types are those of the CA and, for CSRs, of the workload.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use criterion::{Criterion, criterion_group, criterion_main};
use istio_hsm_ca_pki::{
    Issued, Issuer, Profile, PublicKey, Tbs, Template, VerifiedCsr,
    identity::Name,
    lint::{self, Ca, Facts},
    tbs::Serial,
};
use rcgen::{KeyPair, PublicKeyData, RsaKeySize, SigningKey};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn keys() -> [(&'static str, KeyPair); 3] {
    [
        ("P-256", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key")),
        ("P-384", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key")),
        ("RSA-2048", KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key")),
    ]
}

fn public(key: &KeyPair) -> PublicKey {
    PublicKey::from_spki_der(&key.subject_public_key_info()).expect("a public key")
}

fn issuer(key: &KeyPair) -> Arc<Issuer> {
    let root = Template {
        profile: Profile::SelfSignedRoot { organization: "cluster.local".to_owned() },
        public_key: public(key),
        names: Vec::new(),
        not_before: now() - DAY,
        not_after: now() + 3650 * DAY,
    };
    Issuer::of_new_root(&root).expect("an issuer")
}

fn leaf(key: &KeyPair) -> Template {
    Template {
        profile: Profile::Leaf,
        public_key: public(key),
        names: vec![Name::Spiffe("spiffe://cluster.local/ns/default/sa/default".parse().expect("a SPIFFE ID"))],
        not_before: now(),
        not_after: now() + DAY,
    }
}

fn csr(c: &mut Criterion) {
    let mut group = c.benchmark_group("csr: parse and check");
    for (name, key) in keys() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names =
            vec![rcgen::SanType::URI("spiffe://cluster.local/ns/default/sa/default".try_into().expect("ASCII"))];
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
        group.bench_function(name, |b| b.iter(|| VerifiedCsr::from_pem(black_box(&pem)).expect("a good request")));
    }
    group.finish();
}

fn tbs(c: &mut Criterion) {
    let [(_, ca_key), (_, workload_key), ..] = keys();
    let (issuer, template) = (issuer(&ca_key), leaf(&workload_key));
    c.bench_function("serial: random", |b| b.iter(Serial::random));
    c.bench_function("tbs: build and lint", |b| {
        let serial = Serial::random();
        b.iter(|| Tbs::build(template.clone(), Arc::clone(&issuer), serial).expect("a TBSCertificate"));
    });
    let tbs = Tbs::build(template, Arc::clone(&issuer), Serial::random()).expect("a TBSCertificate");
    c.bench_function("lint: facts", |b| b.iter(|| Facts::parse(black_box(tbs.der())).is_ok()));
    c.bench_function("lint: facts and rules", |b| {
        let ca = Ca::from(&*issuer);
        b.iter(|| Facts::parse(black_box(tbs.der())).and_then(|facts| lint::leaf(&facts, &ca, 90 * DAY)));
    });
}

fn issued(c: &mut Criterion) {
    let mut group = c.benchmark_group("issued: assemble and verify");
    let workload_key = KeyPair::generate().expect("a key");
    for (name, key) in keys() {
        let tbs = Arc::new(Tbs::build(leaf(&workload_key), issuer(&key), Serial::random()).expect("a TBSCertificate"));
        let signature = key.sign(tbs.der()).expect("a signature");
        let public_key = public(&key);
        group.bench_function(name, |b| {
            b.iter(|| Issued::assemble(Arc::clone(&tbs), black_box(&signature)).expect("a good certificate"));
        });
        // Verification of the signature only, for comparison.
        group.bench_function(format!("{name}, signature alone"), |b| {
            let algorithm = public_key.signature_algorithm();
            b.iter(|| public_key.verify(algorithm, black_box(tbs.der()), &signature).is_ok());
        });
        if name == "P-256" {
            let issued = Issued::assemble(Arc::clone(&tbs), &signature).expect("a good certificate");
            group.bench_function("chain", |b| b.iter(|| issued.chain()));
        }
    }
    group.finish();
}

criterion_group!(benches, csr, tbs, issued);
criterion_main!(benches);
