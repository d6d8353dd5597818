//! `istio-hsm-ca log` with the real program: output and exit status.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use audit_log::{Log, Settings, prove, show};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::writer::{self, LogKey, ORIGIN};

/// Runs the program; returns exit status, standard output and standard error.
fn run(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca")).arg("log").args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(words: &[&str]) -> Value {
    let (status, out, error) = run(&[&["--output", "json"], words].concat());
    assert_eq!(status, 0, "{error}");
    serde_json::from_str(&out).unwrap()
}

/// A certificate of a recorded TBSCertificate, with an arbitrary signature, which is not verified.
fn certificate(tbs: &[u8]) -> Vec<u8> {
    let body = [tbs, b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02\x03\x02\x00\x00"].concat();
    [&[0x30, 0x82], &u16::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn twelve(scratch: &Path) -> String {
    let directory = scratch.join("log");
    writer::written(Settings { segment_bytes: 4000, ..Settings::new(&directory, ORIGIN) }, 12);
    directory.to_str().unwrap().to_owned()
}

#[test]
fn verify_says_whether_the_log_is_sound() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = twelve(scratch.path());
    let (key, other) = (LogKey::new(1).verifier_key(), LogKey::new(2).verifier_key());
    let copy = scratch.path().join("copy");
    fs::copy(Path::new(&directory).join("checkpoint"), &copy).unwrap();
    let copy = copy.to_str().unwrap();

    let (status, out, error) =
        run(&["verify", "--directory", &directory, "--verifier-key", &key, "--checkpoint", copy]);
    assert_eq!((status, error.as_str()), (0, ""), "{out}");
    assert!(out.contains("the log is sound") && out.contains("signatures    checked"), "{out}");
    let keys = scratch.path().join("keys");
    fs::write(&keys, format!("{other}\n{key}\n")).unwrap();
    let reported = json(&["verify", "--directory", &directory, "--verifier-key", keys.to_str().unwrap()]);
    assert_eq!((&reported["sound"], &reported["intents"], &reported["lines"]), (&true.into(), &12.into(), &24.into()));
    assert_eq!(reported["checkpointed"], 24);

    // Without a key, and with another log's key.
    assert_eq!(run(&["verify", "--directory", &directory]).0, 2);
    let (status, _, error) = run(&["verify", "--directory", &directory, "--verifier-key", &other]);
    assert!(status == 1 && error.contains("no given verifier key"), "{status} {error}");
    let (status, out, _) = run(&["verify", "--directory", &directory, "--without-signatures"]);
    assert!(status == 0 && out.contains("signatures    not checked"), "{out}");

    // A changed line is reported, regardless of the output format.
    let first = Path::new(&directory).join("00000000000000000000.jsonl");
    let text = fs::read_to_string(&first).unwrap();
    fs::write(
        &first,
        text.replacen("\"identity\":\"", "\"identity\":\"X", 2).replacen("\"identity\":\"X", "\"identity\":\"", 1),
    )
    .unwrap();
    let (status, out, error) = run(&["verify", "--directory", &directory, "--verifier-key", &key]);
    assert_eq!(status, 1);
    assert!(out.contains("the log is NOT sound") && error.contains("00000000000000000000.jsonl"), "{out}{error}");
    let (status, out, _) = run(&["--output", "json", "verify", "--directory", &directory, "--verifier-key", &key]);
    assert_eq!(status, 1);
    let reported: Value = serde_json::from_str(&out).unwrap();
    assert!(!reported["findings"].as_array().unwrap().is_empty());

    let nowhere = scratch.path().join("nowhere");
    let (status, _, error) = run(&["verify", "--directory", nowhere.to_str().unwrap(), "--verifier-key", &key]);
    assert!(status == 1 && error.contains("nowhere"), "{error}");
}

#[test]
fn show_filters() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = twelve(scratch.path());
    let all = json(&["show", "--directory", &directory]);
    assert_eq!(all.as_array().unwrap().len(), 12);
    let serial = all[4]["intent"]["serial"].as_str().unwrap();
    let cases: [(&[&str], usize); 7] = [
        (&["--identity", "spiffe://cluster.local/ns/shop/sa/a3"], 1),
        (&["--identity", "spiffe://cluster.local/ns/shop/sa"], 0),
        (&["--serial", serial], 1),
        (&["--last", "5"], 5),
        (&["--since", "2020-01-01"], 12),
        (&["--since", "2120-01-01"], 0),
        (&["--until", "2020-01-01T00:00:00Z"], 0),
    ];
    for (filter, count) in cases {
        let shown = json(&[&["show", "--directory", &directory], filter].concat());
        assert_eq!(shown.as_array().unwrap().len(), count, "{filter:?}");
        let (_, text, _) = run(&[&["show", "--directory", &directory], filter].concat());
        assert_eq!(text.lines().count(), count + 1, "not a heading and one row per entry: {text}");
    }
    let (_, text, _) = run(&["show", "--directory", &directory, "--serial", serial]);
    assert!(text.contains("spiffe://cluster.local/ns/shop/sa/a4") && text.contains("issued by one"), "{text}");
    assert_eq!(run(&["show", "--directory", &directory, "--since", "yesterday"]).0, 2);
}

#[test]
fn prove_and_check_certificate() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = twelve(scratch.path());
    let entries = show::entries(Path::new(&directory), &show::Filter::default()).unwrap();
    let intent = &entries[7].intent;
    let (status, out, error) = run(&["prove", "--directory", &directory, "--serial", &intent.serial]);
    assert_eq!(status, 0, "{error}");
    let proof = prove::by_serial(Path::new(&directory), &intent.serial).unwrap();
    assert_eq!(out, proof.to_tlog_proof());
    let reported = json(&["prove", "--directory", &directory, "--serial", &intent.serial]);
    assert_eq!(reported["line"], intent.line);
    assert!(reported["text"].as_str().unwrap().contains(&intent.serial));
    let (status, _, error) = run(&["prove", "--directory", &directory, "--serial", "0123"]);
    assert!(status == 1 && error.contains("0123"), "{error}");

    let (der, pem) = (scratch.path().join("c.der"), scratch.path().join("c.pem"));
    let bytes = certificate(&intent.tbs_der().unwrap());
    fs::write(&der, &bytes).unwrap();
    let text = BASE64_STANDARD.encode(&bytes);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    fs::write(&pem, format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))).unwrap();
    for file in [&der, &pem] {
        let (status, out, error) = run(&["check-certificate", "--directory", &directory, file.to_str().unwrap()]);
        assert!(status == 0 && out.contains("is in the books as intent 7"), "{out}{error}");
    }
    // The same serial number with other content, and a certificate that was not recorded.
    let serial_at = bytes.windows(3).position(|bytes| bytes == [0x02, 0x11, 0x00]).unwrap();
    let end = bytes.len() - 40;
    for (at, what) in [(end, "and another content"), (serial_at + 9, "NOT in the books (SHA-256")] {
        let mut forged = bytes.clone();
        forged[at] ^= 1;
        fs::write(&der, &forged).unwrap();
        let (status, _, error) = run(&["check-certificate", "--directory", &directory, der.to_str().unwrap()]);
        assert!(status == 1 && error.contains(what), "{status} {error}");
    }
    fs::write(&der, "no certificate").unwrap();
    assert_eq!(run(&["check-certificate", "--directory", &directory, der.to_str().unwrap()]).0, 1);
}

#[test]
fn follow_shows_lines_as_they_come() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("log");
    let settings = Settings { segment_bytes: 4000, ..Settings::new(&directory, ORIGIN) };
    writer::written(settings.clone(), 2);
    let mut following = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
        .args(["log", "show", "--follow", "--output", "json", "--directory"])
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let (shown, seen) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| shown.send(line)));
    let next = || -> Value { serde_json::from_str(&seen.recv_timeout(Duration::from_secs(20)).unwrap()).unwrap() };
    for number in 0..4 {
        assert_eq!(next()["line"], number);
    }
    // New lines, across the ends of several segments.
    writer::runtime().block_on(async {
        let (log, _) = Log::open(settings, Some(Arc::new(LogKey::new(1)))).unwrap();
        writer::record(&log, &writer::Intents::new(), 20).await;
        log.close().await;
    });
    for number in 4..44 {
        assert_eq!(next()["line"], number);
    }
    following.kill().unwrap();
    following.wait().unwrap();
}
