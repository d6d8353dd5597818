//! Kubernetes: the API servers of the configured clusters, and the controllers that act on them.
//!
//! The daemon runs without it too, and with only what is configured: no object is read or written, and no permission
//! needed, that the configuration does not name. Certificates come from `issue` alone, as everybody's do. Called by
//! `daemon`.

pub mod cluster;
pub mod leader;
pub mod pods;
pub mod reviewer;
pub mod settings;

pub use cluster::{Cluster, ClusterError, Clusters};
pub use settings::Settings;
