//! The gRPC endpoint: TLS, limits, health, reflection, and a thin service in front of the issuance pipeline.
//!
//! Makes no decisions about certificates: `auth` authenticates, [`crate::issue`] issues. Started with
//! [`server::serve`].

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
