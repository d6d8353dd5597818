//! Counters of each token since the start, for the metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one token; they never decrease.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The counters at one moment.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Snapshot {
            /// The token.
            pub token: Arc<str>,
            /// Requests in flight at its host.
            pub in_flight: usize,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self, token: Arc<str>, in_flight: usize) -> Snapshot {
                Snapshot { token, in_flight, $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Signatures received.
    signed,
    /// Certificates that its hosts have signed for this process by their own count. Reported at each keep-alive, so it
    /// lags behind `signed`.
    reported,
    /// Signatures that did not verify.
    wrong,
    /// Requests that the host's own limits forbade.
    refused,
    /// Requests for certificates rejected by a limit of the host on their number.
    limited,
    /// Requests that failed with a PKCS#11 error.
    faults,
    /// Requests whose deadline passed at the token.
    expired,
    /// Requests that were retried because their host died or failed.
    retried,
    /// Hosts that were started or connected to.
    hosts,
    /// Hosts that were killed because they hung.
    hung,
    /// Canary signatures requested.
    canaries,
    /// Canary signatures that failed or were wrong.
    canaries_failed,
    /// Times the token was taken out of service.
    outages,
    /// Nanoseconds between a request's frame and its signature, summed over all signatures.
    busy_nanoseconds,
}

/// Increments a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
