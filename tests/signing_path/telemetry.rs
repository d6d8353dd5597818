//! Metrics and probes after a request with each outcome, parsed like Prometheus does.

use std::fs;
use testkit::wait::eventually;

use nix::sys::signal::Signal;
use prometheus_parse::{Scrape, Value};
use tonic::Code;

use testkit::{
    daemon::{Ask, Daemon, IDENTITY, Site},
    plug_in::PlugIn,
};

/// Result of a scrape.
pub struct Scraped(Scrape);

impl Scraped {
    pub fn new(daemon: &Daemon) -> Self {
        let (status, text) = daemon.get("/metrics");
        assert_eq!(status, 200);
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        // The parser skips unknown syntax; here everything must be parsed.
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before, "a metric is described twice");
        // The parser treats a histogram's sum and count as separate samples.
        let of_histogram = |name: &str| name.ends_with("_sum") || name.ends_with("_count");
        let samples = scrape.samples.iter().filter(|sample| !of_histogram(&sample.metric));
        let untyped: Vec<_> = samples.filter(|sample| matches!(sample.value, Value::Untyped(_))).collect();
        assert!(untyped.is_empty(), "without a type: {untyped:?}");
        Self(scrape)
    }

    /// The sum of a series' samples with these labels; the count for a histogram.
    pub fn of(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let samples = self.0.samples.iter().filter(|sample| {
            sample.metric == name && labels.iter().all(|(key, value)| sample.labels.get(key) == Some(*value))
        });
        let values: Vec<f64> = samples
            .map(|sample| match &sample.value {
                Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
                Value::Histogram(buckets) => buckets.iter().map(|bucket| bucket.count).fold(0.0, f64::max),
                Value::Summary(_) => f64::NAN,
            })
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

type Series = (&'static str, &'static [(&'static str, &'static str)]);

/// A series and its minimum increase.
type AtLeast = (&'static str, &'static [(&'static str, &'static str)], f64);

const REQUESTS: &str = "istio_hsm_ca_requests_total";
const CSR_COUNT: Series = ("citadel_server_csr_count_total", &[]);
const SUCCESS: Series = ("citadel_server_success_cert_issuance_count_total", &[]);
const NOBODY: Series = ("citadel_server_authentication_failure_count_total", &[]);
const PARSING: Series = ("citadel_server_csr_parsing_err_count_total", &[]);
const CSR_ERROR: Series = ("citadel_server_csr_sign_err_count_total", &[("error", "CSR_ERROR")]);
const TTL_ERROR: Series = ("citadel_server_csr_sign_err_count_total", &[("error", "TTL_ERROR")]);

#[tokio::test(flavor = "multi_thread")]
async fn each_outcome_moves_its_series_and_no_other() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    let channel = daemon.connect(None).await;
    let first = daemon.ask();
    let key = first.key_pem.clone();
    let reply = first.send(channel.clone()).await.unwrap();
    let mutual = daemon.connect(Some((&reply[0], &key))).await;
    let by_jwt = |outcome: &'static str| (REQUESTS, vec![("outcome", outcome), ("method", "jwt")]);
    let watched: Vec<Series> = vec![CSR_COUNT, SUCCESS, NOBODY, PARSING, CSR_ERROR, TTL_ERROR];
    type Case<'a> =
        (&'a str, Ask, &'a tonic::transport::Channel, Vec<Series>, (&'static str, Vec<(&'static str, &'static str)>));
    let foreign = Ask::new("spiffe://cluster.local/ns/demo/sa/other").token(&daemon.token);
    let cases: Vec<Case<'_>> = vec![
        ("issued", daemon.ask(), &channel, vec![CSR_COUNT, SUCCESS], by_jwt("issued")),
        (
            "renewed",
            Ask::new(IDENTITY),
            &mutual,
            vec![CSR_COUNT, SUCCESS],
            (REQUESTS, vec![("outcome", "issued"), ("method", "client_certificate")]),
        ),
        (
            "nobody",
            Ask::new(IDENTITY),
            &channel,
            vec![CSR_COUNT, NOBODY],
            (REQUESTS, vec![("outcome", "no_credentials"), ("method", "none")]),
        ),
        (
            "garbage",
            daemon.ask().csr("garbage"),
            &channel,
            vec![CSR_COUNT, PARSING, CSR_ERROR],
            (REQUESTS, vec![("method", "jwt"), ("outcome", "csr_malformed")]),
        ),
        ("life", daemon.ask().validity(i64::MAX), &channel, vec![CSR_COUNT, TTL_ERROR], by_jwt("ttl_too_long")),
        ("foreign", foreign, &channel, vec![CSR_COUNT, PARSING, CSR_ERROR], by_jwt("foreign_name")),
    ];
    for (name, ask, channel, moved, (metric, labels)) in cases {
        let before = Scraped::new(&daemon);
        let _answer = ask.send(channel.clone()).await;
        let after = Scraped::new(&daemon);
        for (metric, labels) in &watched {
            let grown = after.of(metric, labels).unwrap_or(0.0) - before.of(metric, labels).unwrap_or(0.0);
            let wanted = if moved.contains(&(*metric, *labels)) { 1.0 } else { 0.0 };
            assert_eq!(grown, wanted, "{name}: {metric} {labels:?}");
        }
        let grown = after.of(metric, &labels).unwrap_or(0.0) - before.of(metric, &labels).unwrap_or(0.0);
        assert_eq!(grown, 1.0, "{name}: {metric} {labels:?}: {:#?}", daemon.get("/metrics").1);
        let all = after.of(REQUESTS, &[]).unwrap() - before.of(REQUESTS, &[]).unwrap();
        assert_eq!(all, 1.0, "{name}: one answer is counted once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expected_series_are_there() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("");
    daemon.send(daemon.ask()).await.unwrap();
    // Metrics counted elsewhere are set once per second.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let scraped = Scraped::new(&daemon);
    let token: &'static [(&'static str, &'static str)] = &[("token", "softhsm")];
    let at_least: &[AtLeast] = &[
        ("citadel_server_root_cert_expiry_timestamp", &[], 1e9),
        ("citadel_server_root_cert_expiry_seconds", &[], 1e6),
        ("citadel_server_cert_chain_expiry_timestamp", &[], 1e9),
        ("citadel_server_cert_chain_expiry_seconds", &[], 1e6),
        ("istio_hsm_ca_ready", &[], 1.0),
        ("istio_hsm_ca_part_ready", &[("part", "tokens")], 1.0),
        ("istio_hsm_ca_part_ready", &[("part", "issuance log")], 1.0),
        ("istio_hsm_ca_part_ready", &[("part", "serving certificate")], 1.0),
        ("istio_hsm_ca_token_up", token, 1.0),
        ("istio_hsm_ca_token_signatures_total", token, 2.0),
        ("istio_hsm_ca_token_hosts_total", token, 1.0),
        ("istio_hsm_ca_token_faults_total", token, 0.0),
        ("istio_hsm_ca_token_in_flight", token, 0.0),
        ("istio_hsm_ca_log_lines_total", &[], 2.0),
        ("istio_hsm_ca_log_flushes_total", &[], 1.0),
        ("istio_hsm_ca_log_flush_failures_total", &[], 0.0),
        ("istio_hsm_ca_log_writable", &[], 1.0),
        ("istio_hsm_ca_log_segments", &[], 1.0),
        ("istio_hsm_ca_log_disk_bytes", &[], 1000.0),
        ("istio_hsm_ca_bundle_refused", &[], 0.0),
        ("istio_hsm_ca_connections_refused_total", &[], 0.0),
        ("istio_hsm_ca_connections", &[], 0.0),
        ("istio_hsm_ca_request_duration_seconds", &[("issued", "true")], 1.0),
        ("istio_hsm_ca_step_duration_seconds", &[("step", "authenticate")], 1.0),
        ("istio_hsm_ca_step_duration_seconds", &[("step", "csr")], 1.0),
        ("istio_hsm_ca_step_duration_seconds", &[("step", "build")], 1.0),
        ("istio_hsm_ca_step_duration_seconds", &[("step", "log")], 1.0),
        ("istio_hsm_ca_step_duration_seconds", &[("step", "sign")], 1.0),
        ("istio_hsm_ca_step_duration_seconds", &[("step", "verify")], 1.0),
    ];
    for (name, labels, least) in at_least {
        let value = scraped.of(name, labels);
        assert!(
            value.is_some_and(|value| value >= *least),
            "{name} {labels:?}: {value:?}\n{}",
            daemon.get("/metrics").1
        );
    }
    assert_eq!(scraped.of("istio_hsm_ca_excess_signatures", &[]).unwrap_or(0.0), 0.0);
    assert!(!daemon.get("/metrics").1.contains(IDENTITY), "a caller's name is a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_in_words_that_the_token_is_away() {
    let site = Site::new(&PlugIn::intermediate());
    let mut daemon = site.serve("");
    let (status, body) = daemon.get("/readyz");
    assert_eq!((status, body.lines().next()), (200, Some("ready")));

    let (there, away) = (site.softhsm.path().join("tokens"), site.softhsm.path().join("tokens.away"));
    fs::rename(&there, &away).unwrap();
    fs::create_dir(&there).unwrap();
    for host in crate::ending::children(daemon.pid()) {
        nix::sys::signal::kill(host, Signal::SIGKILL).unwrap();
    }
    daemon.wait_line(|line| line["message"] == "not ready" && line["part"] == "tokens");
    let body = eventually("a reason in words", async || {
        let (status, body) = daemon.get("/readyz");
        (status == 503 && body.contains("istio-ca")).then_some(body)
    })
    .await;
    assert!(body.starts_with("not ready\n") && body.contains("tokens: no token signs"), "{body}");
    assert_eq!(daemon.get("/livez").0, 200, "a dead token must not restart the daemon");
    // A request waits two seconds for the token, and no longer.
    let asked = std::time::Instant::now();
    let status = daemon.send(daemon.ask()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let waited = asked.elapsed().as_millis();
    assert!((1900..6000).contains(&waited), "{waited} ms");
    assert_eq!(Scraped::new(&daemon).of("istio_hsm_ca_token_up", &[("token", "softhsm")]), Some(0.0));
    assert!(daemon.running());

    fs::remove_dir(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    daemon.wait_ready();
    daemon.send(daemon.ask()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_function_of_the_module_is_measured() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon =
        site.serve(&format!("[[token]]\nname = 'softhsm \"one\"'\nuri = '{}'\nkeep_alive = '200ms'", site.uri()));
    daemon.send(daemon.ask()).await.unwrap();
    let functions = [
        "C_FindObjects",
        "C_GetAttributeValue",
        "C_GetSessionInfo",
        "C_GetSlotList",
        "C_GetTokenInfo",
        "C_Initialize",
        "C_Login",
        "C_OpenSession",
        "C_Sign",
    ];
    let state = std::fmt::from_fn(|f| write!(f, "every function counted: {}", daemon.get("/metrics").1));
    eventually(state, async || {
        let scraped = Scraped::new(&daemon);
        let counted = functions.iter().all(|function| {
            // There is one token; its name has quotes, which the parser does not unescape.
            let calls = scraped.of("istio_hsm_ca_pkcs11_call_duration_seconds", &[("function", function)]);
            calls.is_some_and(|calls| calls >= 1.0)
        });
        // The serving certificate, the request's, and canaries.
        let signed = scraped.of("istio_hsm_ca_pkcs11_call_duration_seconds", &[("function", "C_Sign")]);
        counted && signed >= Some(3.0)
    })
    .await;
}

#[test]
fn hosts_log_as_the_daemon_does() {
    let site = Site::new(&PlugIn::intermediate());
    let daemon = site.serve("[logging]\nfilter = 'info,istio_hsm_ca_token_host=debug'");
    let of_the_host = |line: &serde_json::Value| line["message"] == "the token host is logged in";
    let line = daemon.wait_line(of_the_host);
    assert_eq!((&line["level"], &line["name"]), (&"INFO".into(), &"softhsm".into()), "{line}");
    // The serving certificate's signature, logged by the host below the default level.
    daemon.wait_line(|line| line["message"] == "signed" && line["level"] == "DEBUG");
    let stray: Vec<_> = daemon.stderr().lines().filter(|line| !line.starts_with('{')).map(str::to_owned).collect();
    assert!(stray.is_empty(), "{stray:?}");
}
