//! The status page in a real browser: Chromium opens the page of a daemon with traffic.
//!
//! Run by `make test-browser`, which installs Chromium. Screenshots are kept in target/tmp/status-page.

mod devtools;
mod page;
