//! The admin address and the status page.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use testkit::{
    daemon::{Daemon, SOON, Site},
    plug_in::PlugIn,
};

fn status_address(daemon: &Daemon) -> SocketAddr {
    let line = daemon.wait_line(|line| line["message"] == "status page");
    line["address"].as_str().unwrap().parse().unwrap()
}

fn get(address: SocketAddr, host: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn connections_without_a_whole_request_end_and_probes_are_answered() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    for address in [daemon.admin, status_address(&daemon)] {
        let began = Instant::now();
        let mut open: Vec<TcpStream> = Vec::new();
        for number in 0..200 {
            // From thirty addresses, and from that of the probes.
            let from = if number % 4 == 0 { [127, 0, 0, 1] } else { [127, 0, 66, 1 + (number % 30) as u8] };
            open.extend(nix_socket(from.into(), address));
        }
        for stream in &mut open {
            // Closed ones refuse.
            let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ");
        }
        for _ in 0..20 {
            assert_eq!(daemon.get("/readyz").0, 200, "probes are answered meanwhile");
        }
        for stream in &mut open {
            stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            let end = stream.read_to_end(&mut Vec::new());
            let is_open = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!is_open, "a connection is open after {:?}", began.elapsed());
        }
        println!("{} admin connections without a request ended within {:?}", open.len(), began.elapsed());
    }
}

fn nix_socket(from: std::net::IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(to).await?.into_std()
    });
    let stream = stream.ok()?;
    stream.set_nonblocking(false).unwrap();
    Some(stream)
}

/// DNS rebinding: a page of another site asks by a name of its own.
#[test]
fn only_known_host_names_are_answered() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("[admin]\nhosts = [\"ca.example.com\"]");
    for address in [daemon.admin, status_address(&daemon)] {
        for (host, good) in [
            (address.to_string(), true),
            ("localhost".to_owned(), true),
            ("10.1.2.3".to_owned(), true),
            ("ca.example.com:1".to_owned(), true),
            ("rebound.attacker.example".to_owned(), false),
            (format!("rebound.attacker.example:{}", address.port()), false),
        ] {
            let answer = get(address, &host);
            let refused = answer.starts_with("HTTP/1.1 421 ");
            assert_eq!(!refused, good, "{host}: {answer}");
            assert!(!refused || answer.contains("[admin] hosts"), "{answer}");
        }
    }
    let page = get(status_address(&daemon), "localhost").to_ascii_lowercase();
    let policy = page.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}
