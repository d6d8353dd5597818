//! Renders the status page from a snapshot. Pure.

use std::time::{Duration, SystemTime};

use askama::Template;

use super::{
    Snapshot, clusters, plot, recent_requests,
    text::{date, latency, number, per_second, ratio, since, span, thousands, time},
};
use crate::telemetry::recent::{BUCKET_SECONDS, Bucket};

/// Certificates with less remaining lifetime are shown in red.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates with less remaining lifetime are shown in yellow.
const WARN: Duration = Duration::from_secs(90 * 24 * 3600);

/// The page's style sheet. Its policy allows exactly this text.
pub(super) const STYLE: &str = include_str!("page.css");
/// The page's script, likewise.
pub(super) const SCRIPT: &str = include_str!("page.js");

#[derive(Template)]
#[template(path = "page.html", escape = "html")]
struct Page {
    style: &'static str,
    script: &'static str,
    ready: bool,
    version: &'static str,
    uptime: String,
    now: String,
    troubles: Vec<Trouble>,
    icon: String,
    rate_now: String,
    rate_hour: String,
    rate_peak: String,
    issued_hour: String,
    refused_hour: String,
    refused_now: String,
    rate_area: String,
    rate_line: String,
    refused_line: String,
    rate_top: String,
    p50_now: String,
    p99_now: String,
    p50_hour: String,
    p99_hour: String,
    p50_line: String,
    p99_line: String,
    latency_top: String,
    lives: Vec<Life>,
    tokens: Vec<Token>,
    log: Log,
    clusters: Vec<clusters::Row>,
    leader: String,
    reasons: Vec<recent_requests::Reason>,
    certificates: Vec<recent_requests::Certificate>,
    refusals: Vec<recent_requests::Refusal>,
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
    crl: Option<String>,
    left: String,
    class: &'static str,
    permille: u64,
}

struct Token {
    name: String,
    place: String,
    state: String,
    class: &'static str,
    signed: String,
    outstanding: String,
    faults: String,
    restarts: String,
}

struct Log {
    state: String,
    class: &'static str,
    lines: String,
    size: String,
    flushes: String,
    checkpoint: Checkpoint,
}

struct Checkpoint {
    covers: String,
    at: String,
    trouble: Option<String>,
}

/// Renders the page.
pub(super) fn render(snapshot: &Snapshot) -> askama::Result<String> {
    let hour = &snapshot.hour;
    // The newest bucket is incomplete; the previous one is shown as "now".
    let recent = hour.buckets.iter().rev().nth(1).copied().unwrap_or_default();
    let total = hour.total();
    // Rates are averaged over the daemon's lifetime if it is shorter than an hour, and over at least one bucket.
    let lived =
        since(snapshot.started, snapshot.now).clamp(Duration::from_secs(BUCKET_SECONDS), Duration::from_secs(3600));
    let rates: Vec<f64> = hour.buckets.iter().map(|bucket| per_second(bucket.issued)).collect();
    let refused: Vec<f64> = hour.buckets.iter().map(|bucket| per_second(bucket.refused)).collect();
    let rate_top = plot::round_up(rates.iter().chain(&refused).copied().fold(0.0, f64::max));
    let p50 = latencies(&hour.buckets, 50);
    let p99 = latencies(&hour.buckets, 99);
    let latency_top = plot::round_up(p99.iter().flatten().copied().fold(0.0, f64::max));
    let page = Page {
        style: STYLE,
        script: SCRIPT,
        ready: snapshot.report.ready(),
        version: env!("CARGO_PKG_VERSION"),
        uptime: span(since(snapshot.started, snapshot.now)),
        now: time(snapshot.now),
        troubles: troubles(snapshot),
        icon: icon(snapshot.report.ready()),
        rate_now: number(per_second(recent.issued)),
        rate_hour: number(f64::from(total.issued) / lived.as_secs_f64()),
        rate_peak: number(rates.iter().copied().fold(0.0, f64::max)),
        issued_hour: thousands(u64::from(total.issued)),
        refused_hour: thousands(u64::from(total.refused)),
        refused_now: number(per_second(recent.refused)),
        rate_area: plot::area(&rates, rate_top),
        rate_line: plot::line(&rates.iter().copied().map(Some).collect::<Vec<_>>(), rate_top),
        refused_line: plot::line(
            &refused.iter().map(|rate| (*rate > 0.0).then_some(*rate)).collect::<Vec<_>>(),
            rate_top,
        ),
        rate_top: number(rate_top),
        p50_now: latency(recent.percentile(50)),
        p99_now: latency(recent.percentile(99)),
        p50_hour: latency(total.percentile(50)),
        p99_hour: latency(total.percentile(99)),
        p50_line: plot::line(&p50, latency_top),
        p99_line: plot::line(&p99, latency_top),
        latency_top: number(latency_top),
        lives: snapshot.chain.iter().map(|entry| life(entry, snapshot.now)).collect(),
        tokens: snapshot.tokens.iter().map(token).collect(),
        log: log(snapshot),
        clusters: clusters::rows(&snapshot.clusters, snapshot.now),
        leader: clusters::leader(snapshot.leader.as_ref()),
        reasons: recent_requests::reasons(hour),
        certificates: hour.certificates.iter().map(recent_requests::certificate).collect(),
        refusals: hour.refusals.iter().map(recent_requests::refusal).collect(),
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
        crl: entry.crl.clone(),
        left: if left.is_zero() { "expired".to_owned() } else { format!("{} left", span(left)) },
        class,
        permille: left.as_secs().saturating_mul(1000) / whole,
    }
}

fn token(entry: &super::TokenEntry) -> Token {
    Token {
        name: entry.name.clone(),
        place: entry.place.clone(),
        state: entry.trouble.clone().unwrap_or_else(|| entry.phase.to_owned()),
        class: if entry.trouble.is_none() { "good" } else { "bad" },
        signed: thousands(entry.signed),
        outstanding: thousands(entry.outstanding),
        faults: thousands(entry.faults),
        restarts: thousands(entry.restarts),
    }
}

fn log(snapshot: &Snapshot) -> Log {
    let entry = &snapshot.log;
    let per_flush = match entry.flushes {
        0 => "none yet".to_owned(),
        flushes => format!("{}, {} lines each", thousands(flushes), number(ratio(entry.written, flushes))),
    };
    let segments = if entry.segments == 1 { "segment" } else { "segments" };
    Log {
        state: entry.trouble.clone().unwrap_or_else(|| "durable".to_owned()),
        class: if entry.trouble.is_none() { "good" } else { "bad" },
        lines: thousands(entry.lines),
        size: format!("{} in {} {segments}", indicatif::HumanBytes(entry.bytes), thousands(entry.segments)),
        flushes: per_flush,
        checkpoint: checkpoint(entry, snapshot.now),
    }
}

fn checkpoint(entry: &super::LogEntry, now: SystemTime) -> Checkpoint {
    let beyond = match entry.lines.saturating_sub(entry.checkpointed) {
        0 => "all lines".to_owned(),
        1 => format!("{} lines, all but the last", thousands(entry.checkpointed)),
        rest => format!("{} lines, all but the last {}", thousands(entry.checkpointed), thousands(rest)),
    };
    Checkpoint {
        covers: if entry.checkpointed == 0 { "none yet".to_owned() } else { beyond },
        at: entry.checkpoint_time.map_or_else(String::new, |at| format!("{} ago, {}", span(since(at, now)), time(at))),
        trouble: entry.checkpoint_trouble.clone(),
    }
}

/// The page's icon: a dot with the colour of the state.
fn icon(ready: bool) -> String {
    let colour = if ready { "1b8a5a" } else { "c62f3b" };
    format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' \
         r='6' fill='%23{colour}'/%3E%3C/svg%3E"
    )
}

fn latencies(buckets: &[Bucket], percent: u32) -> Vec<Option<f64>> {
    buckets.iter().map(|bucket| bucket.percentile(percent).map(|value| value.as_secs_f64() * 1000.0)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{
        daemon::{
            readiness::{Part, Report},
            status::{ChainEntry, ClusterEntry, ControllerEntry, Leader, LogEntry, TokenEntry},
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
                parts: vec![Part {
                    name: "token".to_owned(),
                    trouble: Some(hostile.to_owned()),
                    note: None,
                    needed: true,
                }],
            },
            chain: vec![ChainEntry {
                role: "CA",
                subject: hostile.to_owned(),
                key: "RSA 2048".to_owned(),
                not_before: now - Duration::from_secs(86_400 * 10),
                not_after: now + Duration::from_secs(86_400 * 20),
                crl: Some("number 2A until 2026-01-31T00:00:00Z, 3 entries".to_owned()),
            }],
            tokens: vec![TokenEntry {
                name: hostile.to_owned(),
                place: hostile.to_owned(),
                phase: "signs",
                trouble: None,
                signed: 1,
                outstanding: 0,
                faults: 0,
                restarts: 0,
            }],
            log: LogEntry {
                trouble: None,
                lines: 1_234_567,
                bytes: 3000,
                segments: 1,
                flushes: 2,
                written: 5,
                checkpointed: 1_234_560,
                checkpoint_time: Some(now - Duration::from_secs(7)),
                checkpoint_trouble: Some(hostile.to_owned()),
            },
            clusters: vec![ClusterEntry {
                name: hostile.to_owned(),
                trouble: Some(hostile.to_owned()),
                controllers: vec![ControllerEntry {
                    name: "root_configmap",
                    running: true,
                    trouble: Some(hostile.to_owned()),
                    last_success: None,
                    last_error: Some((now, hostile.to_owned())),
                }],
            }],
            leader: Some(Leader::Elsewhere { holder: Some(hostile.to_owned()) }),
            hour: recent.hour(now),
        }
    }

    #[test]
    fn what_came_from_outside_is_escaped() {
        let html = render(&snapshot("<script>alert(1)</script>\"'&")).unwrap();
        assert!(!html.contains("<script>alert"));
        assert_eq!(html.matches("&#60;script&#62;alert(1)").count(), 15);
    }

    /// The policy names them by their hashes, and allows no other.
    #[test]
    fn style_and_script_stand_in_the_page_as_they_are_and_alone() {
        let html = render(&snapshot("x")).unwrap();
        assert!(html.contains(&format!("<style>{STYLE}</style>")));
        assert!(html.contains(&format!("<script>{SCRIPT}</script>")));
        assert_eq!((html.matches("<style").count(), html.matches("<script").count()), (1, 1));
        assert!(!html.contains(" style=") && !html.contains(" onclick=") && !html.contains(" onload="));
    }

    #[test]
    fn figures_are_shown() {
        let html = render(&snapshot("x")).unwrap();
        let expected = [
            "20 days left",
            "CRL number 2A until 2026-01-31T00:00:00Z, 3 entries",
            "not ready",
            "foreign_name",
            "0.1 <small>a second",
            "2.93 KiB in 1 segment",
            "2, 2.5 lines each",
            "1\u{202f}234\u{202f}560 lines, all but the last 7",
            "7 seconds ago, 2027-01-15T07:59:53Z",
            "&#60; 1 ms",
            "x holds the Lease",
            "root_configmap",
            "none yet",
        ];
        for expected in expected {
            assert!(html.contains(expected), "{expected}\n{html}");
        }
        // An XML namespace is not a link; no other URL may be present.
        let html = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!html.contains("http:") && !html.contains("https:"), "no external asset");
    }
}
