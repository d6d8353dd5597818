//! `bench token` and `bench endpoint`: their text and JSON output.

use std::fs;

use serde_json::Value;

use testkit::{
    daemon::{ISSUER, SERVER, Site},
    plug_in::PlugIn,
};

fn json(site: &Site, arguments: &[&str]) -> Value {
    let output = site.run_bench(&[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}

#[test]
fn a_token_by_key_and_by_number_of_sessions() {
    let site = Site::new(&PlugIn::intermediate());
    let (token, ca) = (site.uri(), site.bundle().join("ca-cert.pem").display().to_string());
    let usual = ["token", "--token", &token, "--seconds", "0.1", "--rounds", "3"];
    let rows = json(&site, &[&usual[..], &["--sessions", "1,2", "--ca-cert", &ca]].concat());
    let rows = rows.as_array().unwrap();
    let sessions: Vec<_> = rows.iter().map(|row| row["sessions"].as_u64().unwrap()).collect();
    assert_eq!(sessions, [1, 2], "{rows:?}");
    for row in rows {
        assert_eq!((&row["algorithm"], &row["key"]), (&"P-256".into(), &ca.as_str().into()));
        assert!(positive(&row["signatures_per_second"]) && positive(&row["cpu_us_per_signature"]), "{row}");
    }
    let text = site.run_bench(&[&usual[..], &["--sessions", "1"]].concat());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("algorithm  sessions  signatures/s  CPU us each  key\n"), "{text}");
    assert!(text.contains("istio-hsm-ca canary key"), "{text}");

    let roots = site.bundle().join("import").display().to_string();
    for (wrong, reasons) in [
        (vec!["--label", "nobody's"], vec!["no private key with the label `nobody's`"]),
        (vec!["--ca-cert", &roots], vec!["cannot read", "import"]),
        (vec!["--pin-file", &ca], vec!["ca-cert.pem", "PIN"]),
    ] {
        let output = site.run_bench(&[&usual[..], &wrong].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(reasons.iter().all(|reason| error.contains(reason)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_and_token_are_measured() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let (token, roots) = (site.uri(), site.bundle().join("root-cert.pem").display().to_string());
    let (address, key) = (daemon.address.to_string(), site.issuer_key_file().display().to_string());
    let target = ["endpoint", "--address", &address, "--server-name", SERVER, "--roots", &roots];
    let agents = ["--token-key", &key, "--issuer", ISSUER, "--connections", "2", "--streams", "3"];
    let short = ["--seconds", "1", "--warm-up", "0.2"];
    let (pid, ca) = (daemon.pid().to_string(), site.bundle().join("ca-cert.pem").display().to_string());
    let all = [&target[..], &agents, &short].concat();
    let report = json(&site, &[&all[..], &["--token", &token, "--ca-cert", &ca, "--pid", &pid]].concat());
    assert_eq!((&report["connections"], &report["streams"]), (&2.into(), &3.into()));
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    for field in [
        "certificates",
        "certificates_per_second",
        "token_signatures_per_second",
        "ratio_to_token",
        "daemon_cpu_us_per_certificate",
    ] {
        assert!(positive(&report[field]), "{field}: {report}");
    }
    let latency = |field: &str| report["latency"][field].as_u64().unwrap();
    assert!(0 < latency("p50_us") && latency("p50_us") <= latency("p99_us"), "{report}");
    // Each stream has its own identity.
    for number in 0..6 {
        let identity = format!("spiffe://cluster.local/ns/bench/sa/w{number}");
        daemon.wait_line(|line| line["message"] == "issued" && line["identity"] == identity.as_str());
    }
    let text = String::from_utf8(site.run_bench(&all).stdout).unwrap();
    assert!(text.contains("p50") && text.contains("p99"), "{text}");

    // All invalid arguments are reported.
    let broken = site.softhsm.path().join("broken.pem");
    fs::write(&broken, "nothing").unwrap();
    let broken = broken.display().to_string();
    for (wrong, reasons) in [
        (["--roots", &broken], vec!["--roots", "broken.pem"]),
        (["--token-key", &broken], vec!["--token-key", "broken.pem"]),
        (["--address", "127.0.0.1:1"], vec!["127.0.0.1:1", "start the daemon"]),
    ] {
        let mut words = all.clone();
        let at = words.iter().position(|word| *word == wrong[0]).unwrap();
        words[at + 1] = wrong[1];
        let output = site.run_bench(&words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(reasons.iter().all(|reason| error.contains(reason)), "{error}");
    }
}
