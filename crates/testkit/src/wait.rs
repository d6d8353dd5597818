//! Waiting for a condition.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// Maximum time before a test fails: generous, for loaded machines.
pub const PATIENCE: Duration = Duration::from_secs(180);

const PAUSE: Duration = Duration::from_millis(20);

/// The result of a poll: `true` and `Some` end the wait.
pub trait Polled {
    /// The result of the wait.
    type Value;
    /// The result, if the wait is over.
    fn done(self) -> Option<Self::Value>;
}

impl Polled for bool {
    type Value = ();
    fn done(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Polled for Option<T> {
    type Value = T;
    fn done(self) -> Self {
        self
    }
}

/// Polls until the result is `true` or `Some`.
///
/// # Panics
/// After [`PATIENCE`], with the message `what`; [`std::fmt::from_fn`] can describe the state at that time.
pub async fn eventually<P: Polled>(what: impl Display, mut poll: impl AsyncFnMut() -> P) -> P::Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll().await.done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`eventually`] outside of async code.
///
/// # Panics
/// After [`PATIENCE`], with the message `what`; [`std::fmt::from_fn`] can describe the state at that time.
pub fn eventually_blocking<P: Polled>(what: impl Display, mut poll: impl FnMut() -> P) -> P::Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll().done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(PAUSE);
    }
}
