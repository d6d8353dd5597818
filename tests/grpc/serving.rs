//! The endpoint's own certificate: from files, and a key of its own.

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
    Files { certificate: directory.path().join("tls.crt"), key: directory.path().join("tls.key") }
}

#[tokio::test]
async fn files_are_reloaded_and_halves_that_do_not_match_are_ignored() {
    let (directory, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let files = files(&directory);
    let (old, new) = (pki.leaf("localhost"), pki.leaf("localhost"));
    write(&files, Some(&old.0), Some(&old.1));
    let stop = CancellationToken::new();
    let (certificate, mut ready) = spawn_files(files.clone(), stop.clone());
    tokio::time::timeout(SOON, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    let first = certificate.current().unwrap();
    write(&files, Some(&new.0), None);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(Arc::ptr_eq(&first, &certificate.current().unwrap()), "the old pair serves on");
    write(&files, None, Some(&new.1));
    tokio::time::timeout(SOON, async {
        while Arc::ptr_eq(&first, &certificate.current().unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the new pair was not taken");
    assert!(*ready.borrow());
    stop.cancel();
}

#[test]
fn bad_files_are_named() {
    let (directory, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let files = files(&directory);
    let ((certificate, key), (_, other)) = (pki.leaf("a"), pki.leaf("b"));
    let parse = || files.read().and_then(|content| files.parse(&content)).map(|_| ());
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
