//! The endpoint's TLS: 1.3, HTTP/2, post-quantum key exchange; other versions only if configured.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, RootCertStore, Stream, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};

use testkit::{
    daemon::{Daemon, SERVER, SOON, Site},
    plug_in::{PlugIn, authority, p256},
};

/// Result of a handshake.
#[derive(Debug, PartialEq)]
struct Spoken {
    version: ProtocolVersion,
    protocol: Option<Vec<u8>>,
    group: NamedGroup,
}

fn handshake(
    daemon: &Daemon,
    version: &'static SupportedProtocolVersion,
    protocols: &[&[u8]],
    groups: Option<&'static dyn SupportedKxGroup>,
) -> io::Result<Spoken> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(daemon.roots.as_bytes()).map(Result::unwrap));
    let provider = match groups {
        Some(group) => CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() },
        None => aws_lc_rs::default_provider(),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[version]).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(SERVER).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(daemon.address)?;
    socket.set_read_timeout(Some(SOON))?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    // The server's first data shows whether it accepted the handshake: HTTP/2 SETTINGS, or nothing.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame)?;
    Ok(Spoken {
        version: connection.protocol_version().unwrap(),
        protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
        group: connection.negotiated_key_exchange_group().unwrap().name(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_3_with_http_2_and_a_post_quantum_exchange() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let h2: &[&[u8]] = &[b"h2"];
    let spoken = handshake(&daemon, &TLS13, h2, None).unwrap();
    let best =
        Spoken { version: ProtocolVersion::TLSv1_3, protocol: Some(b"h2".to_vec()), group: NamedGroup::X25519MLKEM768 };
    assert_eq!(spoken, best);
    // ztunnel with COMPLIANCE_POLICY=pqc offers nothing else; older clients do not offer it at all.
    assert_eq!(handshake(&daemon, &TLS13, h2, Some(aws_lc_rs::kx_group::X25519MLKEM768)).unwrap(), best);
    let classic = handshake(&daemon, &TLS13, h2, Some(aws_lc_rs::kx_group::X25519)).unwrap();
    assert_eq!(classic.group, NamedGroup::X25519);

    assert!(handshake(&daemon, &TLS12, h2, None).is_err(), "TLS 1.2 is off");
    assert!(handshake(&daemon, &TLS13, &[b"http/1.1"], None).is_err(), "HTTP/1.1 is not spoken");
    let mut plain = TcpStream::connect(daemon.address).unwrap();
    plain.set_read_timeout(Some(SOON)).unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut answer = Vec::new();
    let _reset_or_closed = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(&[0, 0]), "no HTTP/2 in the clear: {answer:02x?}");
    daemon.send(daemon.ask()).await.expect("other clients are affected");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_where_it_is_configured() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("[listen.tls]\nallow_tls12 = true");
    for version in [&TLS12, &TLS13] {
        assert!(handshake(&daemon, version, &[b"h2"], None).is_ok(), "{version:?}");
    }
}

/// A CA that expires soon limits the serving certificate's lifetime, so that the test can wait for half of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_serving_certificate_is_renewed_at_half_its_life() {
    const LIFE: Duration = Duration::from_secs(40);
    let mut params = authority("Root CA");
    params.not_after = (process::clock::now() + LIFE).into();
    let made = Instant::now();
    let ca = rcgen::CertifiedIssuer::self_signed(params, p256()).unwrap();
    let pem = ca.pem();
    let plug_in = PlugIn { root: None, ca, ca_cert: pem.clone(), cert_chain: String::new(), root_cert: pem };
    let site = Site::new(&plug_in);
    let daemon = site.serve("");
    let certificates = || daemon.stderr().matches("the serving certificate was renewed").count();
    daemon.wait_line(|_| certificates() == 1);
    let first = made.elapsed();
    daemon.wait_line(|_| certificates() == 2);
    let renewed = made.elapsed();
    let half = first + (LIFE - first) / 2;
    let slack = Duration::from_secs(4);
    assert!(renewed + slack > half && renewed < half + slack, "renewed after {renewed:?}, half is {half:?}");
    daemon.send(daemon.ask()).await.expect("it serves on");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_on_loopback_alone() {
    let site = Site::new(&PlugIn::intermediate());
    let config = site.configure("[listen]\naddress = \"0.0.0.0:0\"\nplaintext = true").display().to_string();
    let output = site.run(&["serve", "--config", &config]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("loopback"), "{text}");

    let mut daemon = site.serve("[listen]\nplaintext = true");
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap();
    daemon.ask().send(channel.connect().await.unwrap()).await.unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
}
