//! The time of day, with checks of its plausibility.
//!
//! The only module that reads the wall clock: everything pure takes the time as an argument. A CA that issues while its
//! clock is wrong issues certificates that nobody can use, or that live too long; so the wall clock is compared with the
//! monotonic clock, with the times in the issuance log's directory, and with the time at which the program was built.
//! What a wrong clock has recorded must not stop issuance for good: an operator can confirm the clock (`istio-hsm-ca log
//! confirm-clock`).
//!
//! The *trusted time* bounds the sum of all believed jumps, over restarts too. It advances with the monotonic clock only,
//! at twice its speed until it has caught up with the wall clock: a jump is forgotten once the clock has run evenly for
//! as long. The wall clock may be ahead of it by `STOPPED_MAX`.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;

use crate::error::{Advice, Remedy};

/// Tolerated drift between wall clock and monotonic clock from one reading to the next; more is a jump. NTP slews by at
/// most 500 ppm, so even an hour between two readings stays below two seconds.
const TOLERANCE: Duration = Duration::from_secs(10);

/// How long issuance stays stopped after a jump.
const SETTLE: Duration = Duration::from_secs(2);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How far the clock may jump forward at run time and be believed, in one jump or several: a virtual machine that was
/// paused continues within a day.
const JUMP_MAX: Duration = DAY;

/// How far the clock may be ahead of the trusted time: a daemon that was stopped for that long starts.
const STOPPED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why the time of day cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The wall clock is far ahead of the trusted time.
    #[error("the clock is {} ahead of the trusted time in the issuance log's directory{advice}", Days(.by), advice = Advice(self))]
    AheadOfLog {
        /// By how much.
        by: Duration,
        /// The command that confirms the clock.
        confirm: Arc<str>,
    },
    /// The wall clock is behind the time at which the program was built.
    #[error("the clock is {} behind the time at which this program was built{advice}", Days(.0), advice = Advice(self))]
    BehindBuild(Duration),
    /// The wall clock is behind the newest record of the issuance log.
    #[error("the clock is {} behind the newest record of the issuance log{advice}", Days(.by), advice = Advice(self))]
    BehindLog {
        /// By how much.
        by: Duration,
        /// The command that confirms the clock.
        confirm: Arc<str>,
    },
    /// The wall clock moved against the monotonic clock.
    #[error("the clock jumped by {0:?}; issuance resumes once it runs evenly")]
    Jumped(Duration),
    /// The wall clock moved forward by more than is believed, at once or in several jumps.
    #[error("the clock jumped forward by {} in total{advice}", Days(.0), advice = Advice(self))]
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
            Self::AheadOfLog { confirm, .. } | Self::BehindLog { confirm, .. } => {
                Some(format!("set the clock right; if it is right, run `{confirm}` and start the daemon again").into())
            }
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

/// What the directory of the issuance log says about the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The time of the newest record; if an operator has confirmed the clock, the time of that or of the newest record since.
    pub newest_record: Option<SystemTime>,
    /// The stored trusted time; without one, the newest record is the trusted time.
    pub trusted: Option<SystemTime>,
}

/// The daemon's clock, which notices jumps.
#[derive(Debug)]
pub struct Clock {
    state: Mutex<State>,
    known: Known,
    confirm: Arc<str>,
    built: SystemTime,
}

#[derive(Debug, Default)]
struct State {
    /// The last reading that was believed.
    last: Option<Reading>,
    /// Time and size of the last jump.
    jump: Option<(Instant, Duration)>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: SystemTime,
    monotonic: Instant,
    /// The trusted time.
    trusted: SystemTime,
    /// The same, since the program started: it has no lead then.
    steady: SystemTime,
}

impl Clock {
    /// A clock that has not been read yet. `confirm` is the command that confirms the clock, for errors.
    #[must_use]
    pub fn start(known: Known, confirm: Arc<str>) -> Self {
        Self { state: Mutex::default(), known, confirm, built: built_at() }
    }

    /// The time of day for a certificate.
    ///
    /// # Errors
    /// When the clock jumped within the last two seconds, or stands where it cannot be right.
    pub fn now(&self) -> Result<SystemTime, ClockError> {
        self.observe(now(), Instant::now())
    }

    /// The trusted time, to be stored for the next start; `None` until the clock was believed once.
    #[must_use]
    pub fn trusted(&self) -> Option<SystemTime> {
        self.state.lock().last.map(|last| last.trusted)
    }

    fn observe(&self, wall: SystemTime, monotonic: Instant) -> Result<SystemTime, ClockError> {
        let behind =
            |earliest: SystemTime, most: Duration| earliest.duration_since(wall).ok().filter(|behind| *behind > most);
        if let Some(by) = self.known.newest_record.and_then(|newest| behind(newest, TOLERANCE)) {
            return Err(ClockError::BehindLog { by, confirm: Arc::clone(&self.confirm) });
        }
        // The machine that built it may be in another time zone, set wrongly.
        if let Some(by) = behind(self.built, DAY) {
            return Err(ClockError::BehindBuild(by));
        }
        let lead = |of: SystemTime| wall.duration_since(of).unwrap_or_default();
        let mut state = self.state.lock();
        let last = state.last.unwrap_or_else(|| {
            let trusted = self.known.trusted.or(self.known.newest_record).unwrap_or(wall).max(self.built).min(wall);
            Reading { wall, monotonic, trusted, steady: wall }
        });
        let elapsed = monotonic.saturating_duration_since(last.monotonic);
        // What was believed before stays the measure, so that the clock may come back.
        let jumped = lead(last.steady + elapsed);
        if jumped > JUMP_MAX {
            return Err(ClockError::JumpedFar(jumped));
        }
        let by = lead(last.trusted + elapsed);
        if by > STOPPED_MAX {
            return Err(ClockError::AheadOfLog { by, confirm: Arc::clone(&self.confirm) });
        }
        let expected = last.wall + elapsed;
        let drift = wall.duration_since(expected).unwrap_or_else(|behind| behind.duration());
        if monotonic >= last.monotonic {
            let [trusted, steady] = [last.trusted, last.steady].map(|time| (time + 2 * elapsed).min(wall));
            state.last = Some(Reading { wall, monotonic, trusted, steady });
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
    const HOUR: Duration = Duration::from_secs(3600);

    /// A clock that was built long ago.
    fn clock(known: Known) -> Clock {
        Clock { built: now() - 400 * DAY, ..Clock::start(known, "confirm it".into()) }
    }

    #[test]
    fn a_jump_stops_issuance_for_two_seconds() {
        let clock = clock(Known::default());
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
        let clock = clock(Known::default());
        let (wall, start) = (now(), Instant::now());
        assert!(clock.observe(wall + SECOND, start + SECOND).is_ok());
        // However long it stays there.
        for seconds in [2, 10, 3600, 400 * 24 * 3600] {
            let far = clock.observe(wall + 300 * DAY + seconds * SECOND, start + seconds * SECOND);
            assert!(matches!(far, Err(ClockError::JumpedFar(_))), "{far:?}");
        }
        assert!(clock.observe(wall + 401 * DAY, start + 401 * DAY).is_ok());
        let paused = clock.observe(wall + 401 * DAY + 10 * HOUR, start + 401 * DAY + SECOND);
        assert!(matches!(paused, Err(ClockError::Jumped(_))), "{paused:?}");
        assert!(clock.observe(wall + 401 * DAY + 10 * HOUR + 3 * SECOND, start + 401 * DAY + 4 * SECOND).is_ok());
    }

    #[test]
    fn several_jumps_are_believed_up_to_a_day_per_day() {
        let clock = clock(Known::default());
        let (mut wall, mut monotonic) = (now(), Instant::now());
        let mut run = |jump: Duration, evenly: Duration| {
            wall += jump + SECOND;
            monotonic += SECOND;
            let first = clock.observe(wall, monotonic);
            wall += evenly;
            monotonic += evenly;
            let result = clock.observe(wall, monotonic);
            if result.is_err() {
                wall -= jump;
                assert!(clock.observe(wall, monotonic).is_ok(), "it may come back");
            }
            (first, result.map(|_| ()))
        };
        assert!(run(Duration::ZERO, 3 * SECOND).1.is_ok());
        assert!(run(20 * HOUR, 3 * SECOND).1.is_ok());
        for _ in 0..5 {
            let (first, second) = run(20 * HOUR, 3 * SECOND);
            for result in [first.map(|_| ()), second] {
                assert!(matches!(result, Err(ClockError::JumpedFar(by)) if by > DAY), "{result:?}");
            }
        }
        // Small steps are no jumps, and add up all the same.
        let steps = (0..2000).filter(|_| run(9 * SECOND, Duration::ZERO).1.is_ok()).count();
        assert!((1500..1900).contains(&steps), "{steps}");
        assert!(run(Duration::ZERO, 20 * HOUR).1.is_ok());
        assert!(run(20 * HOUR, 3 * SECOND).1.is_ok(), "a day later it is believed again");
    }

    #[test]
    fn the_clock_at_the_start_is_near_the_trusted_time() {
        let today = now();
        let (last_week, last_year, next_year) = (today - 7 * DAY, today - 365 * DAY, today + 300 * DAY);
        type Expected = fn(&Result<SystemTime, ClockError>) -> bool;
        let ahead: Expected = |result| matches!(result, Err(ClockError::AheadOfLog { .. }));
        let behind: Expected = |result| matches!(result, Err(ClockError::BehindLog { .. }));
        // Newest record, trusted time, wall clock.
        let cases: [(Option<SystemTime>, Option<SystemTime>, SystemTime, Expected); 10] = [
            (None, None, today, |result| result.is_ok()),
            (Some(last_week), None, today, |result| result.is_ok()),
            (Some(last_year), None, today, ahead),
            (Some(last_week), None, next_year, ahead),
            (Some(last_week), Some(today), next_year, ahead),
            (Some(today), Some(last_year), today, ahead),
            (Some(last_year), Some(last_week), today, |result| result.is_ok()),
            (Some(last_week), Some(next_year), today, |result| result.is_ok()),
            (Some(next_year), None, today, behind),
            (None, None, today - 800 * DAY, |result| matches!(result, Err(ClockError::BehindBuild(_)))),
        ];
        for (newest_record, trusted, wall, expected) in cases {
            let result = clock(Known { newest_record, trusted }).observe(wall, Instant::now());
            assert!(expected(&result), "{newest_record:?} {trusted:?} {wall:?}: {result:?}");
        }
    }

    /// Each start moves the newest record ahead; the trusted time stays.
    #[test]
    fn starts_with_a_clock_that_is_further_ahead_each_time_are_refused() {
        let (today, start) = (now(), Instant::now());
        let mut known = Known { newest_record: Some(today), trusted: Some(today) };
        for (ahead, believed) in
            [(10 * DAY, true), (20 * DAY, true), (29 * DAY, true), (39 * DAY, false), (58 * DAY, false)]
        {
            let clock = clock(known);
            let wall = today + ahead;
            let result = clock.observe(wall, start);
            assert_eq!(result.is_ok(), believed, "{result:?}");
            if believed {
                assert!(clock.observe(wall + HOUR, start + HOUR).is_ok());
                known = Known { newest_record: Some(wall + HOUR), trusted: clock.trusted() };
            } else {
                assert_eq!(clock.trusted(), None, "what is not believed is not stored");
            }
        }
        // Jumps at run time count as well.
        let clock = clock(Known { newest_record: Some(today), trusted: Some(today - 20 * DAY) });
        assert!(clock.observe(today + 9 * DAY + HOUR, start).is_ok());
        let far = clock.observe(today + 10 * DAY + HOUR, start + SECOND);
        assert!(matches!(far, Err(ClockError::AheadOfLog { .. })), "{far:?}");
    }

    #[test]
    fn the_trusted_time_catches_up_while_the_clock_runs_evenly() {
        let (today, start) = (now(), Instant::now());
        let clock = clock(Known { newest_record: Some(today - 25 * DAY), trusted: Some(today - 25 * DAY) });
        for days in 0..=30 {
            assert!(clock.observe(today + days * DAY, start + days * DAY).is_ok());
            let lead = (today + days * DAY).duration_since(clock.trusted().unwrap()).unwrap();
            assert_eq!(lead, 25_u32.saturating_sub(days) * DAY);
        }
    }

    #[test]
    fn a_clock_that_is_set_right_after_the_start_serves() {
        let today = now();
        let clock = clock(Known { newest_record: Some(today - 365 * DAY), trusted: None });
        let start = Instant::now();
        assert!(clock.observe(today, start).is_err());
        assert!(clock.observe(today - 364 * DAY + SECOND, start + SECOND).is_ok());
        assert!(clock.observe(today - 264 * DAY, start + 100 * DAY).is_ok(), "it runs for long");
    }

    #[test]
    fn a_clock_behind_the_log_issues_nothing_and_names_the_command() {
        let clock = clock(Known { newest_record: Some(now() + HOUR), trusted: None });
        let error = clock.now().unwrap_err();
        assert!(matches!(error, ClockError::BehindLog { .. }), "{error:?}");
        assert!(error.to_string().contains("run `confirm it`"), "{error}");
    }
}
