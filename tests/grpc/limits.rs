//! Limits on the resources that unauthenticated clients can use.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually;

use istio_api::istio_certificate_service_server::SERVICE_NAME;
use istio_hsm_ca::grpc::{Settings, server::Drained, settings::Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use testkit::http2::{self as frames, Raw, call, frame};

use crate::harness::{
    Client, Pki, Running, SOON, ask, channel, channel_with, default_client_config, settings, start, start_with, tls,
};

fn limited(limits: Limits) -> Settings {
    Settings { limits, ..settings() }
}

async fn plain(limits: Limits) -> Running {
    start_with(Settings { plaintext: true, ..limited(limits) }, Pki::new(), None).await
}

/// Reads to the end; returns how long the endpoint kept a silent client's connection open.
async fn closed_after(mut stream: TcpStream) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection stays open");
    started.elapsed()
}

#[tokio::test]
async fn slow_handshake_times_out_without_delaying_others() {
    let handshake_timeout = Duration::from_millis(500);
    let running = start(limited(Limits { handshake_timeout, ..Limits::default() })).await;
    let silent = TcpStream::connect(running.address).await.unwrap();
    let mut dripping = TcpStream::connect(running.address).await.unwrap();
    dripping.write_all(&[0x16, 0x03, 0x01, 0x02]).await.unwrap();
    let mut client = Client::new(channel(&running).await.unwrap());
    client.create_certificate(ask("x")).await.unwrap();
    for stream in [silent, dripping] {
        assert!(closed_after(stream).await < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_client_that_is_silent_after_its_handshake_is_cut() {
    let handshake_timeout = Duration::from_millis(300);
    let running = start(limited(Limits { handshake_timeout, ..Limits::default() })).await;
    let mut stream = tls(running.address, default_client_config(&running.pki)).await.unwrap();
    stream.write_all(b"PRI * HTTP").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection stays open");
}

#[tokio::test]
async fn a_connection_too_many_takes_the_place_of_the_oldest_idle_one() {
    let limits = Limits { connections_per_address: Some(2), ..Limits::default() };
    let running = start(limited(limits)).await;
    let config = default_client_config(&running.pki);
    let mut first = tls(running.address, config.clone()).await.unwrap();
    let mut busy = Client::new(channel(&running).await.unwrap());
    let under_way = tokio::spawn(async move { busy.create_certificate(ask("sleep:1500")).await });
    let _third = tls(running.address, config.clone()).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, first.read_to_end(&mut rest)).await.expect("the first stays open");
    under_way.await.unwrap().expect("a connection with a request in progress is not idle");
}

#[tokio::test]
async fn a_connection_too_many_is_closed_where_none_is_idle() {
    let limits = Limits { connections_per_address: Some(2), ..Limits::default() };
    let running = start(limited(limits)).await;
    let mut under_way = Vec::new();
    for _ in 0..2 {
        let mut client = Client::new(channel(&running).await.unwrap());
        under_way.push(tokio::spawn(async move { client.create_certificate(ask("sleep:1500")).await }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let config = default_client_config(&running.pki);
    assert!(tls(running.address, config.clone()).await.is_err());
    for request in under_way {
        request.await.unwrap().unwrap();
    }
    eventually("the place never came back", async || tls(running.address, config.clone()).await.is_ok()).await;
}

/// Neither half a ClientHello nor a handshake that is not gone on with holds the only turn.
#[tokio::test]
async fn a_client_that_stops_in_its_handshake_holds_up_nobody() {
    let limits = Limits { handshakes: 1, handshake_timeout: SOON, handshake_wait: SOON, ..Limits::default() };
    let running = start(limited(limits)).await;
    let config = default_client_config(&running.pki);
    let mut stopped = Vec::new();
    for length in [0, 1, 5, 100, usize::MAX] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let hello = client_hello(&config);
        stream.write_all(&hello[..length.min(hello.len())]).await.unwrap();
        stopped.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    for handshake in (0..8).map(|_| tokio::spawn(tls(running.address, config.clone()))).collect::<Vec<_>>() {
        handshake.await.unwrap().unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stranger_may_send_so_much_and_no_more() {
    let limits = Limits { unauthenticated_bytes: 10_000, ..Limits::default() };
    let running = plain(limits).await;
    let mut raw = Raw::connect(running.address).await;
    let ping = frame(frames::PING, 0, 0, &[7; 8]);
    raw.send(&ping.repeat(500)).await;
    assert!(raw.next_of(frames::PING).await.is_some(), "below the limit");
    raw.send(&ping.repeat(200)).await;
    while raw.next().await.is_some() {}
}

#[tokio::test]
async fn a_handshake_has_a_largest_size() {
    let running = start(limited(Limits { handshake_bytes: 16 * 1024, ..Limits::default() })).await;
    for (certificates, good) in [(2, true), (40, false)] {
        let (leaf, key) = running.pki.leaf_der("workload");
        let mut config = Arc::unwrap_or_clone(default_client_config(&running.pki));
        let chain = std::iter::once(leaf).chain(std::iter::repeat_n(running.pki.root(), certificates)).collect();
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).unwrap(),
        ));
        let answered = match channel_with(running.address, Arc::new(config)).await {
            Ok(channel) => Client::new(channel).create_certificate(ask("x")).await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(answered, good, "{certificates}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let write_timeout = Duration::from_millis(500);
    let running = plain(Limits { write_timeout, unauthenticated_bytes: usize::MAX, ..Limits::default() }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut raw = Raw::begin(socket.connect(running.address).await.unwrap()).await;
    // Answers to pings fill whatever lies between.
    let pings = frame(frames::PING, 0, 0, &[7; 8]).repeat(10_000);
    let flood = async { while raw.0.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(SOON, flood).await.expect("the connection stays open");
}

async fn plain_client(running: &Running) -> Client {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
    Client::new(endpoint.connect().await.unwrap())
}

/// The first flight of a client.
fn client_hello(config: &Arc<rustls::ClientConfig>) -> Vec<u8> {
    let name = "localhost".try_into().unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::clone(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn handshakes_beyond_the_limit_wait_for_their_turn() {
    let running = start(limited(Limits { handshakes: 1, ..Limits::default() })).await;
    let config = default_client_config(&running.pki);
    let waiting: Vec<_> = (0..32).map(|_| tokio::spawn(tls(running.address, config.clone()))).collect();
    for handshake in waiting {
        handshake.await.unwrap().unwrap();
    }
}

/// 128 streams that never send a body take no place, and one that does is served.
#[tokio::test]
async fn requests_without_a_body_take_no_place() {
    let running = plain(Limits { requests: 1, ..Limits::default() }).await;
    let mut raw = Raw::connect(running.address).await;
    let calls: Vec<u8> = (0..100).flat_map(|n| call(2 * n + 1)).collect();
    raw.send(&calls).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    plain_client(&running).await.create_certificate(ask("x")).await.unwrap();
    // The memory for them is bounded as well, and who holds it for nothing makes room.
    let small = plain(Limits { request_memory: 64 * 1024, ..Limits::default() }).await;
    let mut raw = Raw::connect(small.address).await;
    raw.send(&calls).await;
    let mut refused = 0;
    while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(500), raw.next_of(frames::HEADERS)).await {
        assert!(frame.flags & frames::END_STREAM != 0);
        refused += 1;
    }
    assert!((85..95).contains(&refused), "an address may hold 48 KiB, 11 streams: {refused} of 100 were refused");
    plain_client(&small).await.create_certificate(ask("x")).await.unwrap();
    while raw.next().await.is_some() {}
}

#[tokio::test]
async fn an_oversized_message_is_refused_for_good() {
    let running = start(limited(Limits { message_bytes: 1024, ..Limits::default() })).await;
    let mut client = Client::new(channel(&running).await.unwrap());
    assert!(client.create_certificate(ask(&"x".repeat(1000))).await.is_ok());
    let status = client.create_certificate(ask(&"x".repeat(1025))).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "a code that Istio's agent retries: {status:?}");
}

#[tokio::test]
async fn an_oversized_header_list_is_refused() {
    let running = start(limited(Limits { header_bytes: 4096, ..Limits::default() })).await;
    let mut client = Client::new(channel(&running).await.unwrap());
    for (length, good) in [(2000, true), (8000, false)] {
        let mut request = tonic::Request::new(ask("x"));
        request.metadata_mut().insert("authorization", format!("Bearer {}", "x".repeat(length)).parse().unwrap());
        assert_eq!(client.create_certificate(request).await.is_ok(), good, "{length}");
    }
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let running = plain(Limits { streams: 2, ..Limits::default() }).await;
    let mut raw = Raw::connect(running.address).await;
    let settings = raw.next_of(frames::SETTINGS).await.unwrap();
    assert_eq!(settings.setting(0x3), Some(2), "MAX_CONCURRENT_STREAMS");
    assert_eq!(settings.setting(0x6), Some(16 * 1024), "MAX_HEADER_LIST_SIZE");
    raw.send(&frame(frames::SETTINGS, frames::ACK, 0, &[])).await;
    raw.send(&[call(1), call(3), call(5)].concat()).await;
    let reset = raw.next_of(frames::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code_at(0)), (5, frames::REFUSED_STREAM));
}

/// CVE-2023-44487: streams that are reset as soon as they are opened.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let running = plain(Limits::default()).await;
    let mut raw = Raw::connect(running.address).await;
    let reset = |stream| frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let burst: Vec<u8> = (0..5000).flat_map(|n| [call(2 * n + 1), reset(2 * n + 1)].concat()).collect();
    raw.send(&burst).await;
    let goaway = raw.next_of(frames::GOAWAY).await.expect("GOAWAY before the end");
    assert_eq!(goaway.code_at(4), frames::ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn a_silent_connection_is_pinged_and_a_dead_one_ends() {
    let beat = Duration::from_millis(200);
    let limits = Limits { keepalive_interval: beat, keepalive_timeout: beat, ..Limits::default() };
    let running = plain(limits).await;
    let mut raw = Raw::connect(running.address).await;
    assert!(raw.next_of(frames::PING).await.is_some());
    while raw.next_within(Duration::from_secs(5)).await.is_some() {}
}

/// ztunnel pings every 30 s, more often than gRPC servers in Go allow by default; this endpoint allows it.
#[tokio::test]
async fn a_client_may_ping_as_often_as_it_likes() {
    let running = plain(Limits::default()).await;
    let mut raw = Raw::connect(running.address).await;
    for round in 0..20_u64 {
        raw.send(&frame(frames::PING, 0, 0, &round.to_be_bytes())).await;
        let pong = raw.next_of(frames::PING).await.expect("the connection is open");
        assert_eq!((pong.flags & frames::ACK, pong.payload), (frames::ACK, round.to_be_bytes().to_vec()));
    }
}

#[tokio::test]
async fn a_request_whose_body_never_comes_is_ended() {
    let running = plain(Limits { request_timeout: Duration::from_millis(100), ..Limits::default() }).await;
    let mut raw = Raw::connect(running.address).await;
    raw.send(&call(1)).await;
    raw.send(&frame(frames::DATA, 0, 1, &[0, 0, 0, 0, 9])).await;
    let started = Instant::now();
    assert_eq!(raw.next_of(frames::HEADERS).await.expect("an answer").stream, 1);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_drain_answers_what_is_under_way_and_takes_nothing_new() {
    let mut running = start(settings()).await;
    let mut client = Client::new(channel(&running).await.unwrap());
    let under_way = tokio::spawn(async move { client.create_certificate(ask("sleep:500")).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    running.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(running.address).await.is_err(), "the socket is closed");
    assert!(under_way.await.unwrap().is_ok());
    let drained = tokio::time::timeout(SOON, running.task.take().unwrap()).await.unwrap().unwrap().unwrap();
    assert_eq!(drained, Drained::Clean);
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let drain = Duration::from_millis(200);
    let mut running = start(Settings { drain, ..settings() }).await;
    let mut client = Client::new(channel(&running).await.unwrap());
    let under_way = tokio::spawn(async move { client.create_certificate(ask("sleep:9000")).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    running.stop.cancel();
    let drained = tokio::time::timeout(Duration::from_secs(5), running.task.take().unwrap()).await.unwrap();
    assert_eq!(drained.unwrap().unwrap(), Drained::Cut { connections: 1 });
    assert!(under_way.await.unwrap().is_err());
}

#[tokio::test]
async fn requests_beyond_the_places_are_refused_and_health_is_not() {
    let running = start(limited(Limits { requests: 1, ..Limits::default() })).await;
    let channel = channel(&running).await.unwrap();
    let (mut client, mut second) = (Client::new(channel.clone()), Client::new(channel.clone()));
    let under_way = tokio::spawn(async move { client.create_certificate(ask("sleep:500")).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let status = second.create_certificate(ask("x")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("(request "), "{status:?}");
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    under_way.await.unwrap().unwrap();
    second.create_certificate(ask("x")).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_is_asked_to_end() {
    let running = plain(Limits { connection_age: Some(Duration::from_millis(200)), ..Limits::default() }).await;
    let mut raw = Raw::connect(running.address).await;
    let goaway = raw.next_of(frames::GOAWAY).await.expect("GOAWAY");
    assert_eq!(goaway.code_at(4), 0, "without an error");
}

/// Both versions of reflection describe the service, as grpcurl requests it.
#[tokio::test]
async fn reflection_describes_the_service_if_configured() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    for reflection in [true, false] {
        let running = start(Settings { reflection, ..settings() }).await;
        let mut client = ServerReflectionClient::new(channel(&running).await.unwrap());
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(SERVICE_NAME.to_owned())),
        };
        let answers = client.server_reflection_info(tokio_stream::once(question)).await;
        assert_eq!(answers.is_ok(), reflection);
        if let Ok(answers) = answers {
            let answer = answers.into_inner().message().await.unwrap().unwrap();
            let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
                panic!("{answer:?}");
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }
    }
}

#[tokio::test]
async fn health_follows_the_daemon_and_does_not_hold_up_the_drain() {
    let mut running = start(settings()).await;
    let mut health =
        HealthClient::new(channel_with(running.address, default_client_config(&running.pki)).await.unwrap());
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let status = |reply: tonic::Response<tonic_health::pb::HealthCheckResponse>| reply.into_inner().status();
    for ready in [false, true, false, true] {
        running.ready.send_replace(ready);
        let expected = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", SERVICE_NAME] {
            assert_eq!(status(health.check(ask(service)).await.unwrap()), expected, "{service:?}");
        }
    }
    assert_eq!(health.check(ask("other")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = health.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut unknown = health.watch(ask("other")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    running.ready.send_replace(false);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    running.stop.cancel();
    let drained = tokio::time::timeout(SOON, running.task.take().unwrap()).await.unwrap().unwrap().unwrap();
    assert_eq!(drained, Drained::Clean);
}
