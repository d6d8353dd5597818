//! The issuance log at its boundaries: a disk that refuses, a process that is killed, the order of system calls, and the
//! commands that read what was written.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

#[path = "issuance_log/commands.rs"]
mod commands;
#[path = "issuance_log/disk.rs"]
mod disk;
#[path = "issuance_log/foreign.rs"]
mod foreign;
#[path = "issuance_log/killed.rs"]
mod killed;
#[path = "common/mount.rs"]
mod mount;
#[path = "issuance_log/order.rs"]
mod order;
#[path = "issuance_log/shipping.rs"]
mod shipping;
#[path = "issuance_log/writer.rs"]
mod writer;
