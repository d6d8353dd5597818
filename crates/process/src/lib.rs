//! Code shared by the programs for interaction with the operating system: clock, files, logging, process hardening and
//! the output of commands.

pub mod clock;
pub mod error;
pub mod files;
pub mod hardening;
pub mod logging;
mod origin;
pub mod output;
pub mod renamed_keys;

pub use origin::default_log_origin;
