//! Certificates and plug-in CAs as OpenSSL and webpki see them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod leaf;
mod plugged_ca;
