//! Many concurrent daemons on few cores: those that are late are run again alone.

use std::sync::{PoisonError, RwLock};

/// Held shared by concurrent runs, and exclusively by a run that is alone.
static CROWD: RwLock<()> = RwLock::new(());

/// Runs concurrently with others; waits while a test runs alone.
pub fn beside<T>(test: impl FnOnce() -> T) -> T {
    let _turn = CROWD.read().unwrap_or_else(PoisonError::into_inner);
    test()
}

/// Runs alone: waits for all concurrent runs, and lets no others start.
pub fn alone<T>(test: impl FnOnce() -> T) -> T {
    let _turn = CROWD.write().unwrap_or_else(PoisonError::into_inner);
    test()
}

/// Runs concurrently with others, and again alone if that fails.
pub fn beside_or_alone(name: &str, mut test: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let Err(reason) = beside(&mut test) else { return Ok(()) };
    println!("{name}: {reason}; tried again alone");
    alone(test)
}
