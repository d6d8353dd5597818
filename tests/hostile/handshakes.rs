//! Before TLS stands.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use testkit::{
    daemon::{Daemon, Site},
    plug_in::PlugIn,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    agents::{HOME, ask_for, crowd, duration},
    attacker::{address, client_hello, config, kib, tcp, tls},
};

/// Handshakes that are begun and not gone on with, by 900 connections at once; each is begun again when it ends.
async fn begun(what: &str, first: impl Fn(&Daemon) -> Vec<u8>, from: fn(usize) -> IpAddr) {
    process::hardening::raise_open_files().unwrap();
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let normal = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    let (first, ended) = (Arc::new(first(&daemon)), Arc::new(AtomicUsize::new(0)));
    let attack = crowd(900, |number| {
        let (daemon, first, ended) = (Arc::clone(&daemon), Arc::clone(&first), Arc::clone(&ended));
        async move {
            loop {
                if let Ok(mut stream) = tcp(&daemon, from(number)).await {
                    let _ = stream.write_all(&first).await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    ended.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let served = ask_for(&site, &daemon, HOME, duration()).await;
    served.assert_like(&normal, what);
    assert!(served.percentile(90) < Duration::from_secs(1), "{what}: {served}");
    drop(attack);
    println!("{what}: {} connections ended", ended.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_of_a_client_hello_holds_up_no_handshake() {
    begun("one byte of TLS, from the agents' address", |_| vec![0x16], |_| HOME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_and_silence_hold_up_no_handshake() {
    let hello = |daemon: &Daemon| client_hello(&config(daemon, None));
    begun("a ClientHello and no more", hello, |number| address(number as u8 % 4)).await;
}

/// Handshakes with a certificate as large as is accepted, and no more: nothing of them remains.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_in_a_loop_leave_no_memory() {
    const HANDSHAKES: usize = 600;
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let large = config(&daemon, Some(60_000));
    let handshakes = |count: usize, config: Arc<rustls::ClientConfig>| {
        let daemon = &daemon;
        async move {
            let mut done = 0;
            for _ in 0..count {
                // In TLS 1.3 a client is through before the server has looked at its certificate.
                if let Ok(mut stream) = tls(daemon, address(1), Arc::clone(&config)).await {
                    // The server's ticket and settings, or its end.
                    let mut answer = [0; 1];
                    let _ = timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
                    done += 1;
                }
            }
            done
        }
    };
    let accepted = config(&daemon, Some(10_000));
    handshakes(100, Arc::clone(&accepted)).await;
    let before = kib(&daemon, "VmRSS:");
    let each = HANDSHAKES / 2;
    let (one, other) = tokio::join!(handshakes(each, accepted), handshakes(each, large));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = kib(&daemon, "VmRSS:");
    println!("{one} and {other} handshakes with certificates of 10 and 60 kB: {before} KiB before, {after} KiB after");
    assert!(after < before + 8 * 1024, "{before} KiB before, {after} KiB after");
}

/// Whole handshakes as fast as they go, from other addresses.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_handshakes_leaves_turns_for_others() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = Arc::new(site.serve(""));
    let normal = ask_for(&site, &daemon, HOME, Duration::from_secs(2)).await;
    let done = Arc::new(AtomicUsize::new(0));
    let attack = crowd(64, |number| {
        let (daemon, done) = (Arc::clone(&daemon), Arc::clone(&done));
        let hello = client_hello(&config(&daemon, None));
        async move {
            loop {
                // A replayed ClientHello costs its sender nothing, and the server a key exchange and a signature.
                if let Ok(mut stream) = tcp(&daemon, address(number as u8 % 2)).await
                    && stream.write_all(&hello).await.is_ok()
                    && stream.read(&mut [0; 64]).await.is_ok()
                {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    let served = ask_for(&site, &daemon, HOME, duration()).await;
    drop(attack);
    println!("replayed ClientHellos: {} answered", done.load(Ordering::Relaxed));
    // The attack takes the machine itself: agents are served, if later.
    println!("replayed ClientHellos: {served}; without: {normal}");
    assert!(served.latencies.len() * 10 >= served.tried * 9, "{served} {:#?}", served.failed);
    assert!(served.percentile(90) < Duration::from_secs(1), "{served}");
}
