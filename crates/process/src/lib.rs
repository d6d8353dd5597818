//! What the programs share at the boundary to the operating system: the clock, logging, process hardening and the
//! output of commands.

pub mod clock;
pub mod error;
pub mod hardening;
pub mod logging;
pub mod output;
pub mod renamed_keys;
