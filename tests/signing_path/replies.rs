//! Replies to a workload for every form of plug-in CA: by JWT, then by the certificate obtained.

use std::time::{Duration, Instant};

use bench::agent::KeyKind;
use istio_api::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use rcgen::{CertifiedIssuer, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};

use tonic::Request;

use crate::judges::{ders, is_istios, judge};
use testkit::{
    daemon::{Ask, IDENTITY, Site},
    plug_in::{PlugIn, authority, new_root, p256},
};

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

fn p384() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()
}

/// Issues by JWT and renews by certificate; `between` are the expected elements between leaf and roots.
async fn obtain(name: &str, plug_in: &PlugIn, between: &[String]) {
    let site = Site::new(plug_in);
    let daemon = site.serve("");
    for kind in [KeyKind::P256, KeyKind::Rsa2048] {
        let now = process::clock::now();
        let first = Ask::with_key(IDENTITY, kind).token(&daemon.token).validity(7200);
        let (csr, key) = (first.csr.clone(), first.key_pem.clone());
        let reply = daemon.send(first).await.unwrap_or_else(|status| panic!("{name}: {status}"));
        check(name, &reply, plug_in, between);
        is_istios(name, &reply[0], &plug_in.ca_cert, &csr, IDENTITY, (now, 7200));

        let chain = reply[..reply.len() - 1].concat();
        let channel = daemon.connect(Some((&chain, &key))).await;
        let (now, renewal) = (process::clock::now(), Ask::with_key(IDENTITY, kind).validity(0));
        let csr = renewal.csr.clone();
        let renewed = renewal.send(channel).await.unwrap_or_else(|status| panic!("{name}: renewal: {status}"));
        check(name, &renewed, plug_in, between);
        // The default lifetime is a day.
        is_istios(name, &renewed[0], &plug_in.ca_cert, &csr, IDENTITY, (now, 86_400));
        assert_ne!(reply[0], renewed[0]);
    }
    // Log lines are written a moment after the reply.
    let issued = || daemon.lines().into_iter().filter(|line| line["message"] == "issued").collect::<Vec<_>>();
    let deadline = Instant::now() + Duration::from_secs(5);
    while issued().len() < 4 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let issued = issued();
    let methods: Vec<_> = issued.iter().map(|line| line["method"].as_str().unwrap().to_owned()).collect();
    assert_eq!(methods, ["jwt", "client_certificate", "jwt", "client_certificate"], "{name}");
}

fn check(name: &str, reply: &[String], plug_in: &PlugIn, between: &[String]) {
    assert!(reply.len() >= 2, "{name}: agents treat one element as an error");
    let (roots, others) = reply.split_last().unwrap();
    assert_eq!(roots, &plug_in.root_cert, "{name}: the roots are changed");
    assert!(others.iter().all(|element| ders(element).len() == 1), "{name}: one certificate an element");
    assert!(others.iter().all(|element| element.ends_with('\n')), "{name}: elements must end with a newline");
    let (found, wanted): (Vec<_>, Vec<_>) =
        (others[1..].iter().map(|text| ders(text)).collect(), between.iter().map(|text| ders(text)).collect());
    assert_eq!(found, wanted, "{name}: not the path from the CA up to the root");
    judge(name, reply, process::clock::now());
}

/// agentgateway sends a P-256 key and a JWT, and neither metadata nor the cluster's ID; its roots are the last element.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_as_agentgateway_sends_it_is_answered() {
    let plug_in = PlugIn::intermediate();
    let site = Site::new(&plug_in);
    let daemon = site.serve("");
    let csr = Ask::with_key(IDENTITY, KeyKind::P256).csr;
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 86_400, metadata: None });
    request.metadata_mut().insert("authorization", format!("Bearer {}", daemon.token).parse().unwrap());
    let mut client = IstioCertificateServiceClient::new(daemon.connect(None).await);
    let reply = client.create_certificate(request).await.unwrap().into_inner().cert_chain;
    check("agentgateway", &reply, &plug_in, std::slice::from_ref(&plug_in.ca_cert));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intermediate_whose_chain_is_its_certificate() {
    let plug_in = PlugIn::intermediate();
    obtain("intermediate", &plug_in, std::slice::from_ref(&plug_in.ca_cert)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_intermediate_like_istios_sample() {
    let plug_in = PlugIn::below(new_root("Root CA"), rsa(), false);
    obtain("RSA without SKI", &plug_in, std::slice::from_ref(&plug_in.ca_cert)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_with_ca_and_root() {
    let mut plug_in = PlugIn::below(new_root("Root CA"), p384(), true);
    plug_in.cert_chain = format!("{}{}", plug_in.ca_cert, plug_in.root_cert);
    obtain("chain with the root", &plug_in, std::slice::from_ref(&plug_in.ca_cert)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_signs_itself_without_a_chain() {
    obtain("self-signed", &PlugIn::self_signed(rsa()), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_signs_itself_and_stands_in_its_chain() {
    let mut plug_in = PlugIn::self_signed(p256());
    plug_in.cert_chain = plug_in.ca_cert.clone();
    obtain("self-signed with a chain", &plug_in, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_lacks_the_ca() {
    let root = new_root("Root CA");
    let mut params = authority("Upper CA");
    params.use_authority_key_identifier_extension = true;
    let upper = CertifiedIssuer::signed_by(params, p256(), &root).unwrap();
    let (upper_pem, root_pem) = (upper.pem(), root.pem());
    let mut plug_in = PlugIn::below(upper, p256(), true);
    plug_in.cert_chain = upper_pem.clone();
    plug_in.root_cert = root_pem;
    let between = [plug_in.ca_cert.clone(), upper_pem];
    obtain("chain without the CA", &plug_in, &between).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_roots_byte_for_byte() {
    let mut plug_in = PlugIn::intermediate();
    let other = new_root("Another root").pem();
    // Comments, empty lines and CRLF in the operator's file.
    plug_in.root_cert =
        format!("# mesh roots\n{}\n\n# next year's\n{}", plug_in.root_cert, other.replace('\n', "\r\n"));
    plug_in.cert_chain = String::new();
    obtain("several roots", &plug_in, std::slice::from_ref(&plug_in.ca_cert)).await;
}
