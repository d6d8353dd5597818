//! Two bounded queues of requests waiting for a token; first in, first out within each.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{job::Job, router::Router};
use crate::signer::{Priority, SignError};

/// The interval at which abandoned requests are removed. It does not delay their callers, whose deadline is a timer in
/// [`Pool`](super::Pool).
const SWEEP_INTERVAL: Duration = Duration::from_millis(25);

/// While both queues have requests, every fourth one is taken from the normal queue, which therefore never starves.
const BULK_SHARE: u32 = 4;

/// The two queues.
#[derive(Debug)]
pub(super) struct Queues {
    bulk: VecDeque<Job>,
    first: VecDeque<Job>,
    limit: usize,
    taken: u32,
}

impl Queues {
    pub(super) fn new(limit: usize) -> Self {
        Self { bulk: VecDeque::new(), first: VecDeque::new(), limit, taken: 0 }
    }

    fn of(&mut self, priority: Priority) -> &mut VecDeque<Job> {
        match priority {
            Priority::Normal => &mut self.bulk,
            Priority::High => &mut self.first,
        }
    }

    /// The number of queued requests: normal, high priority.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.bulk.len(), self.first.len())
    }

    /// Adds a request at the end of its queue.
    pub(super) fn push(&mut self, job: Job) -> Result<(), SignError> {
        let limit = self.limit;
        let queue = self.of(job.priority);
        if queue.len() >= limit {
            return Err(SignError::QueueFull);
        }
        queue.push_back(job);
        Ok(())
    }

    /// Puts a request that was in flight back at the front of its queue, regardless of the limit.
    pub(super) fn put_back(&mut self, job: Job) {
        self.of(job.priority).push_front(job);
    }

    /// Takes the next request for which `may` is true.
    pub(super) fn take(&mut self, mut may: impl FnMut(&Job) -> bool) -> Option<Job> {
        if self.bulk.is_empty() && self.first.is_empty() {
            return None;
        }
        self.taken = self.taken.wrapping_add(1);
        let order = if self.taken.is_multiple_of(BULK_SHARE) {
            [Priority::Normal, Priority::High]
        } else {
            [Priority::High, Priority::Normal]
        };
        order.into_iter().find_map(|priority| {
            let queue = self.of(priority);
            let at = queue.iter().position(|job| !job.is_abandoned() && may(job))?;
            queue.remove(at)
        })
    }

    /// Removes abandoned requests, and answers those for which `verdict` returns an error.
    pub(super) fn sweep(&mut self, mut verdict: impl FnMut(&mut Job) -> Option<SignError>) {
        for queue in [&mut self.bulk, &mut self.first] {
            for mut job in std::mem::take(queue) {
                match verdict(&mut job) {
                    Some(error) => {
                        job.answer(Err(error));
                    }
                    None if job.is_abandoned() => {}
                    None => queue.push_back(job),
                }
            }
        }
    }
}

/// Sweeps the queues until the pool ends.
pub(super) async fn sweep(router: Arc<Router>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = router.ending.cancelled() => return,
            _ = interval.tick() => router.sweep(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::{
        super::job::{Job, Message},
        *,
    };
    use crate::signer::Context;
    use token_host::protocol::Kind;

    type Answer = oneshot::Receiver<Result<crate::signer::Signed, SignError>>;

    fn job(priority: Priority, id: &str) -> (Job, Answer) {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(1);
        let context = Context { request_id: id.into(), deadline, priority, avoid: Vec::new() };
        (Job::new(Kind::Leaf, [0; 32], Message::Bytes(Arc::from(&b"m"[..])), &context, reply), answer)
    }

    fn id(job: &Job) -> String {
        job.sign(Instant::now()).request_id.to_owned()
    }

    #[test]
    fn first_class_is_preferred_and_bulk_never_starves() {
        let mut queues = Queues::new(100);
        let mut answers = Vec::new();
        for i in 0..8 {
            for (priority, name) in [(Priority::Normal, "b"), (Priority::High, "f")] {
                let (job, answer) = job(priority, &format!("{name}{i}"));
                queues.push(job).unwrap();
                answers.push(answer);
            }
        }
        let order: Vec<String> = std::iter::from_fn(|| queues.take(|_| true)).map(|job| id(&job)).collect();
        let expected = "f0 f1 f2 b0 f3 f4 f5 b1 f6 f7 b2 b3 b4 b5 b6 b7";
        assert_eq!(order.join(" "), expected);
    }

    #[test]
    fn each_queue_has_its_own_limit() {
        let mut queues = Queues::new(2);
        let mut answers = Vec::new();
        for (priority, good) in [
            (Priority::Normal, true),
            (Priority::Normal, true),
            (Priority::Normal, false),
            (Priority::High, true),
            (Priority::High, true),
            (Priority::High, false),
        ] {
            let (job, answer) = job(priority, "x");
            assert_eq!(queues.push(job).is_ok(), good, "{priority:?}");
            answers.push(answer);
        }
    }

    #[test]
    fn sweep_removes_abandoned_and_refused_requests() {
        let mut queues = Queues::new(10);
        let (kept, _kept_answer) = job(Priority::Normal, "kept");
        let (gone, gone_answer) = job(Priority::Normal, "gone");
        let (late, mut late_answer) = job(Priority::High, "late");
        for job in [kept, gone, late] {
            queues.push(job).unwrap();
        }
        drop(gone_answer);
        queues.sweep(|job| (id(job) == "late").then_some(SignError::Deadline));
        assert_eq!(queues.len(), (1, 0));
        assert!(matches!(late_answer.try_recv(), Ok(Err(SignError::Deadline))));
        assert_eq!(id(&queues.take(|_| true).unwrap()), "kept");
    }

    #[test]
    fn request_put_back_goes_before_all_others() {
        let mut queues = Queues::new(1);
        let (waiting, _a) = job(Priority::Normal, "waiting");
        let (back, _b) = job(Priority::Normal, "back");
        queues.push(waiting).unwrap();
        queues.put_back(back);
        assert_eq!(id(&queues.take(|_| true).unwrap()), "back");
    }
}
