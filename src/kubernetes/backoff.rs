//! Retry delays.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::watcher::ExponentialBackoff;

/// Delays that double from `min` to `max`, without end and without jitter.
pub(super) fn exponential(min: Duration, max: Duration) -> ExponentialBackoff {
    let delays = ExponentialBuilder::default().with_min_delay(min).with_max_delay(max).with_factor(2.0);
    delays.without_max_times().into()
}
