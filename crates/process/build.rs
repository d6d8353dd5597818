//! Tells the program when it was built: before that, no clock is right.

use std::{env, time::SystemTime};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // The convention of reproducible builds.
    #[expect(clippy::disallowed_methods, reason = "a build script has no configuration but its environment")]
    let given = env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    #[expect(clippy::disallowed_methods, reason = "this is the time that the program cannot know")]
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("cargo::rustc-env=BUILT_AT={}", given.unwrap_or_else(now));
}
