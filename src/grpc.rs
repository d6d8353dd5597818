//! The gRPC endpoint: TLS, limits, health, reflection, and a thin service over the one path.
//!
//! Decides nothing about certificates: who asks is `auth`'s word, what they get is [`crate::issue`]'s. Started by
//! the daemon with [`server::serve`].

pub mod connection;
pub mod health;
pub mod listener;
pub mod server;
pub mod service;
pub mod serving;
pub mod settings;
pub mod status;
pub mod tls;

/// Istio's certificate service, generated from proto/ca.proto.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::as_conversions,
    clippy::missing_errors_doc,
    reason = "generated; tests/grpc.rs generates it again and compares"
)]
pub mod generated {
    include!("grpc/generated/istio.v1.auth.rs");

    /// The encoded FileDescriptorSet of proto/ca.proto and its imports, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("grpc/generated/istio.v1.auth.fds.bin");
}

pub use settings::Settings;
