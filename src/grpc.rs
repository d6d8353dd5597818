//! The gRPC endpoint: TLS, limits, health, reflection, and a thin service over the one path.
//!
//! Decides nothing about certificates: who asks is `auth`'s word, what they get is [`crate::issue`]'s. Started by
//! the daemon with [`server::serve`].

pub mod admission;
pub mod connection;
pub mod health;
pub mod listener;
pub mod server;
pub mod service;
pub mod serving;
pub mod settings;
pub mod standing;
pub mod status;
pub mod tls;

pub use settings::Settings;
