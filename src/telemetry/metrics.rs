//! Prometheus metrics: all names, units and help texts.
//!
//! Istio's own names are used where Istio's dashboards expect them (security/pkg/server/ca/monitoring.go; its exporter
//! adds `_total` to sums). Label values are from closed sets and from the configuration, never from a caller.

use std::{
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use metrics::{Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

use token::call_metrics::{self, Calls};

/// Histogram bounds in seconds: from one PKCS#11 call of a software token to the longest request.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Interval at which the exporter's buffers are merged when there are no scrapes.
pub const UPKEEP: Duration = Duration::from_secs(5);

static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();

/// PKCS#11 call counters as last reported by the token hosts.
static CALLS: Mutex<Vec<Calls>> = Mutex::new(Vec::new());

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// A stage of the issuance pipeline, for its latency metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Authentication of the caller.
    Authenticate,
    /// Parsing the CSR and verifying its self-signature.
    Csr,
    /// Policy, building the TBSCertificate, lint.
    Build,
    /// Making the log line durable.
    Log,
    /// Queue, token host and token.
    Sign,
    /// Verification of the result.
    Verify,
}

impl Step {
    const ALL: [Self; 6] = [Self::Authenticate, Self::Csr, Self::Build, Self::Log, Self::Sign, Self::Verify];

    fn as_str(self) -> &'static str {
        match self {
            Self::Authenticate => "authenticate",
            Self::Csr => "csr",
            Self::Build => "build",
            Self::Log => "log",
            Self::Sign => "sign",
            Self::Verify => "verify",
        }
    }
}

/// Metric handles used by every request, looked up once: a lookup by name and labels costs more than the counting.
struct Handles {
    requests: Counter,
    issued: Counter,
    /// Latency of failed and of successful requests.
    latency: [Histogram; 2],
    steps: [Histogram; Step::ALL.len()],
}

static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles {
    requests: counter!("citadel_server_csr_count_total"),
    issued: counter!("citadel_server_success_cert_issuance_count_total"),
    latency: ["false", "true"].map(|issued| histogram!("istio_hsm_ca_request_duration_seconds", "issued" => issued)),
    steps: Step::ALL.map(|step| histogram!("istio_hsm_ca_step_duration_seconds", "step" => step.as_str())),
});

/// The handles, once metrics are installed: handles created earlier would never count.
fn handles() -> Option<&'static Handles> {
    INSTALLED.get().map(|_| &*HANDLES)
}

/// Installs the process's metrics; later calls return the same.
#[must_use]
pub fn install() -> Metrics {
    let handle = INSTALLED.get_or_init(|| {
        let recorder =
            builder().map_or_else(|_| PrometheusBuilder::new().build_recorder(), PrometheusBuilder::build_recorder);
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics stays empty");
        }
        describe();
        handle
    });
    Metrics { handle: handle.clone() }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
}

impl Metrics {
    /// A function that renders the metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let handle = self.handle.clone();
        Arc::new(move || {
            let mut text = handle.render();
            text.push_str(&call_metrics::render(&CALLS.lock()));
            text
        })
    }

    /// Merges the exporter's buffers.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Counts a request.
pub fn request() {
    if let Some(handles) = handles() {
        handles.requests.increment(1);
    }
}

/// Counts a failed authentication.
pub fn unauthenticated() {
    counter!("citadel_server_authentication_failure_count_total").increment(1);
}

/// Counts a finished request: `outcome` is `issued` or the label of the rejection.
pub fn answered(outcome: &'static str, method: &'static str, latency: Duration) {
    counter!("istio_hsm_ca_requests_total", "outcome" => outcome, "method" => method).increment(1);
    let Some(Handles { issued, latency: [refusals, certificates], .. }) = handles() else { return };
    if outcome == "issued" {
        issued.increment(1);
        certificates.record(latency.as_secs_f64());
    } else {
        refusals.record(latency.as_secs_f64());
    }
}

/// Counts a failure as Istio's own CA does: `CA_NOT_READY`, `CSR_ERROR`, `TTL_ERROR`, `CERT_GEN_ERROR`
/// (security/pkg/pki/error/error.go).
pub fn sign_error(istio: &'static str) {
    counter!("citadel_server_csr_sign_err_count_total", "error" => istio).increment(1);
    if istio == "CSR_ERROR" {
        counter!("citadel_server_csr_parsing_err_count_total").increment(1);
    }
}

/// Records the duration of a pipeline stage.
pub fn step(step: Step, took: Duration) {
    let Some(Handles { steps, .. }) = handles() else { return };
    if let Some((_, histogram)) = Step::ALL.iter().zip(steps).find(|(known, _)| **known == step) {
        histogram.record(took.as_secs_f64());
    }
}

/// Counts a TokenReview: `good`, `refused` or `unanswered`; `cluster` is from the configuration.
pub fn token_review(cluster: &str, outcome: &'static str) {
    counter!("istio_hsm_ca_token_reviews_total", "cluster" => cluster.to_owned(), "outcome" => outcome).increment(1);
}

/// Counts a lookup of an uncached pod; `cluster` is from the configuration.
pub fn pod_lookup(cluster: &str) {
    counter!("istio_hsm_ca_pod_lookups_total", "cluster" => cluster.to_owned()).increment(1);
}

/// Counts a signature that did not verify.
pub fn wrong_signature(token: &str) {
    counter!("istio_hsm_ca_wrong_signatures_total", "token" => token.to_owned()).increment(1);
}

/// Counts a reload of files: `what` is `bundle` or `callers`, the outcome `taken` or `refused`.
pub fn reload(what: &'static str, taken: bool) {
    let outcome = if taken { "taken" } else { "refused" };
    counter!("istio_hsm_ca_reloads_total", "what" => what, "outcome" => outcome).increment(1);
}

/// Sets when the root and CA certificates expire, in seconds since the epoch, and the seconds left.
pub fn expiry(root: (f64, f64), chain: (f64, f64)) {
    gauge!("citadel_server_root_cert_expiry_timestamp").set(root.0);
    gauge!("citadel_server_root_cert_expiry_seconds").set(root.1);
    gauge!("citadel_server_cert_chain_expiry_timestamp").set(chain.0);
    gauge!("citadel_server_cert_chain_expiry_seconds").set(chain.1);
}

/// Sets a counter that is counted elsewhere; the label is from the configuration.
pub fn absolute(name: &'static str, token: Option<&str>, value: u64) {
    match token {
        Some(token) => counter!(name, "token" => token.to_owned()).absolute(value),
        None => counter!(name).absolute(value),
    }
}

/// Counts a reconcile: `result` is `unchanged`, `changed` or `error`.
pub fn reconciled(controller: &'static str, cluster: &str, result: &'static str) {
    let labels = [("controller", controller.to_owned()), ("cluster", cluster.to_owned())];
    counter!(
        "istio_hsm_ca_reconciles_total",
        [labels.as_slice(), &[("result", result.to_owned())]].concat().as_slice()
    )
    .increment(1);
}

/// Updates the number of failing objects of a controller. Several instances may share the name.
pub fn in_error(controller: &'static str, cluster: &str, before: usize, now: usize) {
    let count = |objects| f64::from(u32::try_from(objects).unwrap_or(u32::MAX));
    let cluster = cluster.to_owned();
    gauge!("istio_hsm_ca_objects_in_error", "controller" => controller, "cluster" => cluster)
        .increment(count(now) - count(before));
}

/// Sets the PKCS#11 call counters of the token hosts.
pub fn pkcs11_calls(calls: Vec<Calls>) {
    *CALLS.lock() = calls;
}

/// Sets a gauge.
pub fn level(name: &'static str, label: Option<(&'static str, String)>, value: f64) {
    match label {
        Some((key, label)) => gauge!(name, key => label).set(value),
        None => gauge!(name).set(value),
    }
}

/// Registers help texts, and sets counters and histograms without labels to zero so that they are visible.
fn describe() {
    let counters = [
        ("citadel_server_csr_count_total", "Certificate requests received."),
        ("citadel_server_authentication_failure_count_total", "Requests whose caller could not be authenticated."),
        ("citadel_server_csr_parsing_err_count_total", "Requests whose CSR was refused."),
        ("citadel_server_id_extraction_err_count_total", "Requests whose identity could not be made out."),
        ("citadel_server_success_cert_issuance_count_total", "Certificates issued."),
        ("istio_hsm_ca_log_lines_total", "Lines written to the issuance log, intents and outcomes."),
        ("istio_hsm_ca_log_bytes_total", "Bytes written to the issuance log."),
        ("istio_hsm_ca_log_flushes_total", "Flushes of the issuance log; one makes many lines durable."),
        ("istio_hsm_ca_log_flush_failures_total", "Writes or flushes of the issuance log that failed."),
        ("istio_hsm_ca_log_outcomes_lost_total", "Outcome lines that could not be kept; their intents are."),
        ("istio_hsm_ca_messages_dropped_total", "Lines for standard error that nobody took in time; none of the log."),
        ("istio_hsm_ca_log_checkpoints_total", "Checkpoints of the issuance log that were signed."),
        (
            "istio_hsm_ca_connections_dropped_total",
            "Idle connections without a certificate that made room for others, since a limit was reached.",
        ),
        ("istio_hsm_ca_connections_refused_total", "Connections that were turned away, since a limit was reached."),
    ];
    for (name, help) in counters {
        describe_counter!(name, help);
        counter!(name).absolute(0);
    }
    let labelled = [
        ("citadel_server_csr_sign_err_count_total", "Certificates that could not be issued, by Istio's kind of error."),
        ("istio_hsm_ca_requests_total", "Requests answered, by outcome and by how the caller was authenticated."),
        ("istio_hsm_ca_handshakes_failed_total", "TLS handshakes that failed, or took too long, by reason."),
        ("istio_hsm_ca_reloads_total", "Reloads of bundles and authentication files, by kind and outcome."),
        ("istio_hsm_ca_token_reviews_total", "Tokens that an API server was asked about, by cluster and outcome."),
        ("istio_hsm_ca_pod_lookups_total", "Pods that were not remembered and looked up, by cluster."),
        ("istio_hsm_ca_wrong_signatures_total", "ALARM: signatures of a token that do not verify with the CA's key."),
        ("istio_hsm_ca_reconciles_total", "Looks of a controller at its objects, by result."),
        ("istio_hsm_ca_token_signatures_total", "Signatures that came back from a token's host."),
        ("istio_hsm_ca_token_refusals_total", "Requests that a token host's own rules refused."),
        (
            "istio_hsm_ca_token_limited_total",
            "ALARM: requests that a token host's limit on the number of certificates refused.",
        ),
        ("istio_hsm_ca_token_faults_total", "Requests that a PKCS#11 error failed."),
        ("istio_hsm_ca_token_expired_total", "Requests whose deadline passed at a token."),
        ("istio_hsm_ca_token_retries_total", "Requests taken back from a token's host and tried again."),
        ("istio_hsm_ca_token_hosts_total", "Token hosts started or connected to."),
        ("istio_hsm_ca_token_hung_total", "Token hosts that were replaced because they did not answer."),
        ("istio_hsm_ca_token_outages_total", "Times a token was taken out of service."),
        ("istio_hsm_ca_token_canary_failures_total", "Canary signatures that failed or were wrong."),
    ];
    for (name, help) in labelled {
        describe_counter!(name, help);
    }
    let gauges = [
        ("citadel_server_root_cert_expiry_timestamp", "The end of the first root, Unix time in seconds."),
        ("citadel_server_root_cert_expiry_seconds", "Seconds until the first root expires."),
        ("citadel_server_cert_chain_expiry_timestamp", "The end of the CA's certificate path, Unix time in seconds."),
        ("citadel_server_cert_chain_expiry_seconds", "Seconds until the CA's certificate path expires."),
        ("istio_hsm_ca_ready", "1 when certificates can be issued."),
        ("istio_hsm_ca_part_ready", "1 when a part of the daemon can do its share, by part."),
        (
            "istio_hsm_ca_bundle_refused",
            "1 while the bundle on the disk is one that is refused; the old one is in use.",
        ),
        (
            "istio_hsm_ca_serving_certificate_expiry_timestamp_seconds",
            "The end of the endpoint's own certificate, Unix time in seconds.",
        ),
        ("istio_hsm_ca_api_server_up", "1 when a cluster's API server answers, by cluster."),
        ("istio_hsm_ca_leader", "1 when this replica's controllers lead."),
        ("istio_hsm_ca_pods", "Pods remembered for node impersonation, by cluster."),
        ("istio_hsm_ca_token_up", "1 when a token signs."),
        ("istio_hsm_ca_token_in_flight", "Requests under way at a token's host."),
        ("istio_hsm_ca_queue_length", "Requests that wait for a token, by class."),
        ("istio_hsm_ca_log_writable", "1 when the issuance log can be written."),
        ("istio_hsm_ca_log_queue_length", "Lines that wait for the issuance log's writer."),
        ("istio_hsm_ca_log_unsigned_lines", "Lines of the issuance log beyond its last signed checkpoint."),
        ("istio_hsm_ca_log_segments", "Segments of the issuance log."),
        ("istio_hsm_ca_objects_in_error", "Objects of a controller that are not as they should be."),
        ("istio_hsm_ca_log_disk_bytes", "Bytes of the issuance log's lines on the disk."),
        ("istio_hsm_ca_log_checkpoint_timestamp_seconds", "When the last checkpoint was signed, Unix time in seconds."),
        ("istio_hsm_ca_excess_signatures", "ALARM above 0: signatures of the hosts beyond the log's intents."),
        (
            "istio_hsm_ca_crl_this_update_timestamp_seconds",
            "When the CRL of the CA, or the one of the other CAs that expires first, was issued, Unix time in seconds.",
        ),
        (
            "istio_hsm_ca_crl_next_update_timestamp_seconds",
            "When that CRL expires and proxies reject every certificate below its CA, Unix time in seconds.",
        ),
        ("istio_hsm_ca_crl_entries", "Revoked certificates in that CRL."),
        ("istio_hsm_ca_crls_enabled", "1 when the CRLs are to be published."),
        ("istio_hsm_ca_crls_publishable", "1 when every CA of the bundle has a current CRL."),
        ("istio_hsm_ca_crls_bytes", "Size of all CRLs; a ConfigMap holds 1048576."),
        ("istio_hsm_ca_connections", "Open connections of the gRPC endpoint."),
    ];
    for (name, help) in gauges {
        describe_gauge!(name, help);
    }
    describe_histogram!("istio_hsm_ca_request_duration_seconds", "From a request's headers to its answer.");
    describe_histogram!("istio_hsm_ca_step_duration_seconds", "The steps of the path from request to certificate.");
}
