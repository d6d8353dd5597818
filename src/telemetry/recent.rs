//! Activity of the last hour, in bounded memory, for the status page.
//!
//! Counts and latencies in buckets of ten seconds, the last fifty certificates, the last fifty kinds of refusals. Nothing
//! here decides anything; `grpc` and `issue` write it, and the status page reads it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

/// Length of a bucket in seconds.
pub const BUCKET_SECONDS: u64 = 10;
/// Number of buckets in one hour.
pub const BUCKETS: usize = 360;
/// Maximum number of stored certificates and of stored rejections.
const KEPT: usize = 50;
/// Number of latency bins: bin `n` counts latencies below `2^n` times 62.5 microseconds, the last one all others (over
/// 2 s).
const BINS: usize = 16;
/// Upper bound of the first bin in nanoseconds.
const FIRST_BIN_NANOS: u128 = 62_500;

/// A certificate that was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Time of issuance.
    pub time: SystemTime,
    /// Identity of the caller.
    pub caller: String,
    /// Authentication method.
    pub method: &'static str,
    /// The granted names.
    pub names: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// notAfter.
    pub not_after: SystemTime,
    /// The token that signed.
    pub token: String,
    /// From the request's arrival to its response.
    pub latency: Duration,
}

/// A request that was rejected or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Time of the rejection.
    pub time: SystemTime,
    /// The request ID, as in the logs.
    pub request_id: String,
    /// The reason's label, one of a bounded set.
    pub reason: &'static str,
    /// Identity of the caller, as far as known.
    pub caller: String,
    /// The error, one sentence.
    pub detail: String,
}

/// Refusals for one reason to one caller. Callers are proven identities, so that a stranger's refusals of one reason
/// are one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalGroup {
    /// How many, since the group is kept.
    pub count: u64,
    /// The last one.
    pub last: Refusal,
}

/// Ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Certificates issued.
    pub issued: u32,
    /// Requests rejected or failed.
    pub refused: u32,
    bins: [u32; BINS],
}

impl Bucket {
    /// The latency within which `percent` of the certificates were issued; `None` without certificates.
    #[must_use]
    pub fn percentile(&self, percent: u32) -> Option<Duration> {
        let wanted = (u64::from(self.issued) * u64::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        let mut bound = FIRST_BIN_NANOS;
        for bin in self.bins {
            seen += u64::from(bin);
            if seen >= wanted {
                return Some(Duration::from_nanos(u64::try_from(bound).unwrap_or(u64::MAX)));
            }
            bound *= 2;
        }
        None
    }
}

#[derive(Debug)]
struct State {
    buckets: VecDeque<Bucket>,
    /// Number of the newest bucket, counted since the epoch.
    newest: u64,
    certificates: VecDeque<Certificate>,
    /// The group with the last refusal is at the end.
    refusals: VecDeque<RefusalGroup>,
    /// Refusals by reason for each bucket that has any, by its number, oldest first.
    reasons: VecDeque<(u64, BTreeMap<&'static str, u32>)>,
}

/// Recorder of the last hour's activity.
#[derive(Debug)]
pub struct Recent {
    state: Mutex<State>,
}

/// A copy of the last hour's activity.
#[derive(Clone, Debug)]
pub struct Hour {
    /// Oldest first; the last one is incomplete.
    pub buckets: Vec<Bucket>,
    /// Newest first.
    pub certificates: Vec<Certificate>,
    /// The group with the last refusal first.
    pub refusals: Vec<RefusalGroup>,
    /// Refusals of the whole hour by reason.
    pub reasons: BTreeMap<&'static str, u64>,
}

impl Hour {
    /// Sum of all buckets.
    #[must_use]
    pub fn total(&self) -> Bucket {
        self.buckets.iter().fold(Bucket::default(), |mut total, bucket| {
            total.issued = total.issued.saturating_add(bucket.issued);
            total.refused = total.refused.saturating_add(bucket.refused);
            for (sum, count) in total.bins.iter_mut().zip(bucket.bins) {
                *sum = sum.saturating_add(count);
            }
            total
        })
    }
}

fn bucket_number(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / BUCKET_SECONDS)
}

fn bin(latency: Duration) -> usize {
    let mut bound = FIRST_BIN_NANOS;
    for index in 0..BINS - 1 {
        if latency.as_nanos() < bound {
            return index;
        }
        bound *= 2;
    }
    BINS - 1
}

impl Recent {
    /// Creates an empty recorder.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            buckets: VecDeque::from(vec![Bucket::default(); BUCKETS]),
            newest: 0,
            certificates: VecDeque::with_capacity(KEPT),
            refusals: VecDeque::with_capacity(KEPT),
            reasons: VecDeque::new(),
        };
        Self { state: Mutex::new(state) }
    }

    /// Records a certificate.
    pub fn issued(&self, certificate: Certificate) {
        let mut state = self.state.lock();
        if let Some(bucket) = state.bucket(certificate.time) {
            bucket.issued = bucket.issued.saturating_add(1);
            if let Some(count) = bucket.bins.get_mut(bin(certificate.latency)) {
                *count = count.saturating_add(1);
            }
        }
        push(&mut state.certificates, certificate);
    }

    /// Records a rejection.
    pub fn refused(&self, refusal: Refusal) {
        let mut state = self.state.lock();
        if let Some(bucket) = state.bucket(refusal.time) {
            bucket.refused = bucket.refused.saturating_add(1);
            state.reason(bucket_number(refusal.time), refusal.reason);
        }
        state.group(refusal);
    }

    /// The last hour's activity as of `now`.
    #[must_use]
    pub fn hour(&self, now: SystemTime) -> Hour {
        let mut state = self.state.lock();
        let _ = state.bucket(now);
        Hour {
            buckets: state.buckets.iter().copied().collect(),
            certificates: state.certificates.iter().rev().cloned().collect(),
            refusals: state.refusals.iter().rev().cloned().collect(),
            reasons: state.reasons(),
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// The bucket of a time, after advancing the window to it; `None` if it is older than the window.
    fn bucket(&mut self, time: SystemTime) -> Option<&mut Bucket> {
        let number = bucket_number(time);
        let ahead = number.saturating_sub(self.newest).min(u64::try_from(BUCKETS).unwrap_or(u64::MAX));
        for _ in 0..ahead {
            self.buckets.pop_front();
            self.buckets.push_back(Bucket::default());
        }
        self.newest = self.newest.max(number);
        let behind = usize::try_from(self.newest - number).ok()?;
        let index = (BUCKETS - 1).checked_sub(behind)?;
        self.buckets.get_mut(index)
    }

    fn group(&mut self, refusal: Refusal) {
        let same = |group: &RefusalGroup| group.last.reason == refusal.reason && group.last.caller == refusal.caller;
        let group = self.refusals.iter().position(same).and_then(|index| self.refusals.remove(index));
        let count = group.map_or(0, |group| group.count).saturating_add(1);
        push(&mut self.refusals, RefusalGroup { count, last: refusal });
    }

    /// Counts a refusal in the bucket of this number; the oldest buckets go, so that an hour's worth stays.
    fn reason(&mut self, number: u64, reason: &'static str) {
        match self.reasons.iter_mut().rev().find(|(other, _)| *other == number) {
            Some((_, counts)) => *counts.entry(reason).or_default() += 1,
            None => self.reasons.push_back((number, BTreeMap::from([(reason, 1)]))),
        }
        while self.reasons.len() > BUCKETS {
            self.reasons.pop_front();
        }
    }

    fn reasons(&self) -> BTreeMap<&'static str, u64> {
        let oldest = self.newest.saturating_sub(u64::try_from(BUCKETS - 1).unwrap_or(u64::MAX));
        let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (_, counts) in self.reasons.iter().filter(|(number, _)| *number >= oldest) {
            for (reason, count) in counts {
                *sums.entry(reason).or_default() += u64::from(*count);
            }
        }
        sums
    }
}

fn push<T>(kept: &mut VecDeque<T>, item: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(second: u64, latency: Duration) -> Certificate {
        Certificate {
            time: UNIX_EPOCH + Duration::from_secs(second),
            caller: String::new(),
            method: "jwt",
            names: String::new(),
            serial: second.to_string(),
            not_after: UNIX_EPOCH,
            token: String::new(),
            latency,
        }
    }

    #[test]
    fn the_window_moves_and_forgets() {
        let recent = Recent::new();
        let start = 1_000_000;
        recent.issued(certificate(start, Duration::from_millis(1)));
        recent.issued(certificate(start + 10, Duration::from_millis(1)));
        let hour = recent.hour(UNIX_EPOCH + Duration::from_secs(start + 20));
        let counts: Vec<u32> = hour.buckets.iter().map(|bucket| bucket.issued).collect();
        assert_eq!(counts.len(), BUCKETS);
        assert_eq!(counts[BUCKETS - 3..], [1, 1, 0]);
        let later = recent.hour(UNIX_EPOCH + Duration::from_secs(start + 7200));
        assert_eq!(later.buckets.iter().map(|bucket| bucket.issued).sum::<u32>(), 0);
        assert_eq!(later.certificates.len(), 2);
    }

    #[test]
    fn last_fifty_are_listed_newest_first() {
        let recent = Recent::new();
        for second in 0..120 {
            recent.issued(certificate(second, Duration::ZERO));
        }
        let hour = recent.hour(UNIX_EPOCH);
        assert_eq!(hour.certificates.len(), 50);
        assert_eq!(hour.certificates[0].serial, "119");
    }

    #[test]
    fn every_refusal_of_the_hour_is_counted_by_its_reason() {
        let recent = Recent::new();
        let refuse = |second: u64, reason| {
            recent.refused(Refusal {
                time: UNIX_EPOCH + Duration::from_secs(second),
                request_id: String::new(),
                reason,
                caller: String::new(),
                detail: String::new(),
            });
        };
        let start = 1_000_000;
        (0..120).for_each(|n| refuse(start + n, "rate_limit"));
        refuse(start + 200, "no_credentials");
        let at = |second: u64| recent.hour(UNIX_EPOCH + Duration::from_secs(second));
        assert_eq!(at(start + 300).reasons, BTreeMap::from([("no_credentials", 1), ("rate_limit", 120)]));
        let groups: Vec<_> = at(start + 300).refusals.iter().map(|group| (group.last.reason, group.count)).collect();
        assert_eq!(groups, [("no_credentials", 1), ("rate_limit", 120)]);
        assert_eq!(at(start + 300).total().refused, 121);
        assert_eq!(at(start + 3600 + 150).reasons, BTreeMap::from([("no_credentials", 1)]));
        assert_eq!(at(start + 7200).reasons, BTreeMap::new());
    }

    #[test]
    fn percentiles_come_from_the_bins() {
        let recent = Recent::new();
        for _ in 0..99 {
            recent.issued(certificate(5, Duration::from_micros(900)));
        }
        recent.issued(certificate(5, Duration::from_secs(60)));
        let bucket = recent.hour(UNIX_EPOCH + Duration::from_secs(5)).buckets[BUCKETS - 1];
        assert_eq!(bucket.percentile(50), Some(Duration::from_millis(1)));
        assert_eq!(bucket.percentile(99), Some(Duration::from_millis(1)));
        assert!(bucket.percentile(100).unwrap() > Duration::from_secs(2));
        assert_eq!(Bucket::default().percentile(50), None);
    }
}
