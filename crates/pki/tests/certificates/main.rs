//! Certificates and plug-in CAs, verified by OpenSSL and webpki.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod agreement;
mod ceremony;
mod crl;
mod envoy;
mod judges;
mod leaf;
mod plugged_ca;
mod published_crls;
mod shapes;
