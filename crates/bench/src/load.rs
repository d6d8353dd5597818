//! The two ways to load a server: closed loop (each worker asks again as soon as it is answered) and open loop
//! (requests arrive when they arrive, answered or not).
//!
//! A closed loop finds the highest rate; only an open loop shows the latency that clients see at a given rate, because
//! there a slow answer does not hold back the next question. In it, latency counts from the planned arrival.

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

/// More requests than this unanswered at once means that the server is not keeping up at all: further arrivals are
/// counted as errors instead of filling this process' memory.
const UNANSWERED_MAX: usize = 20_000;

/// What the load asks for: one request of worker `n`; an error is a short kind.
pub trait Ask: Send + Sync + 'static {
    /// Makes one request.
    fn ask(&self, worker: usize) -> impl Future<Output = Result<(), String>> + Send;
}

/// When a run measures.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// From here on answers count: connections and caches are warm.
    pub start: Instant,
    /// Nothing is asked from here on.
    pub end: Instant,
}

/// `workers` workers ask back to back until the window ends.
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
                // The rate is what was answered within the window, whenever it was asked: where answers take long, to
                // leave out what was under way at the start would leave out a good part.
                if answered >= window.end {
                    return samples;
                }
                let failed = outcome.is_err();
                if answered >= window.start {
                    sample(&mut samples, outcome, asked);
                }
                if failed {
                    // A refusing server is not to be hammered: it would be measured by its refusals.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    gather(tasks).await
}

/// What an open loop gave.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The answers to what was due within the window.
    pub samples: Samples,
    /// When each request was due, the warm-up's included, as offsets from the first moment.
    pub arrivals: Vec<Duration>,
    /// The window's start, as such an offset.
    pub from: Duration,
}

/// Requests arrive at `rate` a second with exponential gaps, spread over the workers' identities.
///
/// # Errors
/// When the arrivals' thread cannot be started.
pub async fn open<A: Ask>(ask: Arc<A>, workers: usize, rate: f64, window: Window) -> Result<Opened> {
    let runtime = Handle::current();
    let unanswered = Arc::new(AtomicUsize::new(0));
    // A thread of its own: the runtime's timer has a resolution of a millisecond, arrivals have microseconds between.
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
                    // Latencies are those of what was due after the warm-up.
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
    // Without randomness, which the crypto library does not run out of, the gaps are all the mean.
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
        // A closed loop of 4 would have asked 4 times.
        assert!(server.asked.load(Ordering::Relaxed) > 20);
        assert!(samples.latency().unwrap().p50_us >= 300_000);
        assert!(samples.errors.contains_key("first"));
    }
}
