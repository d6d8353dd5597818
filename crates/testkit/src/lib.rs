//! The test kit: tokens, plug-in CAs, daemons, agents and API servers for integration tests.

#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::missing_errors_doc,
    clippy::new_without_default,
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

pub mod api_server;
pub mod ask;
pub mod ca;
pub mod daemon;
pub mod faulty;
pub mod http2;
pub mod mount;
pub mod plug_in;
pub mod random;
pub mod softhsm;
pub mod wait;

/// Root directory of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// A program of the package under test, which cargo builds before its integration tests.
pub fn program(name: &str) -> PathBuf {
    profile_dir().join(name)
}

/// Directory for files of tests: target/tmp.
pub fn tmp() -> PathBuf {
    let tmp = target_dir().join("tmp");
    fs::create_dir_all(&tmp).unwrap();
    tmp
}

/// The directory target/.
fn target_dir() -> PathBuf {
    profile_dir().parent().unwrap().to_owned()
}

/// target/PROFILE; the test program itself is in its subdirectory deps.
fn profile_dir() -> PathBuf {
    env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}
