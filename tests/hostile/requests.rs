//! Requests over TLS, before and after authentication.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use istio_api::{IstioCertificateRequest, IstioCertificateResponse};
use testkit::{
    daemon::{Ask, Site},
    http2::{self, END_HEADERS, END_STREAM, Raw, call, call_headers, frame},
    plug_in::PlugIn,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    agents::{HOME, ask_for, crowd, duration},
    attacker::{address, config, kib, tls},
};

/// 40 connections of 128 streams each, more than there are places, opened again as they end.
#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_body_keep_nobody_from_being_served() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let normal = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    let client = config(&daemon, None);
    let opened = Arc::new(AtomicUsize::new(0));
    let attack = crowd(40, |_| {
        let (daemon, client, opened) = (Arc::clone(&daemon), Arc::clone(&client), Arc::clone(&opened));
        async move {
            loop {
                let Ok(stream) = tls(&daemon, HOME, Arc::clone(&client)).await else { continue };
                let mut raw = Raw::begin(stream).await;
                for number in 0.. {
                    raw.send(&call(2 * number + 1)).await;
                    opened.fetch_add(1, Ordering::Relaxed);
                    // 128 stay open; a new one for each that was ended.
                    if number >= 127
                        && raw.0.flush().await.is_ok()
                        && (number > 100_000 || raw.next_of(http2::HEADERS).await.is_none())
                    {
                        break;
                    }
                }
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let served = ask_for(&site, &daemon, HOME, duration()).await;
    served.assert_like(&normal, "requests without a body, from the agents' address");
    drop(attack);
    println!("requests without a body: {} streams", opened.load(Ordering::Relaxed));
}

/// 30 connections, each with a certificate and 128 streams with long headers and no body: more memory than there is.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_authenticated_connections_keep_nobody_from_being_served() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let normal = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    let tls = bench::agent::Tls::new(daemon.roots.as_bytes(), testkit::daemon::SERVER, None).unwrap();
    let identity = "spiffe://cluster.local/ns/demo/sa/hostile";
    let token = site.token("demo", "hostile");
    let attack = crowd(30, |_| {
        let (address, tls, token) = (daemon.address, tls.clone(), token.clone());
        async move {
            let connect = || bench::agent::connect_from(Some(HOME), address, &tls);
            loop {
                let Ok(channel) = connect().await else { continue };
                if Ask::new(identity).token(&token).send(channel.clone()).await.is_err() {
                    continue;
                }
                let streams = (0..128).map(|_| without_a_body(channel.clone()));
                futures_util::future::join_all(streams).await;
                // What is measured is not the machine under a load of handshakes.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let served = ask_for(&site, &daemon, HOME, duration()).await;
    served.assert_like(&normal, "streams of authenticated connections, from the agents' address");
    drop(attack);
}

/// A stream with 14 kB of headers, which lasts until the daemon ends it.
async fn without_a_body(channel: tonic::transport::Channel) {
    let mut grpc = tonic::client::Grpc::new(channel);
    if grpc.ready().await.is_err() {
        return;
    }
    let mut request = tonic::Request::new(tokio_stream::pending::<IstioCertificateRequest>());
    request.metadata_mut().insert("x", "v".repeat(14_000).parse().unwrap());
    let path = http::uri::PathAndQuery::from_static("/istio.v1.auth.IstioCertificateService/CreateCertificate");
    let codec = tonic_prost::ProstCodec::<_, IstioCertificateResponse>::default();
    let _ = grpc.client_streaming(request, path, codec).await;
}

/// Answers that are never taken: the windows of streams are closed, and health checks have data to send.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_take_bounded_memory() {
    const CONNECTIONS: usize = 64;
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let normal = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    let before = kib(&daemon, "VmRSS:");
    let client = config(&daemon, None);
    let attack = crowd(CONNECTIONS, |number| {
        let (daemon, client) = (Arc::clone(&daemon), Arc::clone(&client));
        async move {
            let stream = tls(&daemon, address(number as u8 % 4), client).await.unwrap();
            // SETTINGS_INITIAL_WINDOW_SIZE = 0.
            let mut raw = Raw::begin_with(stream, &[0, 4, 0, 0, 0, 0]).await;
            let health = call_headers("/grpc.health.v1.Health/Watch");
            for stream in (1..256).step_by(2) {
                raw.send(&frame(http2::HEADERS, END_HEADERS, stream, &health)).await;
                raw.send(&frame(http2::DATA, END_STREAM, stream, &[0; 5])).await;
            }
            let _ = raw.0.read_to_end(&mut Vec::new()).await;
            std::future::pending::<()>().await;
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let served = ask_for(&site, &daemon, HOME, duration()).await;
    let after = kib(&daemon, "VmRSS:");
    println!("answers not read: {} streams, {before} KiB before, {after} KiB after", CONNECTIONS * 128);
    served.assert_like(&normal, "answers not read");
    assert!(after < before + 96 * 1024, "{before} KiB before, {after} KiB after");
    drop(attack);
}

/// As many agents as a test can have, all behind one address, all at once: nobody is refused.
#[tokio::test(flavor = "multi_thread")]
async fn agents_behind_one_address_are_all_served() {
    const AGENTS: usize = 400;
    process::hardening::raise_open_files().unwrap();
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let tls = bench::agent::Tls::new(daemon.roots.as_bytes(), testkit::daemon::SERVER, None).unwrap();
    let began = std::time::Instant::now();
    let agents = (0..AGENTS).map(|number| {
        let (account, address, tls) = (format!("nat-{number}"), daemon.address, tls.clone());
        let ask = testkit::daemon::Ask::new(&format!("spiffe://cluster.local/ns/demo/sa/{account}"))
            .token(&site.token("demo", &account));
        tokio::spawn(async move {
            let channel = bench::agent::connect_from(Some(HOME), address, &tls).await.unwrap();
            ask.send(channel.clone()).await.map(|_| channel)
        })
    });
    let agents: Vec<_> = agents.collect();
    let mut connected = Vec::new();
    for agent in agents {
        connected.push(agent.await.unwrap().unwrap());
    }
    println!("{AGENTS} agents behind one address were served within {:?}", began.elapsed());
}
