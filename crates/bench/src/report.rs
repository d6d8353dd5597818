//! Statistics of samples, and their output.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

/// Latencies of successful requests, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Maximum.
    pub max_us: u64,
}

/// Samples of a run against a daemon.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Latency of each success.
    pub latencies: Vec<Duration>,
    /// Number of errors by gRPC code or reason of the failed connection.
    pub errors: BTreeMap<String, u64>,
}

impl Samples {
    /// Adds another run's samples.
    pub fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
    }

    /// Records a failure.
    pub fn failed(&mut self, kind: String) {
        *self.errors.entry(kind).or_default() += 1;
    }

    /// Statistics of the latencies; `None` without successes.
    #[must_use]
    pub fn latency(&self) -> Option<Latency> {
        let mut micros: Vec<u64> =
            self.latencies.iter().map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)).collect();
        micros.sort_unstable();
        Some(Latency { p50_us: rank(&micros, 50)?, p99_us: rank(&micros, 99)?, max_us: *micros.last()? })
    }
}

/// The nearest-rank percentile of a sorted slice.
fn rank(sorted: &[u64], percent: usize) -> Option<u64> {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied()
}

/// The median; for an even number of values the lower of the middle two.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// A count as a float: exact up to 2^32, which no run reaches.
#[must_use]
pub fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let table: [(&[u64], usize, Option<u64>); 6] = [
            (&[], 50, None),
            (&[7], 50, Some(7)),
            (&[7], 99, Some(7)),
            (&[1, 2, 3, 4], 50, Some(2)),
            (&[1, 2, 3, 4], 99, Some(4)),
            (&[1, 2, 3], 50, Some(2)),
        ];
        for (sorted, percent, expected) in table {
            assert_eq!(rank(sorted, percent), expected, "{sorted:?} {percent}");
        }
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(rank(&hundred, 99), Some(99));
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.0));
    }

    #[test]
    fn merged_samples_keep_every_error() {
        let mut samples = Samples::default();
        samples.failed("Unavailable".into());
        let mut other = Samples { latencies: vec![Duration::from_micros(5)], ..Samples::default() };
        other.failed("Unavailable".into());
        samples.merge(other);
        assert_eq!(samples.errors.get("Unavailable"), Some(&2));
        assert_eq!(samples.latency(), Some(Latency { p50_us: 5, p99_us: 5, max_us: 5 }));
    }
}
