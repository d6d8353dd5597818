//! Malformed input on the wire: the daemon answers or closes the connection, keeps running, and its memory does not
//! grow.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::Code;

use testkit::{
    daemon::{Daemon, SOON, Site},
    plug_in::PlugIn,
};

/// Permitted growth of the daemon's memory: a debug build with its thread stacks uses some 40 MiB.
const GROWTH: u64 = 64 * 1024 * 1024;

/// Peak resident set size in bytes.
fn peak(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Reproducible random bytes (xorshift).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Almost valid CSRs: bytes changed, truncated, repeated; and random bytes in every encoding.
fn corpus(good: &str) -> Vec<String> {
    let (label, der) = der::pem::decode_vec(good.as_bytes()).unwrap();
    let pem = |der: &[u8]| pki::pem::encode(label, der);
    let mut corpus = Vec::new();
    for at in (0..der.len()).step_by(3) {
        let mut changed = der.clone();
        changed[at] ^= 1 << (at % 8);
        corpus.push(pem(&changed));
        corpus.push(pem(&der[..at]));
    }
    for seed in 0..50 {
        let noise = noise(seed, 20 + usize::try_from(seed).unwrap() * 97);
        corpus.push(pem(&noise));
        corpus.push(String::from_utf8_lossy(&noise).into_owned());
        corpus.push(format!("{good}{}", pem(&noise)));
    }
    corpus.push(good.replace("-----END", "-----BEGIN"));
    corpus.push("-----BEGIN ".repeat(1400));
    // DER with too large lengths, and with deep nesting.
    for head in
        [&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff][..], &[0x30, 0x80], &[0x30, 0x88, 1, 1, 1, 1, 1, 1, 1, 1], &[0xff; 40]]
    {
        corpus.push(pem(head));
    }
    corpus.push(pem(&[0x30, 0x7f].repeat(5000)));
    corpus
}

/// A value of nested lists.
fn nested(depth: usize) -> Value {
    (0..depth).fold(Value { kind: Some(Kind::NullValue(0)) }, |value, _| Value {
        kind: Some(Kind::ListValue(ListValue { values: vec![value] })),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_are_refused_one_by_one() {
    let site = Site::new(&PlugIn::intermediate());
    let mut daemon = site.serve("");
    let channel = daemon.connect(None).await;
    daemon.ask().send(channel.clone()).await.unwrap();
    let before = peak(&daemon);
    let good = daemon.ask().csr;
    for csr in corpus(&good) {
        // A change in a name requests a foreign name; a second PEM block after a valid one is not read.
        match daemon.ask().csr(csr.as_str()).send(channel.clone()).await {
            Ok(_) => assert!(csr.starts_with(&good), "issued for {csr}"),
            Err(status) => {
                assert!(matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied), "{status} for {csr}");
            }
        }
    }
    let many = Struct { fields: (0..2000).map(|n| (format!("key{n}"), nested(1))).collect() };
    let mut structs = vec![(many, true)];
    for depth in [1, 10, 40, 99, 1000] {
        structs.push((Struct { fields: [("CertSigner".to_owned(), nested(depth))].into() }, false));
    }
    structs.push((daemon.ask().metadata("CertSigner", &"x".repeat(60_000)).metadata, false));
    structs.push((daemon.ask().metadata("ImpersonatedIdentity", &"x".repeat(1 << 22)).metadata, false));
    for (metadata, ignored) in structs {
        let mut ask = daemon.ask();
        ask.metadata = metadata;
        let answer = ask.send(channel.clone()).await;
        assert_eq!(answer.is_ok(), ignored, "{answer:?}");
    }
    assert!(daemon.running());
    daemon.ask().send(channel).await.expect("it still serves");
    assert!(peak(&daemon) - before < GROWTH, "grew from {before} to {}", peak(&daemon));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_headers_and_bytes_affect_only_their_sender() {
    let site = Site::new(&PlugIn::intermediate());
    let mut daemon = site.serve("");
    let channel = daemon.connect(None).await;
    daemon.ask().send(channel.clone()).await.unwrap();
    let before = peak(&daemon);
    let headers: [Vec<u8>; 6] = [
        vec![b'x'; 8000],
        vec![b'x'; 100_000],
        b"a.b.c".to_vec(),
        vec![b'.'; 8000],
        "\u{e9}\u{fc}".into(),
        vec![0xff, 0xfe, 0xc0, 0x80],
    ];
    for value in headers {
        for name in ["authorization", "clusterid", "grpc-timeout", "x-anything"] {
            let prefix: &[u8] = if name == "authorization" { b"Bearer " } else { b"" };
            let own = daemon.connect(None).await;
            let sent = [prefix, &value].concat();
            let asked = raw(own, name, &sent, &daemon);
            let answer = tokio::time::timeout(SOON, asked).await.expect("it hangs");
            // Headers of 100,000 bytes exceed the limit; a malformed JWT is rejected; other headers are ignored.
            assert_eq!(
                answer.is_err(),
                name == "authorization" || value.len() > 16 * 1024 || name == "clusterid" && value.is_ascii(),
                "{name}"
            );
        }
    }
    for seed in 0..40 {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _closed_early = stream.write_all(&noise(seed, 3000));
        let _closed = stream.read_to_end(&mut Vec::new());
    }
    assert!(daemon.running());
    daemon.ask().send(channel).await.expect("it still serves");
    assert!(peak(&daemon) - before < GROWTH, "grew from {before} to {}", peak(&daemon));
    assert!(!daemon.stderr().contains("panicked"));
}

/// Sends a request with a header of any bytes that HTTP/2 permits (RFC 9113, section 8.2.1: opaque from 0x80 on).
async fn raw(
    channel: tonic::transport::Channel,
    name: &'static str,
    value: &[u8],
    daemon: &Daemon,
) -> Result<(), tonic::Status> {
    use istio_api::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
    let ask = daemon.ask();
    let mut request =
        tonic::Request::new(IstioCertificateRequest { csr: ask.csr, validity_duration: 0, metadata: None });
    request.metadata_mut().insert("authorization", format!("Bearer {}", daemon.token).parse().unwrap());
    let mut headers = std::mem::take(request.metadata_mut()).into_headers();
    headers.insert(name, http::HeaderValue::from_bytes(value).unwrap());
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    IstioCertificateServiceClient::new(channel).create_certificate(request).await.map(drop)
}
