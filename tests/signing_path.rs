//! The whole signing path on real parts: `import` into a SoftHSM token, `serve`, gRPC over TLS, an agent's requests.
//!
//! Each test has a token, a bundle and a daemon of its own.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "signing_path/client_certificates.rs"]
mod client_certificates;
#[path = "signing_path/counted.rs"]
mod counted;
#[path = "signing_path/disk.rs"]
mod disk;
#[path = "signing_path/ending.rs"]
mod ending;
#[path = "signing_path/judges.rs"]
mod judges;
#[path = "signing_path/malformed.rs"]
mod malformed;
#[path = "signing_path/measured.rs"]
mod measured;
#[path = "signing_path/outcomes.rs"]
mod outcomes;
#[path = "signing_path/overload.rs"]
mod overload;
#[path = "signing_path/refusals.rs"]
mod refusals;
#[path = "signing_path/replies.rs"]
mod replies;
#[path = "signing_path/starts.rs"]
mod starts;
#[path = "signing_path/swap.rs"]
mod swap;
#[path = "signing_path/telemetry.rs"]
mod telemetry;
#[path = "signing_path/tls.rs"]
mod tls;
