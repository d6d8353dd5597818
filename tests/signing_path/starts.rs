//! What keeps `serve` from starting is named, with what to do: another daemon on the same log, an address or a socket
//! in use, a configuration with several mistakes. And readiness from the first moment.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use testkit::{
    daemon::{SOON, Site},
    plug_in::PlugIn,
};

#[tokio::test]
async fn daemon_that_says_ready_at_its_start_issues_at_once() {
    let site = Site::new(&PlugIn::intermediate());
    let [admin, address] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let started = Instant::now();
    let mut daemon = site.spawn_without_waiting(&format!(
        "[listen]\naddress = \"{address}\"\n[admin]\naddress = \"{admin}\"\nstatus_page = false\n"
    ));
    (daemon.address, daemon.admin) = (address, admin);
    let mut answers = Vec::new();
    while answers.last().is_none_or(|answer: &String| !answer.starts_with("HTTP/1.0 200")) {
        assert!(started.elapsed() < SOON, "{answers:?}");
        answers.extend(readyz(admin));
    }
    // No retry: a client that trusted the answer has its first connection refused otherwise.
    daemon.send(daemon.ask()).await.unwrap();
    assert!(answers.iter().all(|answer| answer.contains("gRPC endpoint: ")), "{answers:?}");
    assert!(answers.len() > 1, "the start was not seen");
}

fn readyz(admin: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(stream, "GET /readyz HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn a_second_daemon_is_told_what_the_first_one_has() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let log = site.softhsm.path().join("other-log").display().to_string();
    let other = format!("[log]\ndirectory = \"{log}\"\n");
    let socket = "[admin]\nsocket = \"/nowhere/admin.sock\"\n";
    let cases: [(String, &[&str]); 5] = [
        (String::new(), &["another process has this log open", "/log/lock", "stop it"]),
        (
            format!("{other}[listen]\naddress = \"{}\"", daemon.address),
            &["cannot listen on", &daemon.address.to_string(), "configure another [listen] address"],
        ),
        (
            format!("{other}[admin]\naddress = \"{}\"", daemon.admin),
            &["[admin] address", &daemon.admin.to_string(), "stop what listens there"],
        ),
        (other.clone(), &["[admin] socket", "admin.sock", "another daemon answers there"]),
        (format!("{other}{socket}"), &["[admin] socket", "/nowhere/admin.sock", "create /nowhere"]),
    ];
    for (more, reasons) in cases {
        let error = site.does_not_start(&more);
        // All reasons at once: the second daemon shares more than one thing with the first.
        let last = error.rfind("error: ").and_then(|at| error.get(at..)).unwrap_or_else(|| panic!("{error}"));
        assert!(reasons.iter().all(|reason| last.contains(reason)), "{more}: {last}");
    }
    let (status, text) = daemon.stop();
    assert_eq!(status.code(), Some(0), "the first one was not harmed: {text}");
}

#[test]
fn several_mistakes_are_told_at_once() {
    let site = Site::new(&PlugIn::intermediate());
    let error = site.does_not_start(
        "[ca]\ndefault_ttl = \"100d\"\nbundel = \"x\"\n[listen.limits]\nstreams = -1\nrequests = \"many\"\n\
         [logging]\nfilter = \"inof\"",
    );
    for reason in [
        "istio-hsm-ca.toml: 5 mistakes",
        "[ca] default_ttl: is longer than max_ttl",
        "[ca] bundel: unknown field",
        "[listen] limits.streams: ",
        "[listen] limits.requests: ",
        "[logging] filter: the log filter \"inof\"",
    ] {
        assert!(error.contains(reason), "{reason}: {error}");
    }
}
