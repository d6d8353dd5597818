//! The gRPC front end at its boundary: real sockets on loopback, real TLS, real HTTP/2.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod harness;
mod limits;
mod serving;
mod tls;
