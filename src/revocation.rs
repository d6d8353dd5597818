//! Revocation: which certificates of this CA are revoked, and to whom no further ones are issued.
//!
//! The state is one document ([`state::Document`]) in a store that all replicas share: a file or a Kubernetes ConfigMap.
//! The operator's command changes it by compare-and-swap; each replica watches it and applies it to every request
//! ([`Revocations`]). A replica that loses contact with the store keeps the last state, and never goes back to an older
//! one. CRL numbers are reserved in the same document, so a replica that cannot reach the store cannot sign a CRL.
//!
//! This module neither signs nor publishes: `daemon::revocation` builds the CRL through the pipeline in `issue`.

pub mod block;
mod check;
pub mod file;
pub mod follow;
pub mod key_hash;
pub mod schedule;
pub mod state;
pub mod store;

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

pub use check::{Revocations, Subject};
pub use key_hash::KeyHash;
pub use store::{Store, StoreError};

/// The fraction of a CRL's lifetime after which it is replaced, as a divisor: an absent token does not affect the mesh for
/// four fifths of the lifetime.
pub const REFRESH_SHARE: u32 = 5;

/// `[revocation]`. Without the section, nothing is revoked and no CRL is signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the state document is.
    pub store: StoreSettings,
    /// Whether the CRL is published. Until then it is signed and can be judged, and nothing in the mesh changes.
    #[serde(default)]
    pub enabled: bool,
    /// The time from signing to nextUpdate of a CRL. A fifth of it is the interval at which it is replaced.
    #[serde(default = "Settings::default_lifetime", with = "humantime_serde")]
    pub lifetime: Duration,
    /// PEM files with the CRLs of the CAs above this one, and of the other roots in the bundle, which their own keys have
    /// signed. They are published together with this CA's.
    #[serde(default)]
    pub root_crl_files: Vec<PathBuf>,
    /// A file to which the daemon writes each new CRL of this CA once `enabled` is set, for other ways of publication.
    #[serde(default)]
    pub crl_file: Option<PathBuf>,
}

/// `[revocation] store`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum StoreSettings {
    /// A file, of one daemon or in a directory that all replicas share.
    File(PathBuf),
    /// The name of a ConfigMap in the daemon's namespace of the first cluster.
    ConfigMap(String),
}

impl Settings {
    /// Shortest permitted lifetime: verifiers reject every certificate once the CRL has expired.
    pub const LIFETIME_MIN: Duration = Duration::from_secs(24 * 3600);
    /// Longest permitted lifetime.
    pub const LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

    fn default_lifetime() -> Duration {
        Duration::from_secs(30 * 24 * 3600)
    }

    /// The age at which a CRL is replaced.
    #[must_use]
    pub fn refresh_after(&self) -> Duration {
        self.lifetime / REFRESH_SHARE
    }

    /// The ConfigMap with the state, if it is in a cluster.
    #[must_use]
    pub fn config_map(&self) -> Option<&str> {
        match &self.store {
            StoreSettings::ConfigMap(name) => Some(name),
            StoreSettings::File(_) => None,
        }
    }

    /// What is wrong with the section: the key, and what to do.
    #[must_use]
    pub fn mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if !(Self::LIFETIME_MIN..=Self::LIFETIME_MAX).contains(&self.lifetime) {
            let problem = "must be between 24h and 366d; when a CRL expires, verifiers reject every certificate";
            mistakes.push(("lifetime", problem.to_owned()));
        }
        if let StoreSettings::ConfigMap(name) = &self.store
            && name.parse::<pki::identity::ServiceAccount>().is_err()
        {
            mistakes.push(("store", format!("{name:?} is not a valid object name")));
        }
        mistakes
    }
}

/// A CRL of this CA that was signed and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedCrl {
    /// The CRL in PEM, with a final newline.
    pub pem: String,
    /// The CRL number.
    pub number: u64,
    /// thisUpdate.
    pub this_update: SystemTime,
    /// nextUpdate.
    pub next_update: SystemTime,
    /// Number of entries.
    pub entries: usize,
}
