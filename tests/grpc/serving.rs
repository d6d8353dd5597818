//! The endpoint's own certificate: from files, or issued for a generated key.

use std::{sync::Arc, time::Duration};

use istio_hsm_ca::grpc::{
    serving::{
        ServingError,
        files::{Files, FilesError},
        key::ServingKey,
        spawn_files,
    },
    settings::{Serving, Tls},
    tls::{ServingCertificate, server_config},
};
use rcgen::CertificateSigningRequestParams;
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::harness::{Pki, SOON, default_client_config, settings, start_with, tls, verifier};

fn write(files: &Files, certificate: Option<&str>, key: Option<&str>) {
    for (path, text) in [(&files.certificate, certificate), (&files.key, key)] {
        if let Some(text) = text {
            std::fs::write(path, text).unwrap();
        }
    }
}

fn files(directory: &tempfile::TempDir) -> Files {
    Files { certificate: directory.path().join("tls.crt"), key: directory.path().join("tls.key"), names: Vec::new() }
}

#[tokio::test]
async fn files_are_reloaded_and_halves_that_do_not_match_are_ignored() {
    let (directory, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let files = files(&directory);
    let (old, new) = (pki.leaf("localhost"), pki.leaf("localhost"));
    write(&files, Some(&old.0), Some(&old.1));
    let stop = CancellationToken::new();
    let certificate = ServingCertificate::absent();
    let mut trouble = spawn_files(files.clone(), certificate.clone(), stop.clone());
    tokio::time::timeout(SOON, trouble.wait_for(Option::is_none)).await.unwrap().unwrap();
    let first = certificate.current().unwrap();
    write(&files, Some(&new.0), None);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(Arc::ptr_eq(&first, &certificate.current().unwrap()), "the old pair stays in use");
    write(&files, None, Some(&new.1));
    tokio::time::timeout(SOON, async {
        while Arc::ptr_eq(&first, &certificate.current().unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the new pair was not taken");
    assert_eq!(*trouble.borrow(), None);
    stop.cancel();
}

#[test]
fn bad_files_are_named() {
    let (directory, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let files = files(&directory);
    let ((certificate, key), (_, other)) = (pki.leaf("a"), pki.leaf("b"));
    let parse = || files.read().and_then(|content| files.parse(&content, process::clock::now())).map(|_| ());
    assert!(matches!(parse(), Err(FilesError::Read { .. })));
    type Expected = fn(&FilesError) -> bool;
    let cases: [(&str, &str, Expected); 5] = [
        ("", &key, |error| matches!(error, FilesError::Certificate(_))),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", &key, |error| {
            matches!(error, FilesError::Certificate(_))
        }),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, |error| {
            matches!(error, FilesError::Certificate(_))
        }),
        (&certificate, "no key", |error| matches!(error, FilesError::Key(_))),
        (&certificate, &other, |error| matches!(error, FilesError::Mismatch(_))),
    ];
    for (certificate, key, expected) in cases {
        write(&files, Some(certificate), Some(key));
        let error = parse().unwrap_err();
        assert!(expected(&error), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("tls.") && !text.contains("PRIVATE"), "{text}");
    }
    write(&files, Some(&certificate), Some(&key));
    parse().unwrap();
    std::fs::write(&files.key, vec![b' '; 2 << 20]).unwrap();
    assert!(matches!(parse(), Err(FilesError::TooLarge(_))));
}

#[test]
fn certificate_that_clients_would_reject_is_refused() {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};

    type Change = fn(&mut CertificateParams);
    let (directory, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let parse = |names: &[&str], change: Change| {
        let name = |text: &&str| match text.parse() {
            Ok(ip) => pki::identity::Name::Ip(ip),
            Err(_) => pki::identity::Name::Dns(text.parse().unwrap()),
        };
        let files = Files { names: names.iter().map(name).collect(), ..files(&directory) };
        let key = KeyPair::generate().unwrap();
        let own = ["ca.example.com".to_owned(), "*.mesh.example".to_owned(), "192.0.2.1".to_owned()];
        let mut params = CertificateParams::new(own).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key, &pki.issuer).unwrap();
        write(&files, Some(&leaf.pem()), Some(&key.serialize_pem()));
        files.read().and_then(|content| files.parse(&content, process::clock::now())).map(|_| ())
    };
    let all = ["ca.example.com", "ca.mesh.example", "*.mesh.example", "192.0.2.1"];
    parse(&all, |_| ()).unwrap();
    parse(&all, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]).unwrap();
    let cases: [(&[&str], Change, &str); 7] = [
        (&[], |params| params.not_after = date_time_ymd(2020, 1, 2), "expired at 2020-01-02T00:00:00"),
        (&[], |params| params.not_before = date_time_ymd(2099, 1, 2), "not valid before 2099-01-02T00:00:00"),
        (&["other.example.com"], |_| (), "not valid for DNS:other.example.com; its names are DNS:ca.example.com, "),
        (&["ca.example.com", "a.b.mesh.example"], |_| (), "not valid for DNS:a.b.mesh.example"),
        (
            &["192.0.2.2"],
            |_| (),
            "not valid for IP:192.0.2.2; its names are DNS:ca.example.com, DNS:*.mesh.example, IP:192.0.2.1",
        ),
        (&["ca.example.com"], |params| params.subject_alt_names.clear(), "none (no subject alternative name)"),
        (&[], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], "lacks serverAuth"),
    ];
    for (names, change, expected) in cases {
        let error = parse(names, change).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("; "), "{expected}: {error}");
    }
}

#[test]
fn both_files_or_none() {
    use istio_hsm_ca::grpc::serving::files as configured;
    let path = || Some(std::path::PathBuf::from("/x"));
    let cases = [(None, None, Some(false)), (path(), path(), Some(true)), (path(), None, None), (None, path(), None)];
    for (certificate_file, key_file, expected) in cases {
        match configured(&Serving { certificate_file, key_file, ..Serving::default() }) {
            Ok(files) => assert_eq!(Some(files.is_some()), expected),
            Err(error) => assert!(matches!(error, ServingError::Half) && expected.is_none(), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_key_of_our_own_serves_with_a_certificate_for_its_request() {
    let pki = Pki::new();
    let key = ServingKey::generate().unwrap();
    let mut request = CertificateSigningRequestParams::from_pem(&key.request().unwrap()).unwrap();
    request.params.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
    let leaf = request.signed_by(&pki.issuer).unwrap();
    let certified = CertifiedKey::new(vec![leaf.der().clone()], Arc::new(key));
    certified.keys_match().unwrap();
    let certificate = ServingCertificate::absent();
    certificate.replace(Arc::new(certified));
    for allow_tls12 in [false, true] {
        let config = server_config(&Tls { allow_tls12 }, certificate.clone(), verifier(&pki)).unwrap();
        let running = start_with(settings(), Pki::new(), Some(config)).await;
        tls(running.address, default_client_config(&pki)).await.unwrap();
    }
}
