//! Istio's certificate service (`istio.v1.auth`), generated from proto/ca.proto.
#![allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::as_conversions,
    clippy::missing_errors_doc,
    reason = "generated; tests/generated.rs generates it again and compares"
)]

include!("generated/istio.v1.auth.rs");

/// The encoded FileDescriptorSet of proto/ca.proto and its imports, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/istio.v1.auth.fds.bin");
