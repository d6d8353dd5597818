//! Requests on the status page: the last certificates, the last rejections, and their reasons. Pure.

use super::text::{number, time};
use crate::telemetry::recent;

pub(super) struct Reason {
    pub(super) name: &'static str,
    pub(super) count: u64,
    pub(super) permille: u64,
}

pub(super) struct Certificate {
    pub(super) time: String,
    pub(super) names: String,
    /// The caller, if it differs from the subject of the certificate.
    pub(super) caller: Option<String>,
    pub(super) method: &'static str,
    pub(super) serial: String,
    pub(super) not_after: String,
    pub(super) token: String,
    pub(super) ms: String,
}

pub(super) struct Refusal {
    pub(super) count: u64,
    pub(super) time: String,
    pub(super) request_id: String,
    pub(super) reason: &'static str,
    pub(super) caller: String,
    pub(super) detail: String,
}

pub(super) fn reasons(hour: &recent::Hour) -> Vec<Reason> {
    let counts = &hour.reasons;
    let most = counts.values().copied().max().unwrap_or_default().max(1);
    let bar = |(name, count): (&&'static str, &u64)| Reason { name, count: *count, permille: count * 1000 / most };
    let mut reasons: Vec<Reason> = counts.iter().map(bar).collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    reasons
}

pub(super) fn certificate(entry: &recent::Certificate) -> Certificate {
    // A SPIFFE ID does not need the prefix to be recognised as a URI.
    let names = entry.names.replace("URI:spiffe://", "spiffe://");
    Certificate {
        time: time(entry.time),
        caller: (entry.caller != names).then(|| entry.caller.clone()),
        names,
        method: entry.method,
        serial: entry.serial.clone(),
        not_after: time(entry.not_after),
        token: entry.token.clone(),
        ms: number(entry.latency.as_secs_f64() * 1000.0),
    }
}

pub(super) fn refusal(group: &recent::RefusalGroup) -> Refusal {
    let entry = &group.last;
    Refusal {
        count: group.count,
        time: time(entry.time),
        request_id: entry.request_id.clone(),
        reason: entry.reason,
        caller: entry.caller.clone(),
        detail: entry.detail.clone(),
    }
}
