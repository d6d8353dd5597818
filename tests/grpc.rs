//! The gRPC front end at its boundary: real sockets on the loopback, real TLS, real HTTP/2.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

#[path = "grpc/frames.rs"]
mod frames;
#[path = "grpc/harness.rs"]
mod harness;
#[path = "grpc/limits.rs"]
mod limits;
#[path = "grpc/serving.rs"]
mod serving;
#[path = "grpc/tls.rs"]
mod tls;
