//! Aggregates the lines that a client can cause: the first of a kind in full, then their number every few seconds.
//!
//! A line is one of these if it has the field `kind`, a label of a closed set, or comes from a library, which logs what
//! the peer of a connection did. Other lines always pass. Lines are counted by their place in the program and their
//! kind, never by anything that a client chooses, so both memory and output are bounded.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, SigmaskHow};
use parking_lot::{Condvar, Mutex};
use tracing::{
    Event, Level, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context};

/// How many lines of one kind are written at once: a few workloads with the same problem are all seen.
const BURST: u32 = 5;
/// After this time another line of a kind is written in full.
const REFILL: Duration = Duration::from_secs(15);
/// How often the numbers are written.
const INTERVAL: Duration = Duration::from_secs(5);
/// The most kinds: some hundred places, and some labels for a few of them.
const MAX_KINDS: usize = 1024;
/// Maximum length of the text that a count repeats, in characters.
const SHOWN: usize = 100;
/// The crates whose lines are aggregated only where they have a kind.
const OURS: &[&str] =
    &["audit_log", "istio_hsm_ca", "istio_hsm_ca_token_host", "pki", "process", "token", "token_host"];

/// Counts lines by kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Repeats(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the first line since the last report is counted.
    counted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    kinds: HashMap<Key, Kind>,
    has_counted: bool,
}

/// The place of a line in the program, and its label.
type Key = (Identifier, String);

#[derive(Debug)]
struct Kind {
    level: Level,
    /// The text of the first line.
    line: String,
    /// How many lines may be written in full.
    tokens: u32,
    /// When `tokens` was last increased.
    refilled: Instant,
    counted: u64,
}

/// Lines that were counted instead of written.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    level: Level,
    line: String,
    kind: String,
    count: u64,
}

impl Repeats {
    /// Starts the thread that writes the numbers.
    pub(super) fn start(&self) -> std::io::Result<()> {
        let repeats = self.clone();
        let report = move || {
            loop {
                repeats.wait();
                std::thread::sleep(INTERVAL);
                repeats.take(Instant::now()).into_iter().for_each(Counted::write);
            }
        };
        // The thread inherits the mask. A signal that a program waits for must not end the process here instead.
        let unmasked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let started = std::thread::Builder::new().name("log-repeats".to_owned()).spawn(report);
        unmasked.thread_set_mask()?;
        started.map(drop)
    }

    /// Whether to write a line in full; else it is counted.
    fn admit(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        let is_ours = metadata.target().split("::").next().is_some_and(|krate| OURS.contains(&krate));
        if is_ours && metadata.fields().field("kind").is_none() {
            return true;
        }
        let mut seen = Seen::default();
        event.record(&mut seen);
        self.admit_kind((metadata.callsite(), seen.label), *metadata.level(), seen.line, now)
    }

    fn admit_kind(&self, key: Key, level: Level, line: String, now: Instant) -> bool {
        let mut state = self.0.state.lock();
        let State { kinds, has_counted } = &mut *state;
        let key = if kinds.len() < MAX_KINDS || kinds.contains_key(&key) { key } else { (key.0, String::new()) };
        let kind = kinds.entry(key).or_insert_with(|| Kind { level, line, tokens: BURST, refilled: now, counted: 0 });
        kind.refill(now);
        if let Some(left) = kind.tokens.checked_sub(1) {
            kind.tokens = left;
            return true;
        }
        kind.counted = kind.counted.saturating_add(1);
        if !std::mem::replace(has_counted, true) {
            self.0.counted.notify_all();
        }
        false
    }

    fn wait(&self) {
        self.0.counted.wait_while(&mut self.0.state.lock(), |state| !state.has_counted);
    }

    /// The numbers since the last report. Kinds that could write a whole burst again are forgotten.
    fn take(&self, now: Instant) -> Vec<Counted> {
        let mut state = self.0.state.lock();
        state.has_counted = false;
        let mut counted = Vec::new();
        state.kinds.retain(|(_, label), kind| {
            kind.refill(now);
            if kind.counted > 0 {
                let count = std::mem::take(&mut kind.counted);
                counted.push(Counted { level: kind.level, line: kind.line.clone(), kind: label.clone(), count });
            }
            kind.tokens < BURST
        });
        counted
    }
}

impl Kind {
    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
    }
}

impl Counted {
    fn write(self) {
        let Self { level, line, kind, count } = self;
        let kind = Some(kind).filter(|kind| !kind.is_empty());
        // The field is not called `kind`: this line must pass.
        if level <= Level::WARN {
            tracing::warn!(count, of_kind = kind, line, "more lines of this kind were counted, not written");
        } else {
            tracing::info!(count, of_kind = kind, line, "more lines of this kind were counted, not written");
        }
    }
}

/// What a line says about its kind.
#[derive(Default)]
struct Seen {
    label: String,
    line: String,
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            // The second is the module of a line of the `log` crate, whose lines of one level have one place.
            "kind" | "log.target" => self.label = value.chars().take(SHOWN).collect(),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "kind" => self.label = format!("{value:?}").chars().take(SHOWN).collect(),
            "message" => self.line = format!("{value:?}").chars().take(SHOWN).flat_map(char::escape_debug).collect(),
            _ => {}
        }
    }
}

/// A layer that gets only those events that are to be written in full.
///
/// Not a filter of that layer: when a per-layer filter rejects an event that no other layer takes, tracing-subscriber keeps
/// the rejection for the thread's next event.
pub(super) struct Aggregated<L> {
    pub(super) layer: L,
    pub(super) repeats: Repeats,
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for Aggregated<L> {
    fn on_layer(&mut self, subscriber: &mut S) {
        self.layer.on_layer(subscriber);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.layer.on_new_span(attributes, id, context);
    }

    fn on_record(&self, span: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.layer.on_record(span, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if self.repeats.admit(event, Instant::now()) {
            self.layer.on_event(event, context);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.layer.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.layer.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.layer.on_close(id, context);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts the events that reach it.
    struct Written(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Written {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn written(repeats: &Repeats, lines: impl FnOnce()) -> usize {
        let count = Arc::new(AtomicUsize::new(0));
        let layer = Aggregated { layer: Written(Arc::clone(&count)), repeats: repeats.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), lines);
        count.load(Ordering::Relaxed)
    }

    fn refused(kind: &str) {
        tracing::warn!(target: "istio_hsm_ca::grpc", kind, "refused");
    }

    #[test]
    fn repeated_lines_are_counted_by_kind() {
        let repeats = Repeats::default();
        let lines = || (0..100).for_each(|_| ["a", "b"].into_iter().for_each(refused));
        assert_eq!(written(&repeats, lines), 10);
        let mut counted = repeats.take(Instant::now());
        counted.sort_by(|one, other| one.kind.cmp(&other.kind));
        let expected =
            |kind: &str| Counted { level: Level::WARN, line: "refused".into(), kind: kind.into(), count: 95 };
        assert_eq!(counted, [expected("a"), expected("b")]);
        assert_eq!(repeats.take(Instant::now()), []);
    }

    #[test]
    fn our_lines_without_a_kind_always_pass() {
        let lines = || (0..100).for_each(|n| tracing::error!(target: "istio_hsm_ca::daemon", n, "not ready"));
        assert_eq!(written(&Repeats::default(), lines), 100);
    }

    #[test]
    fn lines_of_libraries_are_counted_by_place() {
        let repeats = Repeats::default();
        let lines = || {
            for n in 0..100 {
                tracing::warn!(target: "h2::proto::ping_pong", "recv PING ack that we never sent: {n}\n");
                tracing::error!(target: "rustls", "TLS alert received");
            }
        };
        assert_eq!(written(&repeats, lines), 10);
        let counted = repeats.take(Instant::now());
        assert!(counted.iter().any(|counted| counted.line == "recv PING ack that we never sent: 0\\n"), "{counted:?}");
    }

    #[test]
    fn lines_are_written_again_after_a_while_and_quiet_kinds_are_forgotten() {
        let repeats = Repeats::default();
        written(&repeats, || (0..20).for_each(|_| refused("a")));
        let now = Instant::now();
        assert_eq!(repeats.take(now).len(), 1);
        let (place, _) = repeats.0.state.lock().kinds.keys().next().unwrap().clone();
        let admit = |at| repeats.admit_kind((place.clone(), "a".into()), Level::WARN, String::new(), at);
        assert!(!admit(now));
        assert!(admit(now + REFILL));
        assert!(!admit(now + REFILL), "one line, not a burst");
        assert_eq!(repeats.take(now + REFILL).len(), 1);
        assert_eq!(repeats.take(now + REFILL * (BURST + 2)), []);
        assert!(repeats.0.state.lock().kinds.is_empty());
    }

    #[test]
    fn number_of_kinds_is_bounded() {
        let repeats = Repeats::default();
        written(&repeats, || (0..3 * MAX_KINDS).for_each(|n| refused(&n.to_string())));
        assert!(repeats.0.state.lock().kinds.len() <= MAX_KINDS + 1);
    }
}
