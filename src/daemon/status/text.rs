//! Formats numbers, times and durations for the status page. Pure.

use std::time::{Duration, SystemTime};

use crate::telemetry::recent::BUCKET_SECONDS;

pub(super) fn per_second(count: u32) -> f64 {
    f64::from(count) / f64::from(u32::try_from(BUCKET_SECONDS).unwrap_or(1))
}

pub(super) fn ratio(of: u64, by: u64) -> f64 {
    f64::from(u32::try_from(of).unwrap_or(u32::MAX)) / f64::from(u32::try_from(by).unwrap_or(u32::MAX))
}

pub(super) fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

pub(super) fn latency(value: Option<Duration>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("< {} ms", number(value.as_secs_f64() * 1000.0)))
}

/// A count with thousands separated by non-breaking spaces.
pub(super) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let first = digits.len() % 3;
    let apart = |(at, digit): (usize, char)| {
        let space = (at > 0 && at % 3 == first).then_some('\u{202f}');
        space.into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(apart).collect()
}

/// At most three digits, without trailing zeros.
pub(super) fn number(value: f64) -> String {
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A duration in a suitable unit.
pub(super) fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (count, unit) = match seconds {
        0..=119 => (seconds, "second"),
        120..=7_199 => (seconds / 60, "minute"),
        7_200..=172_799 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// RFC 3339 in UTC, in whole seconds.
pub(super) fn time(at: SystemTime) -> String {
    let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole = Duration::from_secs(at.as_secs());
    der::DateTime::from_unix_duration(whole).map_or_else(|_| "beyond 9999".to_owned(), |at| at.to_string())
}

pub(super) fn date(at: SystemTime) -> String {
    let mut text = time(at);
    if let Some(end) = text.find('T') {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let cases = [(0.0, "0"), (0.1, "0.1"), (9.876, "9.88"), (12.34, "12.3"), (100.0, "100"), (4321.9, "4322")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (12_345_678, "12\u{202f}345\u{202f}678")]
        {
            assert_eq!(thousands(count), text);
        }
        assert_eq!(span(Duration::from_secs(1)), "1 second");
        assert_eq!(span(Duration::from_secs(86_400 * 400)), "400 days");
    }
}
