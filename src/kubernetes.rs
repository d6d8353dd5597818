//! Kubernetes: the API servers of the configured clusters, and the controllers that act on them.
//!
//! The daemon runs without it too, and with only what is configured: no object is read or written, and no permission
//! needed, that the configuration does not name. Certificates come from `issue` alone, as everybody's do. Called by
//! `daemon`.

mod board;
pub mod checkpoints;
pub mod cluster;
mod controller;
pub mod csr_signer;
pub mod intermediate;
pub mod istiod_secret;
mod kept;
mod key;
pub mod leader;
pub mod permissions;
pub mod pods;
pub mod reviewer;
pub mod root_configmap;
pub mod secret;
pub mod settings;
pub mod standing;
mod watched;
pub mod workload_secret;

pub use cluster::{Cluster, ClusterError, Clusters};
pub use settings::Settings;
