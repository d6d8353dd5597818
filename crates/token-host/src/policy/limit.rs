//! Limits the number of certificates that the host signs, whichever daemon requests them.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::{Duration, Instant},
};

use super::Refusal;

const HOUR: Duration = Duration::from_secs(3600);

/// Limits on the number of certificates; none by default. Counted from the start of the process.
#[derive(Debug)]
pub(crate) struct Limit {
    per_hour: Option<NonZeroU32>,
    in_total: Option<NonZeroU64>,
    signed: u64,
    /// When the hourly quota would be full again (generic cell rate algorithm).
    whole_at: Option<Instant>,
}

impl Limit {
    pub(crate) fn new(per_hour: Option<NonZeroU32>, in_total: Option<NonZeroU64>) -> Self {
        Self { per_hour, in_total, signed: 0, whole_at: None }
    }

    /// Counts a certificate unless a limit is reached.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Refusal> {
        if let Some(most) = self.in_total.filter(|most| self.signed >= most.get()) {
            return Err(Refusal::Limit { most: most.get(), span: "since the host's start" });
        }
        if let Some(most) = self.per_hour {
            let whole_at = self.whole_at.map_or(now, |at| at.max(now)) + HOUR / most.get();
            if whole_at.saturating_duration_since(now) > HOUR {
                return Err(Refusal::Limit { most: most.get().into(), span: "an hour" });
            }
            self.whole_at = Some(whole_at);
        }
        self.signed += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hourly_allowance_is_refilled_evenly() {
        let (now, mut limit) = (Instant::now(), Limit::new(NonZeroU32::new(60), None));
        let mut taken = |at: Duration| (0..100).filter(|_| limit.take(now + at).is_ok()).count();
        assert_eq!(taken(Duration::ZERO), 60);
        assert_eq!(taken(Duration::from_secs(59)), 0);
        assert_eq!(taken(Duration::from_secs(60)), 1);
        assert_eq!(taken(Duration::from_secs(600)), 9);
        assert_eq!(taken(Duration::from_secs(100_000)), 60);
    }

    #[test]
    fn total_is_never_refilled() {
        let (now, mut limit) = (Instant::now(), Limit::new(NonZeroU32::new(60), NonZeroU64::new(61)));
        let taken = (0..100).filter(|_| limit.take(now).is_ok()).count();
        assert_eq!(taken, 60);
        let later = now + HOUR * 5;
        assert_eq!((0..100).filter(|_| limit.take(later).is_ok()).count(), 1);
        assert_eq!(limit.take(later), Err(Refusal::Limit { most: 61, span: "since the host's start" }));
        let mut unlimited = Limit::new(None, None);
        assert!((0..1000).all(|_| unlimited.take(now).is_ok()));
    }
}
