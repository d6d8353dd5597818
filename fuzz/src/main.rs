//! A coverage-guided fuzzer (libFuzzer) of the parsers that read input from outside. `FUZZ_TARGET` selects one of
//! [`targets::TARGETS`]; `scripts/fuzz.sh` builds and runs it.

#![no_main]

/// The daemon's own files: the rest of the daemon would take longer to build than it is fuzzed.
#[path = "../../src/auth/jwt/compact.rs"]
#[allow(dead_code, reason = "only the parser is called")]
mod compact;
#[path = "../../src/auth/received.rs"]
#[allow(dead_code, reason = "only the parser's errors use it")]
mod received;
mod targets;

/// Where the daemon's files look for each other.
mod auth {
    pub(crate) use crate::received;
}

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static RUN: LazyLock<targets::Target> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names what is fuzzed");
    let target = targets::TARGETS.into_iter().find(|(name, _)| *name == wanted);
    target.unwrap_or_else(|| panic!("there is no target {wanted}")).1
});

fuzz_target!(|input: &[u8]| {
    RUN(input);
});
