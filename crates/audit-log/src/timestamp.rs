//! Timestamps of the log: RFC 3339, UTC, milliseconds (`2026-01-31T23:59:59.000Z`).
//!
//! Pure. There is a single form, so that lines sort by their text, and a line with another form is not from this
//! program.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 60 * 60;
/// Length of every timestamp in bytes.
const LENGTH: usize = 24;

/// Formats a time; times before 1970 become the start of 1970, which no clock of a running system shows.
#[must_use]
pub fn format(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / DAY, since.as_secs() % DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Parses the form that [`format()`] writes; `None` for any other.
#[must_use]
pub fn parse(text: &str) -> Option<SystemTime> {
    if text.len() != LENGTH || !text.is_ascii() {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second, milli) = (number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 23)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(milli);
    // Values out of range (31 February, 25:00) and other separators do not round-trip.
    (format(time) == text).then_some(time)
}

/// Days since 1970-01-01 to year, month and day (proleptic Gregorian calendar; the era is 400 years from 1 March).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`], for years from 1970.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
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
            let time = UNIX_EPOCH + Duration::from_secs(day * DAY + day % DAY);
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
