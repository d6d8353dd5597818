//! Rate limits per identity and in total.
//!
//! istiod is one caller for many workloads, so both the caller and the identity in the certificate are counted. ztunnel
//! is not limited as a caller, since the ztunnels of all nodes share one identity.

use std::{num::NonZeroU32, sync::Arc};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::auth::{Caller, Identity};
use pki::{Template, identity::Name};

/// Number of requests between two removals of identities whose quota is full again.
const SWEEP_EVERY: u64 = 4096;

/// `[rate_limits]`: certificates per second; 0 in the file is no limit, `None` here.
///
/// Istio's agents renew at half of a certificate's lifetime: two certificates a day and pod, so that ten thousand pods of
/// one service account need 0.23 a second. What takes more is a roll-out or a restart of everything at once, for which
/// there are the bursts; agents that are refused then ask again. One identity that does nothing but ask fills
/// 7.6 KB a second of the issuance log: 10 GiB last 16 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// For one identity.
    #[serde(deserialize_with = "rate")]
    pub per_identity: Option<NonZeroU32>,
    /// Burst for one identity: 200 seconds' worth unless configured. A thousand pods of a service account may start
    /// at once.
    pub per_identity_burst: Option<NonZeroU32>,
    /// For all identities together.
    #[serde(deserialize_with = "rate")]
    pub total: Option<NonZeroU32>,
    /// Burst for all identities together: four seconds' worth unless configured. Twenty thousand agents may come at once.
    pub total_burst: Option<NonZeroU32>,
}

impl Settings {
    /// No limits.
    pub const NONE: Self = Self { per_identity: None, per_identity_burst: None, total: None, total_burst: None };
}

impl Default for Settings {
    fn default() -> Self {
        Self { per_identity: NonZeroU32::new(5), total: NonZeroU32::new(5000), ..Self::NONE }
    }
}

fn rate<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU32>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(NonZeroU32::new)
}

/// How many seconds' worth the burst of one identity is.
const IDENTITY_BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
/// How many seconds' worth the burst of all identities is.
const TOTAL_BURST: NonZeroU32 = NonZeroU32::new(4).unwrap();

/// The quota of a rate per second; the burst is so many seconds' worth unless configured.
fn quota(per_second: Option<NonZeroU32>, burst: Option<NonZeroU32>, seconds: NonZeroU32) -> Option<Quota> {
    per_second.map(|rate| Quota::per_second(rate).allow_burst(burst.unwrap_or(rate.saturating_mul(seconds))))
}

/// The rate limit that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limited {
    /// The limit per identity.
    #[error("the rate limit of this identity is exceeded")]
    Identity,
    /// The total limit.
    #[error("the CA's rate limit is exceeded")]
    Total,
}

/// Rate limiters.
#[derive(Debug)]
pub struct Limits {
    total: Option<DefaultDirectRateLimiter>,
    per_identity: Option<DefaultKeyedRateLimiter<Arc<str>>>,
    counted: std::sync::atomic::AtomicU64,
}

impl Limits {
    /// Creates the rate limiters.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            total: quota(settings.total, settings.total_burst, TOTAL_BURST).map(RateLimiter::direct),
            per_identity: quota(settings.per_identity, settings.per_identity_burst, IDENTITY_BURST)
                .map(RateLimiter::keyed),
            counted: 0.into(),
        }
    }

    /// Counts a request before any work for it.
    ///
    /// # Errors
    /// If the caller or the total exceeds its limit; requests of the daemon itself and of the operator are not limited.
    pub fn admit(&self, caller: &Caller) -> Result<(), Limited> {
        match (caller.for_whom(), caller.identity()) {
            (Some(id), _) => self.count(&id.to_string())?,
            // The identity in the certificate is counted instead, once it is known.
            (None, Identity::Requester { .. } | Identity::CertificateRequester(_)) => {}
            (None, _) => return Ok(()),
        }
        match &self.total {
            Some(total) if total.check().is_err() => Err(Limited::Total),
            _ => Ok(()),
        }
    }

    /// Counts the identities in a certificate unless they are the caller.
    ///
    /// # Errors
    /// If one of them exceeds its limit.
    pub fn admit_names(&self, caller: &Caller, template: &Template) -> Result<(), Limited> {
        for name in &template.names {
            match (name, caller.for_whom()) {
                (Name::Spiffe(id), Some(caller)) if id != caller => self.count(&id.to_string())?,
                (Name::Spiffe(id), None)
                    if matches!(caller.identity(), Identity::Requester { .. } | Identity::CertificateRequester(_)) =>
                {
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
    fn defaults_hold_and_zero_is_no_limit() {
        let burst = |rate, burst, seconds| quota(rate, burst, seconds).map(|quota| quota.burst_size().get());
        let settings = parse("");
        assert_eq!(burst(settings.per_identity, settings.per_identity_burst, IDENTITY_BURST), Some(1000));
        assert_eq!(burst(settings.total, settings.total_burst, TOTAL_BURST), Some(20_000));
        assert_eq!(burst(NonZeroU32::new(3), NonZeroU32::new(7), TOTAL_BURST), Some(7));
        assert_eq!(parse("per_identity = 0\ntotal = 0"), Settings::NONE);
        assert!(toml::from_str::<Settings>("total = -1").is_err());
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
