//! The handshake with [`AcceptAny`]: any client certificate is accepted, possession of its key is verified.

use std::{process::Command, sync::Arc};

use istio_hsm_ca::{auth::AcceptAny, revocation::Revocations};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    SupportedProtocolVersion,
    client::ResolvesClientCert,
    crypto::aws_lc_rs,
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::certificates::Ca;

/// Sends one certificate with a key that may not match.
#[derive(Debug)]
struct Sends(Arc<CertifiedKey>);

impl ResolvesClientCert for Sends {
    fn resolve(&self, hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        assert!(hints.is_empty(), "hints that limit the client's certificates");
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// Runs a handshake; returns the client's chain as seen by the server.
fn shake(
    version: &'static SupportedProtocolVersion,
    client_certificate: Option<(CertificateDer<'static>, &KeyPair)>,
) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server_key = KeyPair::generate().unwrap();
    let server_certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server_certificate = CertificateDer::from(server_certificate.self_signed(&server_key).unwrap());
    let mut roots = RootCertStore::empty();
    roots.add(server_certificate.clone()).unwrap();

    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AcceptAny::new(&provider, Revocations::default())))
        .with_single_cert(vec![server_certificate], pkcs8(&server_key))
        .unwrap();
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let client = match client_certificate {
        None => client.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = provider.key_provider.load_private_key(pkcs8(key)).unwrap();
            client.with_client_cert_resolver(Arc::new(Sends(Arc::new(CertifiedKey::new(vec![certificate], key)))))
        }
    };
    let mut client = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(server.peer_certificates().map(<[_]>::to_vec))
}

#[test]
fn any_certificate_passes_and_none_too() {
    for version in [&TLS13, &TLS12] {
        assert_eq!(shake(version, None).unwrap(), None);
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let mut params = CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            let certificate: CertificateDer<'static> = params.self_signed(&key).unwrap().into();
            let chain = shake(version, Some((certificate.clone(), &key))).unwrap();
            assert_eq!(chain.as_deref(), Some([certificate].as_slice()), "{version:?} {algorithm:?}");
        }
    }
}

#[test]
fn client_without_the_private_key_fails_the_handshake() {
    let leaf = Ca::new("ca").leaf(|_| ());
    for version in [&TLS13, &TLS12] {
        let result = shake(version, Some((leaf.clone(), &KeyPair::generate().unwrap())));
        assert!(matches!(result, Err(Error::InvalidCertificate(_))), "{result:?}");
    }
}

#[test]
fn bytes_that_are_no_certificate_fail() {
    for bytes in [&b""[..], b"x", &[0x30, 0x80, 0, 0], &[0x30, 3, 2, 1, 1]] {
        for version in [&TLS13, &TLS12] {
            let certificate = CertificateDer::from(bytes.to_vec());
            assert!(shake(version, Some((certificate, &KeyPair::generate().unwrap()))).is_err());
        }
    }
}

/// `openssl x509 -req` without extensions creates version 1 certificates, as some old CAs do.
#[test]
fn a_certificate_of_version_1_passes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is installed (apt: openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (key, csr, certificate) = (path("key"), path("csr"), path("certificate"));
    run(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key]);
    run(&["req", "-new", "-key", &key, "-subj", "/CN=old", "-out", &csr]);
    run(&["x509", "-req", "-in", &csr, "-signkey", &key, "-out", &certificate]);
    let key = KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    assert!(
        webpki::EndEntityCert::try_from(&certificate).is_err_and(|e| e == webpki::Error::UnsupportedCertVersion),
        "else the test shows nothing"
    );
    let chain = shake(&TLS13, Some((certificate.clone(), &key))).unwrap();
    assert_eq!(chain.as_deref(), Some([certificate].as_slice()));
}
