//! The issuance log: every certificate is recorded durably before the token signs it.
//!
//! The log consists of segments with one JSON line per certificate about to be signed. An RFC 6962 tree covers the
//! lines, and its head is signed periodically. docs/ISSUANCE-LOG.md describes the format.
//!
//! Without the feature `writer`, the crate contains only the format, the verifier and the proofs, and needs no async
//! runtime. This is what an auditor needs.

pub mod checkpoint;
pub mod prove;
mod reader;
pub mod record;
mod segment;
pub mod show;
pub mod timestamp;
pub mod tree;
pub mod verify;

#[cfg(feature = "writer")]
mod checkpointer;
#[cfg(feature = "writer")]
mod confirmation;
#[cfg(feature = "writer")]
mod log;
#[cfg(feature = "writer")]
mod queue;
#[cfg(feature = "writer")]
mod recover;
#[cfg(feature = "writer")]
mod retention;
#[cfg(feature = "writer")]
mod stats;
#[cfg(feature = "writer")]
mod writer;

pub use checkpoint::Checkpoint;
#[cfg(feature = "writer")]
pub use checkpoint::{CheckpointSignError, CheckpointSignature, CheckpointSigner};
#[cfg(feature = "writer")]
pub use checkpointer::Ship;
#[cfg(feature = "writer")]
pub use confirmation::{Confirmation, store_trusted_time};
#[cfg(feature = "writer")]
pub use log::{CheckpointHealth, CrlIntent, Intent, Log, LogError, LogHealth, Opened, Outcome, Recorded, Settings};
#[cfg(feature = "writer")]
pub use recover::{Examined, Lock, OpenError, SetAside};
pub use segment::CHECKPOINT;
#[cfg(feature = "writer")]
pub use stats::Stats;

#[cfg(all(test, feature = "writer"))]
mod tests;
