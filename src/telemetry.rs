//! Metrics, recent requests for the status page, and the request ID.

pub mod metrics;
pub mod recent;

use std::{fmt, sync::Arc};

use aws_lc_rs::rand;

/// ID of a request: 128 random bits in hexadecimal. It is in every log line of the request, in the issuance log, and in
/// the client's error.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A random ID. It only has to be unique; if the random generator fails, the process clock is used.
    #[must_use]
    pub fn random() -> Self {
        let mut bits = [0; 16];
        if rand::fill(&mut bits).is_err() {
            bits = unique();
        }
        Self(format!("{:032x}", u128::from_be_bytes(bits)).into())
    }

    /// The ID in hexadecimal.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A number not used before in this process: nanoseconds since the first call, and a counter.
fn unique() -> [u8; 16] {
    use std::{
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Instant,
    };

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    ((START.elapsed().as_nanos() << 64) | u128::from(count)).to_be_bytes()
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<RequestId> for Arc<str> {
    fn from(id: RequestId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_of_one_length() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| RequestId::random()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.as_str().len() == 32));
        assert_ne!(unique(), unique());
    }
}
