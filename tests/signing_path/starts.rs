//! What prevents `serve` from starting is reported with a remedy: another daemon on the same log, an address or socket
//! in use, a configuration with several mistakes. Also tests readiness from the start.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    thread,
    time::{Duration, Instant},
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
    // Without a retry: a client that relies on the readiness must not have its first connection rejected.
    daemon.send(daemon.ask()).await.unwrap();
    assert!(answers.iter().all(|answer| answer.contains("gRPC endpoint: ")), "{answers:?}");
    assert!(answers.len() > 1, "the start was not seen");
}

/// gRPC clients wait a second after a failed attempt, and one that has come too early for a serving certificate would
/// be one.
#[tokio::test]
async fn client_that_dials_from_the_start_is_served_by_the_first_connection_that_the_system_accepts() {
    let site = Site::new(&PlugIn::intermediate());
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let mut daemon = site.spawn_without_waiting(&format!("[listen]\naddress = \"{address}\"\n"));
    daemon.address = address;
    let ask = daemon.ask();
    while TcpStream::connect(address).is_err() {
        assert!(started.elapsed() < SOON, "{}", daemon.stderr());
        thread::sleep(Duration::from_millis(1));
    }
    daemon.send(ask).await.unwrap();
}

fn readyz(admin: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(stream, "GET /readyz HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn second_daemon_names_what_the_first_one_uses() {
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
    assert_eq!(status.code(), Some(0), "the first one was affected: {text}");
}

/// Files next to the log, for token hosts and the next start.
#[test]
fn a_second_daemon_changes_no_file_of_the_first() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let kept = || {
        let file = |name| {
            let path = site.log().join(name);
            (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().ino())
        };
        ["ca-in-use.pem", "roots-in-use.pem"].map(file)
    };
    let before = kept();
    let other = site.softhsm.path().join("other-bundle");
    fs::create_dir(&other).unwrap();
    PlugIn::intermediate().write_public(&other);
    let more = format!("[ca]\nbundle = \"{}\"\nallow_root_removal = true", other.display());
    let error = site.does_not_start(&more);
    assert!(error.contains("another process has this log open"), "{error}");
    assert!(kept() == before);
    drop(daemon);
    site.serve("");
}

/// A clock that was ahead while the daemon issued: the next start issues nothing until an operator confirms the clock.
#[test]
fn a_record_in_the_future_stops_issuance_until_the_clock_is_confirmed() {
    let site = Site::new(&PlugIn::intermediate());
    drop(site.serve(""));
    // The newest record is the serving certificate's. What a clock 300 days ahead would have written has another year.
    let segment = fs::read_dir(site.log()).unwrap().flatten().map(|entry| entry.path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "jsonl")).unwrap();
    let lines = String::from_utf8(fs::read(&segment).unwrap()).unwrap();
    let lines = lines.trim_end_matches('\0');
    let marker = "\"time\":\"";
    let year = &lines[lines.find(marker).unwrap() + marker.len()..][..4];
    let next: u32 = year.parse::<u32>().unwrap() + 1;
    for entry in fs::read_dir(site.log()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.contains("checkpoint") || name.ends_with(".seal") || name.ends_with(".hashes") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    fs::write(&segment, lines.replace(&format!("{marker}{year}"), &format!("{marker}{next}"))).unwrap();

    let daemon = site.spawn("");
    let readiness = daemon.wait_line(|_| daemon.get("/readyz").1.contains("behind the newest record"));
    let reported = daemon.get("/readyz").1;
    assert!(reported.contains("log confirm-clock"), "{readiness} {reported}");
    let config = site.configure("").display().to_string();
    let reason = "the clock was a year ahead";
    let output = site.run(&["log", "confirm-clock", "--config", &config, "--reason", reason]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(daemon);
    let daemon = site.serve("");
    daemon.wait_line(|line| line["message"].as_str().is_some_and(|text| text.contains("an operator confirmed")));
    let record = fs::read_to_string(site.log().join("clock-confirmations.jsonl")).unwrap();
    assert!(record.contains(reason) && record.contains(&next.to_string()), "{record}");
}

#[test]
fn several_mistakes_are_reported_at_once() {
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

/// A FIFO that were opened like a regular file would be waited for.
#[test]
fn no_input_file_may_be_a_fifo() {
    let site = Site::new(&PlugIn::intermediate());
    let fifo = site.softhsm.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let reason = "it is a FIFO, not a regular file";
    let error = site.does_not_start(&format!("[auth.client_certificate]\ndenylist = \"{fifo}\""));
    assert!(error.contains(reason), "{error}");
    // It may appear later.
    let daemon =
        site.spawn_without_waiting(&format!("[serving]\ncertificate_file = \"{fifo}\"\nkey_file = \"{fifo}\""));
    daemon.wait_line(|line| line["error"].as_str().is_some_and(|error| error.contains(reason)));
    drop(daemon);
    let config = site.configure("").display().to_string();
    let log = site.log().display().to_string();
    let commands: [&[&str]; 5] = [
        &["serve", "--config", fifo],
        &["check", "--config", fifo],
        &["token-host", "--config", fifo, "--socket", "/nowhere/socket"],
        &["issue", "--config", &config, "--csr", fifo, "--spiffe-id", "spiffe://cluster.local/ns/a/sa/b"],
        &["log", "check-certificate", "--directory", &log, fifo],
    ];
    for command in commands {
        let output = site.run(command);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(!output.status.success() && text.contains(reason), "{command:?}: {text}");
    }
}
