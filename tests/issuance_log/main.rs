//! The issuance log at its boundaries: a disk that refuses, a process that is killed, the order of system calls, and the
//! commands that read what was written.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod commands;
mod disk;
mod foreign;
mod killed;
mod order;
mod shipping;
mod writer;

use testkit::mount;
