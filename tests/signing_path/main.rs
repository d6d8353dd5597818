//! The whole issuance pipeline with real parts: `import` into a SoftHSM token, `serve`, gRPC over TLS, agents'
//! requests.
//!
//! Each test has a token, a bundle and a daemon of its own.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod activation;
mod client_certificates;
mod clock;
mod counted;
mod disk;
mod ending;
mod hostile;
mod judges;
mod log_key;
mod malformed;
mod measured;
mod outcomes;
mod overload;
mod refusals;
mod replies;
mod revocation;
mod starts;
mod swap;
mod telemetry;
mod tls;
