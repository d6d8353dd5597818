//! Metrics, recent requests for the status page, and the id that ties a client's error to its log lines.

pub mod metrics;
pub mod recent;

use std::{fmt, sync::Arc};

use aws_lc_rs::rand;

/// The id of one request: 128 random bits as hexadecimal digits. It stands in every log line of the request, in
/// the issuance log, and in the error that the client sees.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Draws an id. It only has to be unique: should the generator fail, the clock of the process serves.
    #[must_use]
    pub fn random() -> Self {
        let mut bits = [0; 16];
        if rand::fill(&mut bits).is_err() {
            bits = unique();
        }
        Self(format!("{:032x}", u128::from_be_bytes(bits)).into())
    }

    /// The hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A number that this process has not used: nanoseconds since its first call, and a count.
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
