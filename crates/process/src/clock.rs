//! The time of day, and whether it can be believed.
//!
//! The only module that reads the wall clock: everything pure takes the time as an argument. A CA
//! that issues while its clock is wrong issues certificates that nobody can use, or that live too
//! long; so the wall clock is compared with the monotonic clock, and with the newest record that
//! the log already holds.

use std::{
    borrow::Cow,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use crate::error::{Advice, Remedy};

/// How far wall time may drift from monotonic time between two readings, before it is a jump.
/// NTP slews by at most 500 ppm, so that even an hour between two readings stays below two seconds.
const TOLERANCE: Duration = Duration::from_secs(10);

/// How long a jump keeps issuance stopped after the clock runs evenly again.
const SETTLE: Duration = Duration::from_secs(2);

/// Why the time of day cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The wall clock is behind the newest record of the issuance log.
    #[error("the clock is {0:?} behind the newest record of the issuance log{advice}", advice = Advice(self))]
    BehindLog(Duration),
    /// The wall clock moved against the monotonic clock.
    #[error("the clock jumped by {0:?}; issuance resumes once it runs evenly")]
    Jumped(Duration),
}

impl Remedy for ClockError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::BehindLog(_) => Some("set the clock right".into()),
            Self::Jumped(_) => None,
        }
    }
}

/// The current time, unchecked: for what does not issue (reports, `check`, import).
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the one that reads the wall clock")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The daemon's clock, which notices jumps.
#[derive(Debug)]
pub struct Clock {
    state: Mutex<State>,
    newest_record: Option<SystemTime>,
}

#[derive(Debug)]
struct State {
    wall: SystemTime,
    monotonic: Instant,
    /// When and by how much the clock last jumped.
    jump: Option<(Instant, Duration)>,
}

impl Clock {
    /// Starts to watch the clock; `newest_record` is the time of the log's last line, if any.
    #[must_use]
    pub fn start(newest_record: Option<SystemTime>) -> Self {
        Self { state: Mutex::new(State { wall: now(), monotonic: Instant::now(), jump: None }), newest_record }
    }

    /// The time of day for a certificate.
    ///
    /// # Errors
    /// When the clock jumped within the last two seconds, or stands before the log's newest record.
    pub fn now(&self) -> Result<SystemTime, ClockError> {
        self.observe(now(), Instant::now())
    }

    fn observe(&self, wall: SystemTime, monotonic: Instant) -> Result<SystemTime, ClockError> {
        if let Some(newest) = self.newest_record
            && let Ok(behind) = newest.duration_since(wall)
            && behind > TOLERANCE
        {
            return Err(ClockError::BehindLog(behind));
        }
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let expected = state.wall + monotonic.saturating_duration_since(state.monotonic);
        let drift = match wall.duration_since(expected) {
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
        let clock = Clock::start(None);
        let (wall, start) = (now(), Instant::now());
        assert!(clock.observe(wall + SECOND, start + SECOND).is_ok());
        let jumped = clock.observe(wall + 100 * SECOND, start + 2 * SECOND);
        assert!(matches!(jumped, Err(ClockError::Jumped(_))), "{jumped:?}");
        assert!(clock.observe(wall + 101 * SECOND, start + 3 * SECOND).is_err());
        assert!(clock.observe(wall + 103 * SECOND, start + 5 * SECOND).is_ok());
        assert!(clock.observe(wall + SECOND, start + 6 * SECOND).is_err(), "backwards is a jump too");
    }

    #[test]
    fn a_clock_behind_the_log_issues_nothing() {
        let clock = Clock::start(Some(now() + 3600 * SECOND));
        assert!(matches!(clock.now(), Err(ClockError::BehindLog(_))));
    }
}
