//! A watch that reports failures and recovery, and lists all objects again after each failure.
//!
//! kube's `watcher` resumes silently from the last resource version: its user does not learn of the recovery, and does
//! not notice state restored from a backup, which has an older version.

use std::{fmt::Debug, time::Duration};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource,
    runtime::{
        utils::Backoff,
        watcher::{self, Event, ExponentialBackoff},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{
    backoff,
    cluster::{WATCH_SECONDS, chain},
};

/// Delay before the first retry.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Maximum retry delay. docs/KUBERNETES.md promises it, so no jitter is added.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a watch must run after its list to count as recovered. Where `list` is permitted but `watch` is not, every
/// list succeeds.
const RECOVERED_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) enum WatchItem<K> {
    /// A list begins with `Init` and ends with `InitDone`.
    Event(Event<K>),
    /// The watch failed with this reason and will be restarted.
    Failed(String),
    /// The watch works again after a failure.
    Recovered,
}

/// Watches until dropped.
pub(super) fn watch_stream<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = WatchItem<K>> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = config.timeout(WATCH_SECONDS);
    restarting(move || watcher::watcher(api.clone(), config.clone()).boxed())
}

fn restarting<K: Send + 'static>(
    start: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>> + Send + 'static,
) -> impl Stream<Item = WatchItem<K>> + Send + 'static {
    let backoff = backoff::exponential(RETRY_MIN, RETRY_MAX);
    let watch = Watch { events: Some(start()), start, backoff, failing: false, recovered_at: None };
    stream::unfold(watch, |mut watch| async move { watch.next().await.map(|item| (item, watch)) })
}

struct Watch<K, S> {
    start: S,
    /// `None` after a failure.
    events: Option<BoxStream<'static, watcher::Result<Event<K>>>>,
    backoff: ExponentialBackoff,
    /// A failure was reported, and no recovery since.
    failing: bool,
    recovered_at: Option<Instant>,
}

impl<K, S: Fn() -> BoxStream<'static, watcher::Result<Event<K>>>> Watch<K, S> {
    async fn next(&mut self) -> Option<WatchItem<K>> {
        if self.events.is_none() {
            tokio::time::sleep(self.backoff.next().unwrap_or(RETRY_MAX)).await;
        }
        let events = self.events.get_or_insert_with(&self.start);
        let recovered_at = self.recovered_at;
        let recovered = async {
            match recovered_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = events.next() => event?,
            () = recovered => {
                (self.recovered_at, self.failing) = (None, false);
                self.backoff.reset();
                return Some(WatchItem::Recovered);
            }
        };
        match event {
            Ok(event) => {
                if self.failing && matches!(event, Event::InitDone) {
                    self.recovered_at = Some(Instant::now() + RECOVERED_AFTER);
                }
                Some(WatchItem::Event(event))
            }
            Err(error) => {
                (self.events, self.failing, self.recovered_at) = (None, true, None);
                Some(WatchItem::Failed(describe(&error)))
            }
        }
    }
}

/// The error with its causes. The API server's own text for a kind that it does not know is "404 page not found".
fn describe(error: &watcher::Error) -> String {
    let cause = match error {
        watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause) => Some(cause),
        _ => None,
    };
    match cause {
        Some(kube::Error::Api(status)) if status.code == 404 => {
            "the API server does not know this kind of object (404); install its CustomResourceDefinition".to_owned()
        }
        _ => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn kinds(items: &[WatchItem<u8>]) -> Vec<&str> {
        let kind = |item: &WatchItem<u8>| match item {
            WatchItem::Event(Event::InitDone) => "listed",
            WatchItem::Event(_) => "event",
            WatchItem::Failed(_) => "failed",
            WatchItem::Recovered => "recovered",
        };
        items.iter().map(kind).collect()
    }

    /// Runs a watch whose attempts yield items by letter (`l` a complete list, `e` an event, `f` a failure) and returns
    /// its first `count` items and the number of attempts.
    async fn watch(attempts: &'static [&'static str], count: usize) -> (Vec<WatchItem<u8>>, usize) {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let make = move || {
            let attempt = attempts.get(counted.fetch_add(1, Ordering::SeqCst)).copied().unwrap_or_default();
            let event = |letter| match letter {
                'l' => Ok(Event::InitDone),
                'e' => Ok(Event::Apply(1)),
                _ => Err(watcher::Error::NoResourceVersion),
            };
            stream::iter(attempt.chars().map(event)).chain(stream::pending()).boxed()
        };
        let items = restarting(make).take(count).collect().await;
        (items, made.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn watch_lists_again_after_a_failure_and_reports_recovery_once_it_lasts() {
        let (items, made) = watch(&["lef", "f", "le"], 7).await;
        assert_eq!(kinds(&items), ["listed", "event", "failed", "failed", "listed", "event", "recovered"]);
        assert_eq!(made, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn list_without_a_watch_is_not_reported_as_recovery() {
        let (items, _) = watch(&["lf", "lf", "lf", "l"], 8).await;
        let expected = ["listed", "failed", "listed", "failed", "listed", "failed", "listed", "recovered"];
        assert_eq!(kinds(&items), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn watch_that_never_failed_does_not_report_recovery() {
        let items = tokio::time::timeout(RECOVERED_AFTER * 10, watch(&["l"], 2)).await;
        assert!(items.is_err(), "{items:?}");
    }
}
