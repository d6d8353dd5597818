//! What the TLS handshake accepts and rejects.

use std::sync::Arc;

use istio_hsm_ca::grpc::{
    listener::{ListenError, Listener},
    settings::Tls,
    tls::{ServingCertificate, server_config},
};
use rustls::{
    NamedGroup, ProtocolVersion,
    crypto::aws_lc_rs::{self, kx_group},
    version::{TLS12, TLS13},
};

use crate::harness::{
    Client, Pki, ask, channel, channel_with, client_config, default_client_config, settings, start, start_with, tls,
    verifier,
};

#[tokio::test]
async fn a_client_gets_an_answer_and_the_service_sees_its_address() {
    let running = start(settings()).await;
    let mut client = Client::new(channel(&running).await.unwrap());
    let reply = client.create_certificate(ask("x")).await.unwrap().into_inner();
    assert_eq!(reply.cert_chain, ["127.0.0.1", "0"]);
}

#[tokio::test]
async fn the_service_sees_the_client_certificate_also_after_resumption() {
    let running = start(settings()).await;
    let (leaf, key) = running.pki.leaf_der("workload");
    let mut config = Arc::unwrap_or_clone(default_client_config(&running.pki));
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
        rustls::sign::CertifiedKey::from_der(vec![leaf], key, &aws_lc_rs::default_provider()).unwrap(),
    ));
    let config = Arc::new(config);
    for _ in 0..2 {
        let mut client = Client::new(channel_with(running.address, Arc::clone(&config)).await.unwrap());
        let reply = client.create_certificate(ask("x")).await.unwrap().into_inner();
        assert_eq!(reply.cert_chain, ["127.0.0.1", "1"]);
    }
    let resumed = tls(running.address, config).await.unwrap();
    assert_eq!(resumed.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
}

#[tokio::test]
async fn tls_1_2_only_if_configured() {
    for allow_tls12 in [false, true] {
        let running = start(istio_hsm_ca::grpc::Settings { tls: Tls { allow_tls12 }, ..settings() }).await;
        let old = client_config(&running.pki, aws_lc_rs::default_provider(), &[&TLS12]);
        assert_eq!(tls(running.address, old).await.is_ok(), allow_tls12);
        let both = client_config(&running.pki, aws_lc_rs::default_provider(), &[&TLS12, &TLS13]);
        let stream = tls(running.address, both).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn post_quantum_group_is_used_when_offered() {
    let running = start(settings()).await;
    let cases = [
        (vec![kx_group::X25519MLKEM768], NamedGroup::X25519MLKEM768),
        (vec![kx_group::X25519MLKEM768, kx_group::X25519], NamedGroup::X25519MLKEM768),
        (vec![kx_group::X25519], NamedGroup::X25519),
        (vec![kx_group::SECP256R1], NamedGroup::secp256r1),
    ];
    for (kx_groups, expected) in cases {
        let provider = rustls::crypto::CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() };
        let stream = tls(running.address, client_config(&running.pki, provider, &[&TLS13])).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), expected);
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    }
}

#[tokio::test]
async fn only_http_2_is_spoken() {
    let running = start(settings()).await;
    let mut config = Arc::unwrap_or_clone(default_client_config(&running.pki));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(tls(running.address, Arc::new(config)).await.is_err());
}

#[tokio::test]
async fn without_a_certificate_there_is_no_handshake_and_a_new_one_serves_at_once() {
    let pki = Pki::new();
    let certificate = ServingCertificate::absent();
    let config = server_config(&Tls::default(), certificate.clone(), verifier(&pki)).unwrap();
    let (leaf, key) = pki.leaf_der("localhost");
    let running = start_with(settings(), pki, Some(config)).await;
    assert!(tls(running.address, default_client_config(&running.pki)).await.is_err());
    let provider = aws_lc_rs::default_provider();
    certificate.replace(Arc::new(rustls::sign::CertifiedKey::from_der(vec![leaf], key, &provider).unwrap()));
    assert!(tls(running.address, default_client_config(&running.pki)).await.is_ok());
}

#[tokio::test]
async fn plaintext_is_refused_off_loopback() {
    for (address, good) in [("127.0.0.1:0", true), ("[::1]:0", true), ("0.0.0.0:0", false), ("[::]:0", false)] {
        let settings =
            istio_hsm_ca::grpc::Settings { address: address.parse().unwrap(), plaintext: true, ..settings() };
        match Listener::bind(&settings, None).await {
            Ok(_) => assert!(good, "{address}"),
            Err(ListenError::PlaintextOffLoopback(_)) => assert!(!good, "{address}"),
            // A machine without IPv6 has no ::1.
            Err(ListenError::Bind { .. }) => assert!(good && address.starts_with('['), "{address}"),
            Err(error) => panic!("{address}: {error}"),
        }
    }
    assert!(matches!(Listener::bind(&settings(), None).await, Err(ListenError::NoTls(_))));
}
