//! Durations of PKCS#11 calls, as counted by the token hosts, in Prometheus' text format.
//!
//! The hosts count into buckets in their own processes, but the exporter accepts single values only, so these two
//! metrics are rendered here. Labels are configured tokens and closed sets, never from a caller.

use std::fmt::{self, Write};

/// Upper bounds of the buckets in nanoseconds, from one call in software to a network HSM at its limit. A last bucket
/// without a bound follows.
pub const BOUNDS: [u64; 18] = [
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Number of buckets of a histogram, including the unbounded one.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Name of the histogram.
pub const DURATION: &str = "istio_hsm_ca_pkcs11_call_duration_seconds";

/// Name of the counter.
pub const ERRORS: &str = "istio_hsm_ca_pkcs11_errors_total";

/// Durations of one function's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Calls by bucket of [`BOUNDS`]; not cumulative.
    pub buckets: [u64; BUCKETS],
    /// The sum of all durations in nanoseconds.
    pub nanoseconds: u64,
}

/// Counters of one token's hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// The token's name in the configuration.
    pub token: String,
    /// Durations by function.
    pub durations: Vec<(&'static str, Histogram)>,
    /// Failed calls by function and name of the return code.
    pub errors: Vec<(&'static str, &'static str, u64)>,
}

impl Histogram {
    /// Index of a duration's bucket.
    #[must_use]
    pub fn bucket(nanoseconds: u64) -> usize {
        BOUNDS.iter().position(|bound| nanoseconds <= *bound).unwrap_or(BOUNDS.len())
    }
}

/// Renders both metrics of all tokens.
#[must_use]
pub fn render(calls: &[Calls]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut text, calls);
    text
}

fn write_all(out: &mut String, calls: &[Calls]) -> fmt::Result {
    writeln!(
        out,
        "# HELP {DURATION} Calls of PKCS#11 functions by a token's host. C_Sign includes C_SignInit, C_FindObjects \
         its begin and its end; one sample may be several calls of the same function."
    )?;
    writeln!(out, "# TYPE {DURATION} histogram")?;
    for calls in calls {
        let token = escape(&calls.token);
        for (function, histogram) in &calls.durations {
            let mut count = 0_u64;
            for (bucket, bound) in histogram.buckets.iter().zip(BOUNDS) {
                count = count.saturating_add(*bucket);
                let bound = seconds(bound);
                writeln!(out, "{DURATION}_bucket{{token=\"{token}\",function=\"{function}\",le=\"{bound}\"}} {count}")?;
            }
            let all = histogram.buckets.iter().fold(0_u64, |all, bucket| all.saturating_add(*bucket));
            let sum = seconds(histogram.nanoseconds);
            writeln!(out, "{DURATION}_bucket{{token=\"{token}\",function=\"{function}\",le=\"+Inf\"}} {all}")?;
            writeln!(out, "{DURATION}_sum{{token=\"{token}\",function=\"{function}\"}} {sum}")?;
            writeln!(out, "{DURATION}_count{{token=\"{token}\",function=\"{function}\"}} {all}")?;
        }
    }
    writeln!(out, "# HELP {ERRORS} Calls of PKCS#11 functions that failed, by function and return code.")?;
    writeln!(out, "# TYPE {ERRORS} counter")?;
    for calls in calls {
        let token = escape(&calls.token);
        for (function, code, count) in &calls.errors {
            writeln!(out, "{ERRORS}{{token=\"{token}\",function=\"{function}\",code=\"{code}\"}} {count}")?;
        }
    }
    Ok(())
}

/// Nanoseconds as a number of seconds.
fn seconds(nanoseconds: u64) -> f64 {
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// Escapes a label value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use prometheus_parse::{Scrape, Value};

    use super::*;

    #[test]
    fn a_parser_reads_it_back() {
        let mut histogram = Histogram { buckets: [0; BUCKETS], nanoseconds: 10_030_030_000 };
        for nanoseconds in [20_000, 20_001, 10_000_000_001] {
            histogram.buckets[Histogram::bucket(nanoseconds)] += 1;
        }
        let calls = Calls {
            token: "a \"b\"\\".to_owned(),
            durations: vec![("C_Sign", histogram)],
            errors: vec![("C_Login", "CKR_PIN_INCORRECT", 2)],
        };
        let text = render(&[calls]);
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let of = |name: &str| scrape.samples.iter().find(|sample| sample.metric == name).unwrap();
        let duration = of(DURATION);
        let Value::Histogram(buckets) = &duration.value else { panic!("{duration:?}") };
        let counts: Vec<f64> = buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!((buckets.len(), counts[0], counts[1], counts[17], counts[18]), (19, 1.0, 2.0, 2.0, 3.0));
        assert!((buckets[0].less_than - 2e-5).abs() < 1e-12 && buckets[18].less_than.is_infinite());
        assert_eq!(duration.labels.get("function"), Some("C_Sign"));
        assert_eq!(of(ERRORS).labels.get("code"), Some("CKR_PIN_INCORRECT"));
        assert_eq!(of(ERRORS).value, Value::Counter(2.0));
        assert!(text.contains("_sum{token=\"a \\\"b\\\"\\\\\",function=\"C_Sign\"} 10.03003"), "{text}");
        assert!(text.contains("_count{token=\"a \\\"b\\\"\\\\\",function=\"C_Sign\"} 3"), "{text}");
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS.is_sorted());
        assert_eq!((Histogram::bucket(0), Histogram::bucket(u64::MAX)), (0, BOUNDS.len()));
    }
}
