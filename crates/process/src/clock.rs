//! The time of day, with checks of its plausibility.
//!
//! The only module that reads the wall clock: everything pure takes the time as an argument. A CA
//! that issues while its clock is wrong issues certificates that nobody can use, or that live too
//! long; so the wall clock is compared with the monotonic clock, with the newest record that the log already holds, and
//! with the time at which the program was built. What a wrong clock has recorded must not stop issuance for good: an
//! operator can confirm the clock (`istio-hsm-ca log confirm-clock`).

use std::{
    borrow::Cow,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use crate::error::{Advice, Remedy};

/// Tolerated drift between wall clock and monotonic clock from one reading to the next; more is a jump. NTP slews by at
/// most 500 ppm, so even an hour between two readings stays below two seconds.
const TOLERANCE: Duration = Duration::from_secs(10);

/// How long issuance stays stopped after a jump.
const SETTLE: Duration = Duration::from_secs(2);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How far the clock may jump forward at run time and be believed: a machine that was suspended wakes up within a day.
const JUMP_MAX: Duration = DAY;

/// How far the clock may be ahead of the newest record at the start: a daemon that runs renews its own certificate every
/// few hours, so that only one that was stopped for longer finds an older record.
const STOPPED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why the time of day cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// At the start, the wall clock is far ahead of the newest record of the issuance log.
    #[error("the clock is {} ahead of the newest record of the issuance log{advice}", Days(.0), advice = Advice(self))]
    AheadOfLog(Duration),
    /// The wall clock is behind the time at which the program was built.
    #[error("the clock is {} behind the time at which this program was built{advice}", Days(.0), advice = Advice(self))]
    BehindBuild(Duration),
    /// The wall clock is behind the newest record of the issuance log.
    #[error("the clock is {} behind the newest record of the issuance log{advice}", Days(.0), advice = Advice(self))]
    BehindLog(Duration),
    /// The wall clock moved against the monotonic clock.
    #[error("the clock jumped by {0:?}; issuance resumes once it runs evenly")]
    Jumped(Duration),
    /// The wall clock moved forward by more than is believed.
    #[error("the clock jumped forward by {}{advice}", Days(.0), advice = Advice(self))]
    JumpedFar(Duration),
}

/// A duration for messages: in days once it has several.
struct Days<'a>(&'a Duration);

impl std::fmt::Display for Days<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_secs() / DAY.as_secs() {
            0 | 1 => write!(f, "{:?}", Duration::from_secs(self.0.as_secs())),
            days => write!(f, "{days} days"),
        }
    }
}

impl Remedy for ClockError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::AheadOfLog(_) | Self::BehindLog(_) => Some(
                "set the clock right; if it is right, run `istio-hsm-ca log confirm-clock` and start the daemon again"
                    .into(),
            ),
            Self::BehindBuild(_) => Some("set the clock right".into()),
            Self::JumpedFar(_) => Some("set the clock right; if it is right now, start the daemon again".into()),
            Self::Jumped(_) => None,
        }
    }
}

/// The current time, unchecked; for anything that does not issue (reports, `check`, import).
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the one that reads the wall clock")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// When this program was built (SOURCE_DATE_EPOCH, if the build had one).
fn built_at() -> SystemTime {
    let seconds = env!("BUILT_AT").parse().unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What is known of the time before the clock is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The time of the log's newest line, if any.
    pub newest_record: Option<SystemTime>,
    /// When an operator confirmed that the clock is right and that line's time wrong, or long ago.
    pub confirmed: Option<SystemTime>,
}

/// The daemon's clock, which notices jumps.
#[derive(Debug)]
pub struct Clock {
    state: Mutex<State>,
    known: Known,
    built: SystemTime,
}

#[derive(Debug)]
struct State {
    wall: SystemTime,
    monotonic: Instant,
    /// Time and size of the last jump.
    jump: Option<(Instant, Duration)>,
    /// Whether the clock was once found to be near the newest record.
    started: bool,
}

impl Clock {
    /// Starts to watch the clock.
    #[must_use]
    pub fn start(known: Known) -> Self {
        let state = State { wall: now(), monotonic: Instant::now(), jump: None, started: false };
        Self { state: Mutex::new(state), known, built: built_at() }
    }

    /// The time of day for a certificate.
    ///
    /// # Errors
    /// When the clock jumped within the last two seconds, or stands where it cannot be right.
    pub fn now(&self) -> Result<SystemTime, ClockError> {
        self.observe(now(), Instant::now())
    }

    fn observe(&self, wall: SystemTime, monotonic: Instant) -> Result<SystemTime, ClockError> {
        let behind =
            |earliest: SystemTime, most: Duration| earliest.duration_since(wall).ok().filter(|behind| *behind > most);
        let Known { newest_record, confirmed } = self.known;
        if let Some(behind) = confirmed.or(newest_record).and_then(|earliest| behind(earliest, TOLERANCE)) {
            return Err(ClockError::BehindLog(behind));
        }
        // The machine that built it may be in another time zone, set wrongly.
        if let Some(behind) = behind(self.built, DAY) {
            return Err(ClockError::BehindBuild(behind));
        }
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !state.started {
            if let (Some(newest), None) = (newest_record, confirmed)
                && let Ok(ahead) = wall.duration_since(newest.max(self.built))
                && ahead > STOPPED_MAX
            {
                return Err(ClockError::AheadOfLog(wall.duration_since(newest).unwrap_or(ahead)));
            }
            state.started = true;
        }
        let expected = state.wall + monotonic.saturating_duration_since(state.monotonic);
        let drift = match wall.duration_since(expected) {
            // What was believed before stays the measure, so that the clock may come back.
            Ok(ahead) if ahead > JUMP_MAX => return Err(ClockError::JumpedFar(ahead)),
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        if monotonic >= state.monotonic {
            state.wall = wall;
            state.monotonic = monotonic;
        }
        if drift > TOLERANCE {
            state.jump = Some((monotonic, drift));
        }
        match state.jump {
            Some((at, by)) if monotonic.saturating_duration_since(at) < SETTLE => Err(ClockError::Jumped(by)),
            _ => {
                state.jump = None;
                Ok(wall)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_jump_stops_issuance_for_two_seconds() {
        let clock = Clock::start(Known::default());
        let (wall, start) = (now(), Instant::now());
        assert!(clock.observe(wall + SECOND, start + SECOND).is_ok());
        let jumped = clock.observe(wall + 100 * SECOND, start + 2 * SECOND);
        assert!(matches!(jumped, Err(ClockError::Jumped(_))), "{jumped:?}");
        assert!(clock.observe(wall + 101 * SECOND, start + 3 * SECOND).is_err());
        assert!(clock.observe(wall + 103 * SECOND, start + 5 * SECOND).is_ok());
        assert!(clock.observe(wall + SECOND, start + 6 * SECOND).is_err(), "backwards is a jump too");
    }

    #[test]
    fn a_far_jump_forward_stops_issuance_until_the_clock_is_back() {
        let clock = Clock::start(Known::default());
        let (wall, start) = (now(), Instant::now());
        assert!(clock.observe(wall + SECOND, start + SECOND).is_ok());
        for seconds in [2, 10, 3600] {
            let far = clock.observe(wall + 300 * DAY + seconds * SECOND, start + seconds * SECOND);
            assert!(matches!(far, Err(ClockError::JumpedFar(_))), "{far:?}");
        }
        assert!(clock.observe(wall + 3601 * SECOND, start + 3601 * SECOND).is_ok());
        let suspended = clock.observe(wall + 10 * 3600 * SECOND, start + 3602 * SECOND);
        assert!(matches!(suspended, Err(ClockError::Jumped(_))), "{suspended:?}");
        assert!(clock.observe(wall + 36_003 * SECOND, start + 3605 * SECOND).is_ok());
    }

    #[test]
    fn the_clock_at_the_start_is_near_the_newest_record_or_confirmed() {
        let today = now();
        let (last_week, last_year, next_year) = (today - 7 * DAY, today - 365 * DAY, today + 300 * DAY);
        type Expected = fn(&Result<SystemTime, ClockError>) -> bool;
        let cases: [(Option<SystemTime>, Option<SystemTime>, SystemTime, Expected); 9] = [
            (None, None, today, |result| result.is_ok()),
            (Some(last_week), None, today, |result| result.is_ok()),
            (Some(last_year), None, today, |result| matches!(result, Err(ClockError::AheadOfLog(_)))),
            (Some(last_year), Some(today), today, |result| result.is_ok()),
            (Some(last_week), None, next_year, |result| matches!(result, Err(ClockError::AheadOfLog(_)))),
            (Some(next_year), None, today, |result| matches!(result, Err(ClockError::BehindLog(_)))),
            (Some(next_year), Some(last_week), today, |result| result.is_ok()),
            (Some(next_year), Some(today), last_week, |result| matches!(result, Err(ClockError::BehindLog(_)))),
            (None, None, today - 800 * DAY, |result| matches!(result, Err(ClockError::BehindBuild(_)))),
        ];
        for (newest_record, confirmed, wall, expected) in cases {
            let mut clock = Clock::start(Known { newest_record, confirmed });
            clock.built = today - 400 * DAY;
            clock.state.get_mut().unwrap().wall = wall;
            let result = clock.observe(wall, Instant::now());
            assert!(expected(&result), "{newest_record:?} {confirmed:?} {wall:?}: {result:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_right_after_the_start_serves() {
        let today = now();
        let clock = Clock::start(Known { newest_record: Some(today - 365 * DAY), confirmed: None });
        let mut clock = Clock { built: today - 400 * DAY, ..clock };
        let start = Instant::now();
        assert!(clock.observe(today, start).is_err());
        clock.state.get_mut().unwrap().wall = today - 364 * DAY;
        assert!(clock.observe(today - 364 * DAY + SECOND, start + SECOND).is_ok());
        assert!(clock.observe(today - 264 * DAY, start + 100 * DAY).is_ok(), "it runs for long");
    }

    #[test]
    fn a_clock_behind_the_log_issues_nothing() {
        let clock = Clock::start(Known { newest_record: Some(now() + 3600 * SECOND), confirmed: None });
        assert!(matches!(clock.now(), Err(ClockError::BehindLog(_))));
    }
}
