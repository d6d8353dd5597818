//! Many daemons beside each other on few cores: what is late there is judged alone.

use std::sync::{PoisonError, RwLock};

/// Held by all that may run beside each other, and whole by whoever is judged alone.
static CROWD: RwLock<()> = RwLock::new(());

/// Runs beside others; waits while somebody is judged alone.
pub fn beside<T>(test: impl FnOnce() -> T) -> T {
    let _turn = CROWD.read().unwrap_or_else(PoisonError::into_inner);
    test()
}

/// Runs alone; waits for all that runs beside each other, and lets nothing else begin.
pub fn alone<T>(test: impl FnOnce() -> T) -> T {
    let _turn = CROWD.write().unwrap_or_else(PoisonError::into_inner);
    test()
}

/// Runs beside others, and once more alone if that fails.
pub fn beside_or_alone(name: &str, mut test: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let Err(reason) = beside(&mut test) else { return Ok(()) };
    println!("{name}: {reason}; tried again alone");
    alone(test)
}
