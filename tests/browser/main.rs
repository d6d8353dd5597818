//! The status page in a real browser: a daemon with traffic, and Chromium that looks at it.
//!
//! Runs by `make test-browser`, which installs Chromium. What is seen is kept as pictures in target/tmp/status-page.

mod devtools;
mod page;
