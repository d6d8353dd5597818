//! Timestamps of the log: RFC 3339, UTC, milliseconds (`2026-01-31T23:59:59.000Z`).
//!
//! Pure. There is a single form, so that lines sort by their text, and a line with another form is not from this
//! program.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 9999-12-31T23:59:59.999Z: the last time of this form, and the end of certificates without an expiry (RFC 5280, section
/// 4.1.2.5). `jiff` ends 26 hours earlier.
const LAST: Duration = Duration::from_millis(253_402_300_799_999);

/// Formats a time. Times before 1970 or after 9999, which no clock of a running system shows, become the first or the
/// last of that range.
#[must_use]
pub fn format(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST)).to_string()
}

/// Parses the form that [`format()`] writes; `None` for any other.
#[must_use]
pub fn parse(text: &str) -> Option<SystemTime> {
    let time = humantime::parse_rfc3339(text).ok()?;
    // Other forms, and values out of range that the library corrects (a leap second), do not round-trip.
    (format(time) == text).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_769_903_999_007, "2026-01-31T23:59:59.007Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ];
        for (millis, text) in cases {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(format(time), text);
            assert_eq!(parse(text), Some(time), "{text}");
        }
    }

    #[test]
    fn every_day_of_two_centuries_comes_back() {
        for day in 0..73_000 {
            let time = UNIX_EPOCH + Duration::from_secs(day * 86_400 + day % 86_400);
            assert_eq!(parse(&format(time)), Some(time));
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "2026-01-31T23:59:59Z",
            "2026-01-31 23:59:59.000Z",
            "2026-02-30T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-00-01T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T00:60:00.000Z",
            "1969-12-31T23:59:59.999Z",
            "2026-01-01T00:00:00.000z",
            "2026-01-01T00:00:00.+00Z",
            "+026-01-01T00:00:00.000Z",
            "2026-01-01T00:00:00.00éZ",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
