//! The daemon's state: the status page's snapshot and metrics that are counted elsewhere.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{
    clusters::ClustersStatus,
    readiness::Report,
    setup::{self, Core},
    status::{ChainEntry, LogEntry, Snapshot, Take, TokenEntry},
};
use crate::{
    config::{self, Config},
    grpc::standing::Connections,
    issue::CertificateAuthority,
    publication::Publication,
    telemetry::metrics::{self, Metrics},
    token_pool::{Pool, PoolHealth},
};
use audit_log::Log;
use pki::{CertificateFields, Issuer, KeyAlgorithm, PublicKey, pem};
use process::clock;

/// Longer flushes are shown on the status page.
const SLOW_FLUSH: Duration = Duration::from_secs(2);

/// Creates the function that takes the status page's snapshot.
#[must_use]
pub fn taker(core: &Core, config: &Config, report: watch::Receiver<Report>, clusters: Option<ClustersStatus>) -> Take {
    let (started, lines_before) = (clock::now(), core.opened.lines);
    let places: Vec<(String, String)> = config.tokens.iter().map(|token| (token.name.clone(), place(token))).collect();
    let (ca, pool, log, recent) =
        (Arc::clone(&core.ca), Arc::clone(&core.pool), core.log.clone(), Arc::clone(&core.recent));
    Arc::new(move || {
        let now = clock::now();
        Snapshot {
            now,
            started,
            report: report.borrow().clone(),
            chain: chain(&ca.issuer(), &ca.publication()),
            tokens: tokens(&pool, &places),
            log: log_entry(&log, &pool.health().borrow(), lines_before),
            clusters: clusters.as_ref().map(ClustersStatus::entries).unwrap_or_default(),
            leader: clusters.as_ref().and_then(ClustersStatus::leader),
            hour: recent.hour(now),
        }
    })
}

/// Creates the function that sets metrics counted elsewhere: by the token pool, the log and the listener.
pub fn gatherer(
    core: &Core,
    report: watch::Receiver<Report>,
    connections: Connections,
) -> impl Fn(&Metrics) + Send + use<> {
    let (ca, pool, log) = (Arc::clone(&core.ca), Arc::clone(&core.pool), core.log.clone());
    let intents_before = core.opened.intents;
    move |metrics| {
        gather_readiness(&report.borrow());
        gather_tokens(&pool);
        gather_log(&log);
        gather_excess(&pool, &log, intents_before);
        gather_expiry(&ca);
        metrics::level("istio_hsm_ca_connections", None, count(connections.len()));
        metrics.upkeep();
    }
}

fn gather_readiness(report: &Report) {
    metrics::level("istio_hsm_ca_ready", None, flag(report.ready()));
    for part in &report.parts {
        metrics::level("istio_hsm_ca_part_ready", Some(("part", part.name.clone())), flag(part.trouble.is_none()));
    }
}

fn gather_tokens(pool: &Pool) {
    for token in pool.snapshot() {
        let name = Some(&*token.token);
        metrics::absolute("istio_hsm_ca_token_signatures_total", name, token.signed);
        metrics::absolute("istio_hsm_ca_token_refusals_total", name, token.refused);
        metrics::absolute("istio_hsm_ca_token_limited_total", name, token.limited);
        metrics::absolute("istio_hsm_ca_token_faults_total", name, token.faults);
        metrics::absolute("istio_hsm_ca_token_expired_total", name, token.expired);
        metrics::absolute("istio_hsm_ca_token_retries_total", name, token.retried);
        metrics::absolute("istio_hsm_ca_token_hosts_total", name, token.hosts);
        metrics::absolute("istio_hsm_ca_token_hung_total", name, token.hung);
        metrics::absolute("istio_hsm_ca_token_outages_total", name, token.outages);
        metrics::absolute("istio_hsm_ca_token_canary_failures_total", name, token.canaries_failed);
        let label = Some(("token", token.token.to_string()));
        metrics::level("istio_hsm_ca_token_in_flight", label, count(token.in_flight));
    }
    for token in &pool.health().borrow().tokens {
        let label = Some(("token", token.token.to_string()));
        metrics::level("istio_hsm_ca_token_up", label, flag(token.ready));
    }
    metrics::pkcs11_calls(pool.calls());
    let (bulk, first) = pool.queued();
    metrics::level("istio_hsm_ca_queue_length", Some(("class", "bulk".to_owned())), count(bulk));
    metrics::level("istio_hsm_ca_queue_length", Some(("class", "first".to_owned())), count(first));
}

fn gather_log(log: &Log) {
    let stats = log.stats();
    metrics::absolute("istio_hsm_ca_log_lines_total", None, stats.lines);
    metrics::absolute("istio_hsm_ca_log_bytes_total", None, stats.bytes);
    metrics::absolute("istio_hsm_ca_log_flushes_total", None, stats.flushes);
    metrics::absolute("istio_hsm_ca_log_flush_failures_total", None, stats.flush_failures);
    metrics::absolute("istio_hsm_ca_log_outcomes_lost_total", None, stats.outcomes_lost);
    metrics::absolute("istio_hsm_ca_log_checkpoints_total", None, stats.checkpoints);
    metrics::absolute("istio_hsm_ca_messages_dropped_total", None, process::logging::lines::dropped());
    metrics::level("istio_hsm_ca_log_writable", None, flag(log.health().borrow().writable.is_ok()));
    metrics::level("istio_hsm_ca_log_queue_length", None, count(stats.queued));
    metrics::level("istio_hsm_ca_log_segments", None, large(stats.segments));
    metrics::level("istio_hsm_ca_log_disk_bytes", None, large(stats.disk_bytes));
    if let Some(time) = stats.checkpoint_time {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        metrics::level("istio_hsm_ca_log_checkpoint_timestamp_seconds", None, seconds);
    }
    let unsigned = stats.lines.saturating_sub(stats.checkpointed);
    metrics::level("istio_hsm_ca_log_unsigned_lines", None, large(unsigned));
}

/// Compares the number of signatures reported by the token hosts with the log. A request that was withdrawn from one
/// host and retried may have been signed by both, and one with a wrong signature is signed again.
fn gather_excess(pool: &Pool, log: &Log, intents_before: u64) {
    // Read the hosts' counters first: the intent of every counted signature is in the log by then.
    let (reported, again) = pool.snapshot().iter().fold((0_u64, 0_u64), |(reported, again), token| {
        (reported.saturating_add(token.reported), again.saturating_add(token.retried).saturating_add(token.wrong))
    });
    let intents = log.stats().intents.saturating_sub(intents_before);
    metrics::level("istio_hsm_ca_excess_signatures", None, large(excess(reported, intents, again)));
}

/// Number of signatures without an intent.
fn excess(reported: u64, intents: u64, again: u64) -> u64 {
    reported.saturating_sub(intents.saturating_add(again))
}

fn gather_expiry(ca: &CertificateAuthority) {
    let (issuer, now) = (ca.issuer(), clock::now());
    let ends = |at: SystemTime| {
        let timestamp = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let left = match at.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        (timestamp, left)
    };
    let root = issuer.roots().first().and_then(|root| entry("root", root)).map(|root| root.not_after);
    metrics::expiry(ends(root.unwrap_or_else(|| issuer.not_after())), ends(issuer.not_after()));
}

fn chain(issuer: &Issuer, publication: &Publication) -> Vec<ChainEntry> {
    let mut entries: Vec<ChainEntry> = Vec::new();
    for text in issuer.path_pem() {
        let role = if entries.is_empty() { "CA" } else { "intermediate" };
        let block = pem::blocks(text.as_bytes()).ok().and_then(|blocks| blocks.into_iter().next());
        entries.extend(block.and_then(|block| entry(role, &block.der)));
    }
    let root = if entries.is_empty() { "CA and root" } else { "root" };
    entries.extend(issuer.roots().iter().filter_map(|der| entry(root, der)));
    for entry in &mut entries {
        let authority = publication.authorities.iter().find(|authority| authority.subject == entry.subject);
        entry.crl = authority.and_then(|authority| authority.crl.as_ref()).map(ToString::to_string);
    }
    entries
}

fn entry(role: &'static str, der: &[u8]) -> Option<ChainEntry> {
    let certificate = CertificateFields::parse(der).ok()?;
    let key = match PublicKey::from_spki_der(&certificate.spki).map(|key| key.algorithm()) {
        Ok(KeyAlgorithm::Ed25519) => "Ed25519".to_owned(),
        Ok(KeyAlgorithm::P256) => "P-256".to_owned(),
        Ok(KeyAlgorithm::P384) => "P-384".to_owned(),
        Ok(KeyAlgorithm::Rsa { bits }) => format!("RSA {bits}"),
        Err(_) => "another kind of key".to_owned(),
    };
    Some(ChainEntry {
        role,
        subject: certificate.subject_text(),
        key,
        not_before: certificate.validity.not_before.to_system_time(),
        not_after: certificate.validity.not_after.to_system_time(),
        crl: None,
    })
}

/// Location of a token for the operator, without the path of the PIN.
fn place(token: &config::Token) -> String {
    match (&token.uri, &token.socket) {
        (Some(uri), _) => {
            let module = uri.module_path().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
            let label = uri.label().or(uri.serial()).unwrap_or("the only token");
            format!("{label} in {}", module.unwrap_or_default())
        }
        (None, Some(socket)) => format!("host at {}", socket.display()),
        (None, None) => String::new(),
    }
}

fn tokens(pool: &Pool, places: &[(String, String)]) -> Vec<TokenEntry> {
    let health = pool.health().borrow().clone();
    let counters = pool.snapshot();
    let tokens = health.tokens.into_iter();
    tokens
        .map(|token| {
            let serves_log = token.log_only && token.phase.is_ready();
            let counted = counters.iter().find(|counted| counted.token == token.token);
            let reason = match (token.reason.is_empty(), token.keys) {
                (false, _) => token.reason,
                (true, 0) if token.phase.is_ready() && !token.log_only => "it does not hold the CA's key".to_owned(),
                (true, _) => token.phase.in_words().to_owned(),
            };
            let place = places.iter().find(|(name, _)| **name == *token.token).map(|(_, place)| place.clone());
            TokenEntry {
                name: token.token.to_string(),
                place: place.unwrap_or_default(),
                phase: if serves_log { "signs checkpoints" } else { token.phase.in_words() },
                trouble: (!token.ready && !serves_log).then_some(reason),
                signed: counted.map_or(0, |counted| counted.signed),
                outstanding: counted.map_or(0, |counted| u64::try_from(counted.in_flight).unwrap_or(u64::MAX)),
                faults: counted.map_or(0, |counted| counted.faults),
                restarts: counted.map_or(0, |counted| counted.hosts.saturating_sub(1)),
            }
        })
        .collect()
}

fn log_entry(log: &Log, tokens: &PoolHealth, lines_before: u64) -> LogEntry {
    let (stats, health) = (log.stats(), log.health().borrow().clone());
    let slow = stats.flushing_for.filter(|since| *since > SLOW_FLUSH);
    LogEntry {
        trouble: health
            .writable
            .err()
            .or_else(|| slow.map(|since| format!("the disk has not answered for {} seconds", since.as_secs()))),
        lines: stats.lines,
        bytes: stats.disk_bytes,
        segments: stats.segments,
        flushes: stats.flushes,
        written: stats.lines.saturating_sub(lines_before),
        checkpointed: stats.checkpointed,
        checkpoint_time: stats.checkpoint_time,
        checkpoint_trouble: setup::checkpoint_trouble(&health.checkpoints, tokens),
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// A count in Prometheus' representation: exact up to 2^53.
fn large(count: u64) -> f64 {
    let half = |bits: u64| f64::from(u32::try_from(bits).unwrap_or(u32::MAX));
    half(count >> 32) * 4_294_967_296.0 + half(count & 0xffff_ffff)
}

fn count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_without_an_intent_is_an_excess() {
        // (signatures reported by the hosts, intents, retried requests, expected excess)
        let cases = [(0, 0, 0, 0), (5, 5, 0, 0), (5, 7, 0, 0), (6, 5, 0, 1), (6, 5, 1, 0), (9, 5, 1, 3)];
        for (reported, intents, retried, expected) in cases {
            assert_eq!(excess(reported, intents, retried), expected, "{reported} {intents} {retried}");
        }
        assert_eq!(large(1 << 40), 1_099_511_627_776.0);
    }
}
