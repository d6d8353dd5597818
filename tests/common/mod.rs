//! What the boundary tests share: a token for each test, and plug-in CAs to put into it.

#![allow(
    dead_code,
    clippy::mod_module_files,
    reason = "each test target uses its own part, and a file beside would be a target"
)]

pub mod ask;
pub mod ca;
pub mod daemon;
pub mod faulty;
pub mod mount;
pub mod plug_in;
pub mod softhsm;
