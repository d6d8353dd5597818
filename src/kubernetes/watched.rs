//! A watch that says when it fails and when it holds again.
//!
//! `kube`'s own goes on silently once the API server is back, so that nobody learns of its recovery, and a state that
//! was restored behind its back stays unseen. This one lists everything anew after each failure: what it shows is the
//! truth again, whatever was missed. Called by `controller` and `csr_signer`.

use std::{fmt::Debug, pin::Pin, time::Duration};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::cluster::{WATCH_SECONDS, chain};

/// The pause after a first failure; it doubles up to [`PAUSE_MOST`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: an API server that is back is found soon.
const PAUSE_MOST: Duration = Duration::from_secs(15);
/// A watch holds again when it has not failed for so long after its list: where `list` is allowed and `watch` is not,
/// every other attempt would look like a recovery.
const HOLDS: Duration = Duration::from_secs(2);

/// What is seen.
#[derive(Debug)]
pub(super) enum Seen<K> {
    /// An event; a list begins with `Init` and ends with `InitDone`.
    Event(Event<K>),
    /// The watch fails, and is begun anew.
    Trouble(String),
    /// The watch holds again.
    Holds,
}

/// Watches until dropped.
pub(super) fn watched<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Seen<K>> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = config.timeout(WATCH_SECONDS);
    from(move || watcher::watcher(api.clone(), config.clone()).boxed())
}

fn from<K: Send + 'static>(
    make: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>> + Send + 'static,
) -> impl Stream<Item = Seen<K>> + Send + 'static {
    let watch = Watch { events: make(), make, pause: PAUSE, failed: false, troubled: false, holds_at: None };
    stream::unfold(watch, |mut watch| async move { watch.next().await.map(|seen| (seen, watch)) })
}

struct Watch<K, M> {
    make: M,
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>,
    pause: Duration,
    /// Whether it is to be begun anew.
    failed: bool,
    /// Whether its last word was of trouble.
    troubled: bool,
    holds_at: Option<Instant>,
}

impl<K, M: Fn() -> BoxStream<'static, watcher::Result<Event<K>>>> Watch<K, M> {
    async fn next(&mut self) -> Option<Seen<K>> {
        if std::mem::take(&mut self.failed) {
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MOST);
            self.events = (self.make)();
        }
        let holds_at = self.holds_at;
        let holds = async {
            match holds_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = self.events.next() => event?,
            () = holds => {
                (self.holds_at, self.troubled, self.pause) = (None, false, PAUSE);
                return Some(Seen::Holds);
            }
        };
        match event {
            Ok(event) => {
                if self.troubled && matches!(event, Event::InitDone) {
                    self.holds_at = Some(Instant::now() + HOLDS);
                }
                Some(Seen::Event(event))
            }
            Err(error) => {
                (self.failed, self.troubled, self.holds_at) = (true, true, None);
                Some(Seen::Trouble(chain(&error)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn words(seen: &[Seen<u8>]) -> Vec<&str> {
        let word = |seen: &Seen<u8>| match seen {
            Seen::Event(Event::InitDone) => "listed",
            Seen::Event(_) => "event",
            Seen::Trouble(_) => "trouble",
            Seen::Holds => "holds",
        };
        seen.iter().map(word).collect()
    }

    /// A watch whose attempts fare as the texts say: `l` listed, `e` an event, `f` failed; each then stays silent.
    async fn fares(attempts: &'static [&'static str], count: usize) -> (Vec<Seen<u8>>, usize) {
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
        let seen = from(make).take(count).collect().await;
        (seen, made.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_everything_is_listed_and_it_holds_when_that_lasts() {
        let (seen, made) = fares(&["lef", "f", "le"], 7).await;
        assert_eq!(words(&seen), ["listed", "event", "trouble", "trouble", "listed", "event", "holds"]);
        assert_eq!(made, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_without_a_watch_is_no_recovery() {
        let (seen, _) = fares(&["lf", "lf", "lf", "l"], 8).await;
        let expected = ["listed", "trouble", "listed", "trouble", "listed", "trouble", "listed", "holds"];
        assert_eq!(words(&seen), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_never_failed_has_no_need_to_say_that_it_holds() {
        let one = tokio::time::timeout(HOLDS * 10, fares(&["l"], 2)).await;
        assert!(one.is_err(), "{one:?}");
    }
}
