//! Frames without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use testkit::{
    daemon::Site,
    http2::{self, ACK, END_HEADERS, END_STREAM, Raw, call, call_headers, frame, header},
    plug_in::PlugIn,
};
use tokio::io::AsyncWriteExt;

use crate::{
    agents::{HOME, ask_for, crowd},
    attacker::{address, config, tls},
};

/// What a flood is made of: the n-th part of it.
type Part = fn(u32) -> Vec<u8>;

fn reset(stream: u32) -> Vec<u8> {
    frame(http2::RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

const FLOODS: &[(&str, Part)] = &[
    ("PING", |_| frame(http2::PING, 0, 0, &[7; 8])),
    ("PING answers", |_| frame(http2::PING, ACK, 0, &[7; 8])),
    ("SETTINGS", |n| frame(http2::SETTINGS, 0, 0, &[&[0, 4][..], &(n % 1000).to_be_bytes()].concat())),
    ("WINDOW_UPDATE", |_| frame(http2::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ("rapid reset", |n| [call(2 * n + 1), reset(2 * n + 1)].concat()),
    ("empty DATA", |n| if n == 0 { call(1) } else { frame(http2::DATA, 0, 1, &[]) }),
    ("CONTINUATION", |n| {
        if n == 0 {
            frame(http2::HEADERS, 0, 1, &call_headers("/x"))
        } else {
            frame(http2::CONTINUATION, 0, 1, &header(1000))
        }
    }),
    ("oversized headers", |n| {
        let block = [call_headers("/x"), header(15_000)].concat();
        [
            frame(http2::HEADERS, 0, 2 * n + 1, &block),
            frame(http2::CONTINUATION, END_HEADERS, 2 * n + 1, &header(10_000)),
        ]
        .concat()
    }),
    ("requests to no service", |n| frame(http2::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &call_headers("/x"))),
    ("unknown frames", |_| frame(0xaa, 0, 0, &[7; 100])),
];

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_and_others_are_served_meanwhile() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let normal = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    for (name, part) in FLOODS {
        let (sent, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let client = config(&daemon, None);
        let attack = crowd(8, |number| {
            let (daemon, client) = (Arc::clone(&daemon), Arc::clone(&client));
            let (sent, ended) = (Arc::clone(&sent), Arc::clone(&ended));
            async move {
                loop {
                    let Ok(stream) = tls(&daemon, address(number as u8 % 4), Arc::clone(&client)).await else {
                        continue;
                    };
                    let raw = Raw::begin(stream).await;
                    let (mut read, mut write) = tokio::io::split(raw.0);
                    // Answers are read, so that the server is never kept from answering.
                    let reader = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
                    for batch in 0.. {
                        let parts: Vec<u8> = (batch * 64..(batch + 1) * 64).flat_map(part).collect();
                        if write.write_all(&parts).await.is_err() || reader.is_finished() {
                            break;
                        }
                        sent.fetch_add(64, Ordering::Relaxed);
                    }
                    reader.abort();
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let served = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
        drop(attack);
        let (sent, ended) = (sent.load(Ordering::Relaxed), ended.load(Ordering::Relaxed));
        println!("flood of {name}: {sent} sent, {ended} connections ended");
        println!("flood of {name}: {served}; without: {normal}");
        // The attackers are on the same cores, and a debug build takes ten times as long for a frame.
        assert!(served.latencies.len() * 10 >= served.tried * 9, "{name}: {served} {:#?}", served.failed);
        assert!(served.percentile(50) < Duration::from_secs(1), "{name}: {served}; without: {normal}");
        assert!(ended > 0, "{name}: no connection was ended");
        let lines = daemon.stderr().lines().filter(|line| line.contains("\"target\":\"h2")).count();
        assert_eq!(lines, 0, "{name}: the library logs what strangers send");
    }
}
