//! The two load models: closed loop (each worker sends its next request after a response) and open loop (requests
//! arrive independently of responses).
//!
//! A closed loop finds the highest rate; only an open loop shows the latency that clients see at a given rate, because
//! a slow response does not delay the next request. There, latency is measured from the planned arrival.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aws_lc_rs::rand;
use tokio::{runtime::Handle, task::JoinSet};

use super::report::Samples;

/// Maximum number of unanswered requests. With more, the server does not keep up at all; further arrivals are counted
/// as errors, so that this process does not run out of memory.
const UNANSWERED_MAX: usize = 20_000;

/// Sends requests: one request of worker `n`; an error is a short label.
pub trait Ask: Send + Sync + 'static {
    /// Sends one request.
    fn ask(&self, worker: usize) -> impl Future<Output = Result<(), String>> + Send;
}

/// The measured period.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Responses count from here on, when connections and caches are warm.
    pub start: Instant,
    /// No requests are sent after this.
    pub end: Instant,
}

/// Runs `workers` workers that send requests back to back until the window ends.
pub async fn closed<A: Ask>(ask: Arc<A>, workers: usize, window: Window) -> Samples {
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let ask = Arc::clone(&ask);
        tasks.spawn(async move {
            let mut samples = Samples::default();
            loop {
                let asked = Instant::now();
                if asked >= window.end {
                    return samples;
                }
                let outcome = ask.ask(worker).await;
                let answered = Instant::now();
                // The rate counts responses within the window, regardless of when the requests were sent: with slow
                // responses, ignoring those in flight at the start would ignore a large part.
                if answered >= window.end {
                    return samples;
                }
                let failed = outcome.is_err();
                if answered >= window.start {
                    sample(&mut samples, outcome, asked);
                }
                if failed {
                    // Pause after an error; otherwise mostly errors would be measured.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    gather(tasks).await
}

/// Result of an open loop.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Responses to requests that were due within the window.
    pub samples: Samples,
    /// When each request was due, including the warm-up, as offsets from the start.
    pub arrivals: Vec<Duration>,
    /// Start of the window, as such an offset.
    pub from: Duration,
}

/// Requests arrive at `rate` per second with exponential gaps, distributed over the workers' identities.
///
/// # Errors
/// If the thread for arrivals cannot be started.
pub async fn open<A: Ask>(ask: Arc<A>, workers: usize, rate: f64, window: Window) -> Result<Opened> {
    let runtime = Handle::current();
    let unanswered = Arc::new(AtomicUsize::new(0));
    // A separate thread: the runtime's timer has a resolution of a millisecond, but gaps are microseconds.
    let arrivals = move || {
        let mut tasks = JoinSet::new();
        let mut refused = Samples::default();
        let began = Instant::now();
        let from = window.start.saturating_duration_since(began);
        let mut due = Vec::new();
        let mut planned = began + gap(rate);
        let mut worker = 0;
        while planned < window.end {
            due.push(planned.saturating_duration_since(began));
            if let Some(wait) = planned.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            if unanswered.fetch_add(1, Ordering::Relaxed) < UNANSWERED_MAX {
                let (ask, unanswered, at) = (Arc::clone(&ask), Arc::clone(&unanswered), planned);
                let request = async move {
                    let mut samples = Samples::default();
                    let outcome = ask.ask(worker).await;
                    unanswered.fetch_sub(1, Ordering::Relaxed);
                    // Only requests due after the warm-up are measured.
                    if at >= window.start {
                        sample(&mut samples, outcome, at);
                    }
                    samples
                };
                tasks.spawn_on(request, &runtime);
            } else {
                unanswered.fetch_sub(1, Ordering::Relaxed);
                refused.failed("not sent, too many unanswered".into());
            }
            worker = (worker + 1) % workers.max(1);
            planned += gap(rate);
        }
        (tasks, refused, due, from)
    };
    let (tasks, mut samples, arrivals, from) =
        tokio::task::spawn_blocking(arrivals).await.context("the arrivals ended")?;
    samples.merge(gather(tasks).await);
    Ok(Opened { samples, arrivals, from })
}

fn sample(samples: &mut Samples, outcome: Result<(), String>, due: Instant) {
    match outcome {
        Ok(()) => samples.latencies.push(due.elapsed()),
        Err(kind) => samples.failed(kind),
    }
}

async fn gather(mut tasks: JoinSet<Samples>) -> Samples {
    let mut all = Samples::default();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(samples) => all.merge(samples),
            Err(error) => all.failed(error.to_string()),
        }
    }
    all
}

/// An exponentially distributed gap with mean 1 / `rate` seconds.
pub(super) fn gap(rate: f64) -> Duration {
    let mut bytes = [0; 4];
    // If the crypto library has no randomness, which does not happen, all gaps are the mean.
    let uniform = match rand::fill(&mut bytes) {
        Ok(()) => (f64::from(u32::from_be_bytes(bytes)) + 0.5) / 4_294_967_296.0,
        Err(_) => std::f64::consts::E.recip(),
    };
    Duration::try_from_secs_f64(-uniform.ln() / rate).unwrap_or(Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Server {
        took: Duration,
        asked: AtomicUsize,
    }

    impl Ask for Server {
        async fn ask(&self, worker: usize) -> Result<(), String> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.took).await;
            if worker == 0 { Err("first".into()) } else { Ok(()) }
        }
    }

    fn window(milliseconds: u64) -> Window {
        let start = Instant::now();
        Window { start, end: start + Duration::from_millis(milliseconds) }
    }

    #[test]
    fn gaps_have_the_mean_of_the_rate() {
        let sum: f64 = (0..20_000).map(|_| gap(1000.0).as_secs_f64()).sum();
        assert!((18.0..22.0).contains(&sum), "20,000 gaps at 1,000 a second took {sum} s");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closed_loop_asks_as_fast_as_it_is_answered() {
        let server = Arc::new(Server { took: Duration::from_millis(20), asked: AtomicUsize::new(0) });
        let samples = closed(Arc::clone(&server), 2, window(200)).await;
        let asked = server.asked.load(Ordering::Relaxed);
        let sampled = samples.latencies.len() + usize::try_from(samples.errors["first"]).unwrap();
        assert!((1..=22).contains(&asked), "{asked}");
        assert!((asked.saturating_sub(2)..=asked).contains(&sampled), "{sampled} of {asked}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closed_loop_counts_what_was_under_way_when_the_window_began() {
        let server = Arc::new(Server { took: Duration::from_millis(300), asked: AtomicUsize::new(0) });
        let start = Instant::now() + Duration::from_millis(100);
        let samples = closed(server, 8, Window { start, end: start + Duration::from_millis(350) }).await;
        assert_eq!(samples.latencies.len(), 7, "all but that of the worker whose requests fail");
        assert_eq!(samples.errors["first"], 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_open_loop_does_not_wait_for_answers() {
        let server = Arc::new(Server { took: Duration::from_millis(300), asked: AtomicUsize::new(0) });
        let opened = open(Arc::clone(&server), 4, 200.0, window(300)).await.unwrap();
        let samples = opened.samples;
        assert_eq!(opened.arrivals.len(), server.asked.load(Ordering::Relaxed));
        assert!(opened.arrivals.is_sorted());
        // A closed loop of 4 would have sent 4 requests.
        assert!(server.asked.load(Ordering::Relaxed) > 20);
        assert!(samples.latency().unwrap().p50_us >= 300_000);
        assert!(samples.errors.contains_key("first"));
    }
}
