//! Corrections of objects that others edit.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// If one object needs more corrections than this within [`CONFLICT_PAUSE`], another writer changes it, too. It is then
/// left alone for that time.
const MAX_CORRECTIONS: u32 = 5;
pub(super) const CONFLICT_PAUSE: Duration = Duration::from_secs(60);
/// The failure of an object that is left alone.
pub(super) const ANOTHER_WRITER: &str =
    "another writer keeps changing it; stop that one (istiod writes it while it is the CA)";

/// Corrections by object: how many, and since when.
#[derive(Debug, Default)]
pub(super) struct Corrections(HashMap<String, (u32, Instant)>);

impl Corrections {
    /// Counts a correction and returns whether it is still within the limit.
    pub(super) fn may_correct(&mut self, object: &str) -> bool {
        self.0.retain(|_, (_, since)| since.elapsed() < CONFLICT_PAUSE);
        let (count, _) = self.0.entry(object.to_owned()).or_insert((0, Instant::now()));
        *count = count.saturating_add(1);
        *count <= MAX_CORRECTIONS
    }
}
