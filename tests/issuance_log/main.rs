//! The issuance log at its boundaries: failing disks, killed processes, the order of system calls, and the commands
//! that read the log.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod commands;
mod disk;
mod foreign;
mod killed;
mod order;
mod shipping;
mod writer;

use testkit::mount;
