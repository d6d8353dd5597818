//! The status page's text, out of a snapshot. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use askama::Template;

use super::{Snapshot, plot};
use crate::telemetry::recent::{BUCKET_SECONDS, Bucket};

/// A certificate with less than this left is drawn in the colour of alarm.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// A certificate with less than this left is drawn in the colour of warning.
const WARN: Duration = Duration::from_secs(90 * 24 * 3600);

#[derive(Template)]
#[template(path = "page.html", escape = "html")]
struct Page {
    ready: bool,
    version: &'static str,
    uptime: String,
    now: String,
    troubles: Vec<Trouble>,
    rate_now: String,
    issued_hour: u64,
    refused_hour: u64,
    rate_area: String,
    rate_line: String,
    refused_line: String,
    rate_top: String,
    p50_now: String,
    p99_now: String,
    p50_line: String,
    p99_line: String,
    latency_top: String,
    lives: Vec<Life>,
    tokens: Vec<Token>,
    log: Log,
    reasons: Vec<Reason>,
    certificates: Vec<Certificate>,
    refusals: Vec<Refusal>,
}

struct Trouble {
    name: String,
    reason: String,
}

struct Life {
    role: &'static str,
    subject: String,
    key: String,
    not_before: String,
    not_after: String,
    left: String,
    class: &'static str,
    permille: u64,
}

struct Token {
    name: String,
    what: String,
    state: String,
    class: &'static str,
    signed: u64,
    outstanding: u64,
    faults: u64,
    restarts: u64,
}

struct Log {
    state: String,
    class: &'static str,
    lines: u64,
    size: String,
    flushes: String,
    checkpoint: String,
}

struct Reason {
    name: &'static str,
    count: usize,
}

struct Certificate {
    time: String,
    names: String,
    caller: String,
    method: &'static str,
    serial: String,
    not_after: String,
    token: String,
    ms: String,
}

struct Refusal {
    time: String,
    request_id: String,
    reason: &'static str,
    caller: String,
    detail: String,
}

/// Renders the page.
pub(super) fn render(snapshot: &Snapshot) -> askama::Result<String> {
    let hour = &snapshot.hour;
    // The newest bucket is under way: "now" is the one before it.
    let recent = hour.buckets.iter().rev().nth(1).copied().unwrap_or_default();
    let rates: Vec<f64> = hour.buckets.iter().map(|bucket| per_second(bucket.issued)).collect();
    let refused: Vec<f64> = hour.buckets.iter().map(|bucket| per_second(bucket.refused)).collect();
    let rate_top = plot::round_up(rates.iter().chain(&refused).copied().fold(0.0, f64::max));
    let p50 = latencies(&hour.buckets, 50);
    let p99 = latencies(&hour.buckets, 99);
    let latency_top = plot::round_up(p99.iter().flatten().copied().fold(0.0, f64::max));
    let page = Page {
        ready: snapshot.report.ready(),
        version: env!("CARGO_PKG_VERSION"),
        uptime: span(since(snapshot.started, snapshot.now)),
        now: time(snapshot.now),
        troubles: troubles(snapshot),
        rate_now: number(per_second(recent.issued)),
        issued_hour: sum(&hour.buckets, |bucket| bucket.issued),
        refused_hour: sum(&hour.buckets, |bucket| bucket.refused),
        rate_area: plot::area(&rates, rate_top),
        rate_line: plot::line(&rates.iter().copied().map(Some).collect::<Vec<_>>(), rate_top),
        refused_line: plot::line(
            &refused.iter().map(|rate| (*rate > 0.0).then_some(*rate)).collect::<Vec<_>>(),
            rate_top,
        ),
        rate_top: number(rate_top),
        p50_now: latency(recent.percentile(50)),
        p99_now: latency(recent.percentile(99)),
        p50_line: plot::line(&p50, latency_top),
        p99_line: plot::line(&p99, latency_top),
        latency_top: number(latency_top),
        lives: snapshot.chain.iter().map(|entry| life(entry, snapshot.now)).collect(),
        tokens: snapshot.tokens.iter().map(token).collect(),
        log: log(snapshot),
        reasons: reasons(snapshot),
        certificates: hour.certificates.iter().map(certificate).collect(),
        refusals: hour.refusals.iter().map(refusal).collect(),
    };
    page.render()
}

fn troubles(snapshot: &Snapshot) -> Vec<Trouble> {
    let parts = snapshot.report.parts.iter();
    parts.filter_map(|part| part.trouble.clone().map(|reason| Trouble { name: part.name.clone(), reason })).collect()
}

fn life(entry: &super::ChainEntry, now: SystemTime) -> Life {
    let whole = since(entry.not_before, entry.not_after).as_secs().max(1);
    let left = since(now, entry.not_after);
    let class = match left {
        left if left < SOON => "bad",
        left if left < WARN => "warn",
        _ => "good",
    };
    Life {
        role: entry.role,
        subject: entry.subject.clone(),
        key: entry.key.clone(),
        not_before: date(entry.not_before),
        not_after: date(entry.not_after),
        left: if left.is_zero() { "expired".to_owned() } else { format!("{} left", span(left)) },
        class,
        permille: left.as_secs().saturating_mul(1000) / whole,
    }
}

fn token(entry: &super::TokenEntry) -> Token {
    Token {
        name: entry.name.clone(),
        what: entry.what.clone(),
        state: entry.trouble.clone().unwrap_or_else(|| "signs".to_owned()),
        class: if entry.trouble.is_none() { "good" } else { "bad" },
        signed: entry.signed,
        outstanding: entry.outstanding,
        faults: entry.faults,
        restarts: entry.restarts,
    }
}

fn log(snapshot: &Snapshot) -> Log {
    let entry = &snapshot.log;
    let per_flush = match entry.flushes {
        0 => "none yet".to_owned(),
        flushes => format!("{flushes}, {} lines each", number(ratio(entry.written, flushes))),
    };
    Log {
        state: entry.trouble.clone().unwrap_or_else(|| "durable".to_owned()),
        class: if entry.trouble.is_none() { "good" } else { "bad" },
        lines: entry.lines,
        size: indicatif::HumanBytes(entry.bytes).to_string(),
        flushes: per_flush,
        checkpoint: match &entry.checkpoint {
            Ok(size) => format!("over {size} lines"),
            Err(reason) => reason.clone(),
        },
    }
}

fn reasons(snapshot: &Snapshot) -> Vec<Reason> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for refusal in &snapshot.hour.refusals {
        *counts.entry(refusal.reason).or_default() += 1;
    }
    let mut reasons: Vec<Reason> = counts.into_iter().map(|(name, count)| Reason { name, count }).collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    reasons
}

fn certificate(entry: &crate::telemetry::recent::Certificate) -> Certificate {
    Certificate {
        time: time(entry.time),
        names: entry.names.clone(),
        caller: entry.caller.clone(),
        method: entry.method,
        serial: entry.serial.clone(),
        not_after: time(entry.not_after),
        token: entry.token.clone(),
        ms: number(entry.latency.as_secs_f64() * 1000.0),
    }
}

fn refusal(entry: &crate::telemetry::recent::Refusal) -> Refusal {
    Refusal {
        time: time(entry.time),
        request_id: entry.request_id.clone(),
        reason: entry.reason,
        caller: entry.caller.clone(),
        detail: entry.detail.clone(),
    }
}

fn latencies(buckets: &[Bucket], percent: u32) -> Vec<Option<f64>> {
    buckets.iter().map(|bucket| bucket.percentile(percent).map(|value| value.as_secs_f64() * 1000.0)).collect()
}

fn sum(buckets: &[Bucket], count: impl Fn(&Bucket) -> u32) -> u64 {
    buckets.iter().map(|bucket| u64::from(count(bucket))).sum()
}

fn per_second(count: u32) -> f64 {
    f64::from(count) / f64::from(u32::try_from(BUCKET_SECONDS).unwrap_or(1))
}

fn ratio(of: u64, by: u64) -> f64 {
    f64::from(u32::try_from(of).unwrap_or(u32::MAX)) / f64::from(u32::try_from(by).unwrap_or(u32::MAX))
}

fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

fn latency(value: Option<Duration>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("< {} ms", number(value.as_secs_f64() * 1000.0)))
}

/// Three digits at most, without trailing zeros.
fn number(value: f64) -> String {
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A length of time in the unit that fits it.
fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (count, unit) = match seconds {
        0..=119 => (seconds, "second"),
        120..=7_199 => (seconds / 60, "minute"),
        7_200..=172_799 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// RFC 3339 in UTC, whole seconds.
fn time(at: SystemTime) -> String {
    let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole = Duration::from_secs(at.as_secs());
    der::DateTime::from_unix_duration(whole).map_or_else(|_| "beyond 9999".to_owned(), |at| at.to_string())
}

fn date(at: SystemTime) -> String {
    let mut text = time(at);
    if let Some(end) = text.find('T') {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{
        daemon::{
            readiness::{Part, Report},
            status::{ChainEntry, LogEntry, TokenEntry},
        },
        telemetry::recent::{self, Recent},
    };

    fn snapshot(hostile: &str) -> Snapshot {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let recent = Recent::new();
        recent.issued(recent::Certificate {
            time: now - Duration::from_secs(10),
            caller: hostile.to_owned(),
            method: "jwt",
            names: hostile.to_owned(),
            serial: "0a".to_owned(),
            not_after: now + Duration::from_secs(86_400),
            token: hostile.to_owned(),
            latency: Duration::from_micros(700),
        });
        recent.refused(recent::Refusal {
            time: now,
            request_id: "r1".to_owned(),
            reason: "foreign_name",
            caller: hostile.to_owned(),
            detail: hostile.to_owned(),
        });
        Snapshot {
            now,
            started: now - Duration::from_secs(3600),
            report: Report {
                parts: vec![Part { name: "token".to_owned(), trouble: Some(hostile.to_owned()), needed: true }],
            },
            chain: vec![ChainEntry {
                role: "CA",
                subject: hostile.to_owned(),
                key: "RSA 2048".to_owned(),
                not_before: now - Duration::from_secs(86_400 * 10),
                not_after: now + Duration::from_secs(86_400 * 20),
            }],
            tokens: vec![TokenEntry {
                name: hostile.to_owned(),
                what: hostile.to_owned(),
                trouble: None,
                signed: 1,
                outstanding: 0,
                faults: 0,
                restarts: 0,
            }],
            log: LogEntry {
                trouble: None,
                lines: 2,
                bytes: 3000,
                flushes: 1,
                written: 2,
                checkpoint: Err(hostile.to_owned()),
            },
            hour: recent.hour(now),
        }
    }

    #[test]
    fn what_came_from_outside_is_escaped() {
        let html = render(&snapshot("<script>alert(1)</script>\"'&")).unwrap();
        assert!(!html.contains("<script>alert"));
        assert_eq!(html.matches("&#60;script&#62;alert(1)").count(), 10);
    }

    #[test]
    fn figures_are_shown() {
        let html = render(&snapshot("x")).unwrap();
        for expected in ["20 days left", "not ready", "foreign_name", "0.1 <small>a second", "2.93 KiB", "&#60; 1 ms"] {
            assert!(html.contains(expected), "{expected}\n{html}");
        }
        assert!(!html.contains("http:") && !html.contains("https:"), "no external asset");
    }

    #[test]
    fn numbers_read_well() {
        let cases = [(0.0, "0"), (0.1, "0.1"), (9.876, "9.88"), (12.34, "12.3"), (100.0, "100"), (4321.9, "4322")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(span(Duration::from_secs(1)), "1 second");
        assert_eq!(span(Duration::from_secs(86_400 * 400)), "400 days");
    }
}
