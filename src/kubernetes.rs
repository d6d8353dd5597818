//! Kubernetes: the clients of the configured clusters, and the controllers.
//!
//! Only objects that a configured feature needs are read or written. All certificates come from `issue`.

mod backoff;
pub mod cert_manager;
pub mod cluster;
pub mod controllers;
pub mod leader;
mod managed_secret;
pub mod permissions;
pub mod pods;
mod reconcile;
pub mod reviewer;
pub mod revocations;
pub mod secret;
pub mod served;
pub mod settings;
pub mod status;
mod watch_stream;

pub use cluster::{Cluster, ClusterError, Clusters};
pub use settings::Settings;
