//! Simulates the queue M/D/s: what an ideal token would achieve with the same arrivals.
//!
//! Requests from a Poisson process wait in one queue for `sessions` sessions, each of which signs in the same time. No
//! daemon can respond faster. The run's own arrivals are replayed, so that both figures include the same randomness.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::report::Samples;

/// An ideal token.
#[derive(Clone, Copy, Debug)]
pub struct Ideal {
    /// Concurrent sessions.
    pub sessions: usize,
    /// Duration of a signature.
    pub signature: Duration,
}

impl Ideal {
    /// The latencies of these arrivals, which are sorted offsets from a common start. Those before `from` occupy the
    /// queue but are not measured.
    #[must_use]
    pub fn play(&self, arrivals: &[Duration], from: Duration) -> Samples {
        // When each session is free again, the earliest first.
        let mut free: BinaryHeap<Reverse<Duration>> =
            std::iter::repeat_n(Reverse(Duration::ZERO), self.sessions).collect();
        let mut samples = Samples::default();
        for arrival in arrivals {
            let Some(Reverse(soonest)) = free.pop() else { break };
            let end = soonest.max(*arrival) + self.signature;
            free.push(Reverse(end));
            if *arrival >= from {
                samples.latencies.push(end.saturating_sub(*arrival));
            }
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn requests_wait_for_the_next_free_session() {
        let arrivals = milliseconds(&[0, 1, 2, 30]);
        let one = Ideal { sessions: 1, signature: Duration::from_millis(10) };
        assert_eq!(one.play(&arrivals, Duration::ZERO).latencies, milliseconds(&[10, 19, 28, 10]));
        let two = Ideal { sessions: 2, ..one };
        assert_eq!(two.play(&arrivals, Duration::ZERO).latencies, milliseconds(&[10, 10, 18, 10]));
        // Earlier arrivals are not measured but occupy the queue.
        assert_eq!(two.play(&arrivals, Duration::from_millis(2)).latencies, milliseconds(&[18, 10]));
    }

    /// The mean wait in M/D/1 is rho D / (2 (1 - rho)) (Pollaczek and Khinchine).
    #[test]
    fn a_long_run_has_the_mean_wait_of_theory() {
        let (signature, mut at) = (Duration::from_millis(5), Duration::ZERO);
        let arrivals: Vec<Duration> = (0..200_000)
            .map(|_| {
                at += super::super::load::gap(100.0);
                at
            })
            .collect();
        let latencies = Ideal { sessions: 1, signature }.play(&arrivals, Duration::ZERO).latencies;
        let mean = latencies.iter().sum::<Duration>().as_secs_f64() / 200_000.0;
        assert!((0.0072..0.0078).contains(&mean), "5 ms and a mean wait of 2.5 ms at half load: {mean}");
    }
}
