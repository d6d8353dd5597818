//! How a controller stands, for readiness and the status page: told by the controllers, read by `daemon`.
//!
//! Nothing is done or left undone because of it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

/// How one controller of a cluster stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How much of it runs here: none of it while another replica leads.
    pub running: usize,
    /// When it last found or made everything as it should be.
    pub last_success: Option<SystemTime>,
    /// When something last failed, what, and why.
    pub last_error: Option<(SystemTime, String)>,
    /// What is not as it should be now: object and reason.
    pub failures: BTreeMap<String, String>,
}

impl Standing {
    /// What is wrong now, in one line; `None` where nothing is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let (object, reason) = self.failures.first_key_value()?;
        Some(match self.failures.len() {
            1 => format!("{object}: {reason}"),
            count => format!("{count} objects are not as they should be; {object}: {reason}"),
        })
    }
}

/// The controllers of a cluster, by name.
#[derive(Debug, Default)]
pub(super) struct Standings(Mutex<BTreeMap<&'static str, watch::Sender<Standing>>>);

impl Standings {
    /// One controller's standing, now and later.
    pub(super) fn watch(&self, controller: &'static str) -> watch::Receiver<Standing> {
        self.with(controller, watch::Sender::subscribe)
    }

    /// Changes a controller's standing; whoever watches it learns of it.
    pub(super) fn change(&self, controller: &'static str, change: impl FnOnce(&mut Standing)) {
        self.with(controller, |standing| standing.send_modify(change));
    }

    /// Every controller that was ever asked for.
    pub(super) fn all(&self) -> Vec<(&'static str, Standing)> {
        let standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standings.iter().map(|(name, standing)| (*name, standing.borrow().clone())).collect()
    }

    fn with<T>(&self, controller: &'static str, what: impl FnOnce(&watch::Sender<Standing>) -> T) -> T {
        let mut standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        what(standings.entry(controller).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_one_line() {
        let standings = Standings::default();
        let mut watch = standings.watch("a");
        assert_eq!(watch.borrow_and_update().trouble(), None);
        let fail = |object: &str| {
            standings.change("a", |standing| drop(standing.failures.insert(object.to_owned(), "forbidden".to_owned())));
        };
        fail("x/y");
        assert_eq!(watch.borrow_and_update().trouble().as_deref(), Some("x/y: forbidden"));
        fail("x/z");
        let trouble = watch.borrow_and_update().trouble().unwrap();
        assert_eq!(trouble, "2 objects are not as they should be; x/y: forbidden");
        assert_eq!(standings.all().len(), 1);
    }
}
