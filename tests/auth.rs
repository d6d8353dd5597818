//! Who calls: every way to be refused, and the ways to be known.

#[path = "auth/certificates.rs"]
mod certificates;
#[path = "auth/fetching.rs"]
mod fetching;
#[path = "auth/handshake.rs"]
mod handshake;
#[path = "auth/keys.rs"]
mod keys;
#[path = "auth/tokens.rs"]
mod tokens;
