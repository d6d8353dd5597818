//! Rate limits: how often one identity, and all together, may ask.
//!
//! istiod is one caller for many workloads, so that the identity that a certificate is for counts as well as
//! the one that asks. A node's proxy has no limit of its own: all nodes' proxies have one identity.

use std::{num::NonZeroU32, sync::Arc};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::auth::{Caller, Identity};
use pki::{Template, identity::Name};

/// How many keyed requests pass between two sweeps of the identities that have their whole quota again.
const SWEEP_EVERY: u64 = 4096;

/// `[rate_limits]`: certificates per second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// For one identity.
    pub per_identity: Option<NonZeroU32>,
    /// Burst for one identity; ten seconds' worth by default.
    pub per_identity_burst: Option<NonZeroU32>,
    /// For all identities together.
    pub total: Option<NonZeroU32>,
    /// Burst for all identities together; ten seconds' worth by default.
    pub total_burst: Option<NonZeroU32>,
}

/// The quota of a rate per second; the burst is ten seconds' worth unless configured.
fn quota(per_second: Option<NonZeroU32>, burst: Option<NonZeroU32>) -> Option<Quota> {
    const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
    per_second.map(|rate| Quota::per_second(rate).allow_burst(burst.unwrap_or(rate.saturating_mul(TEN))))
}

/// A limit that a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limited {
    /// The identity's own.
    #[error("the rate limit of this identity is exceeded")]
    Identity,
    /// The sum over all.
    #[error("the CA's rate limit is exceeded")]
    Total,
}

/// The limits at work.
#[derive(Debug)]
pub struct Limits {
    total: Option<DefaultDirectRateLimiter>,
    per_identity: Option<DefaultKeyedRateLimiter<Arc<str>>>,
    counted: std::sync::atomic::AtomicU64,
}

impl Limits {
    /// Sets the limits up.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            total: quota(settings.total, settings.total_burst).map(RateLimiter::direct),
            per_identity: quota(settings.per_identity, settings.per_identity_burst).map(RateLimiter::keyed),
            counted: 0.into(),
        }
    }

    /// Counts a request before any work is done for it.
    ///
    /// # Errors
    /// When the caller or all together ask too often; the daemon's own requests and the operator's always pass.
    pub fn admit(&self, caller: &Caller) -> Result<(), Limited> {
        match (caller.for_whom(), caller.identity()) {
            (Some(id), _) => self.count(&id.to_string())?,
            // Whom it asks for is counted, once that is known.
            (None, Identity::Requester { .. }) => {}
            (None, _) => return Ok(()),
        }
        match &self.total {
            Some(total) if total.check().is_err() => Err(Limited::Total),
            _ => Ok(()),
        }
    }

    /// Counts the identities that a certificate is for, where they are not the caller.
    ///
    /// # Errors
    /// When one of them has too many certificates asked for.
    pub fn admit_names(&self, caller: &Caller, template: &Template) -> Result<(), Limited> {
        for name in &template.names {
            match (name, caller.for_whom()) {
                (Name::Spiffe(id), Some(caller)) if id != caller => self.count(&id.to_string())?,
                (Name::Spiffe(id), None) if matches!(caller.identity(), Identity::Requester { .. }) => {
                    self.count(&id.to_string())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn count(&self, identity: &str) -> Result<(), Limited> {
        let Some(limiter) = &self.per_identity else { return Ok(()) };
        let counted = self.counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if counted % SWEEP_EVERY == SWEEP_EVERY - 1 {
            limiter.retain_recent();
        }
        limiter.check_key(&Arc::from(identity)).map_err(|_| Limited::Identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{InternalCaller, Method};

    fn parse(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn burst_defaults_to_ten_seconds_of_the_rate() {
        let rate = NonZeroU32::new(3);
        assert_eq!(quota(rate, None).unwrap().burst_size().get(), 30);
        assert_eq!(quota(rate, NonZeroU32::new(7)).unwrap().burst_size().get(), 7);
        assert_eq!(quota(None, rate), None);
    }

    fn workload(name: &str) -> Caller {
        Caller::workload(format!("spiffe://td/ns/n/sa/{name}").parse().unwrap(), Method::Jwt)
    }

    #[test]
    fn one_identity_does_not_use_up_another_ones() {
        let limits = Limits::new(parse("per_identity = 1\nper_identity_burst = 2"));
        assert_eq!(limits.admit(&workload("a")), Ok(()));
        assert_eq!(limits.admit(&workload("a")), Ok(()));
        assert_eq!(limits.admit(&workload("a")), Err(Limited::Identity));
        assert_eq!(limits.admit(&workload("b")), Ok(()));
    }

    #[test]
    fn the_total_holds_for_strangers_to_each_other_but_not_for_the_daemon() {
        let limits = Limits::new(parse("total = 1\ntotal_burst = 2"));
        assert_eq!(limits.admit(&workload("a")), Ok(()));
        assert_eq!(limits.admit(&workload("b")), Ok(()));
        assert_eq!(limits.admit(&workload("c")), Err(Limited::Total));
        assert_eq!(limits.admit(&Caller::internal(InternalCaller::ServingCertificate)), Ok(()));
        assert_eq!(limits.admit(&Caller::operator(0)), Ok(()));
    }
}
