//! The line of a ceremony: an act with the key of an offline CA, by `ceremony run`.

use serde::{Deserialize, Serialize};

/// The version of such a line; readers of version 1 do not know it.
pub const CEREMONY_VERSION: u8 = 2;

/// A ceremony has begun or ended. The certificate or CRL that it signs has an intent of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CeremonyLine {
    /// [`CEREMONY_VERSION`].
    pub v: u8,
    /// Number of the line in the log.
    pub line: u64,
    /// Time of the phase.
    pub time: String,
    /// The phase.
    pub phase: CeremonyPhase,
    /// What is done, such as `create_root`.
    pub act: String,
    /// SHA-256 of the reviewed ceremony file, in hexadecimal.
    pub file_sha256: String,
    /// Name and role of each participant.
    pub participants: Vec<String>,
    /// SHA-256 of the JSON transcript, in hexadecimal; only at the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transcript_sha256: Option<String>,
    /// Why it failed; only with `failed`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// The phases of a ceremony.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CeremonyPhase {
    /// Everything was checked; what follows may change the token.
    Begun,
    /// The act was performed.
    Done,
    /// The act failed, perhaps after a part of it.
    Failed,
}

impl CeremonyLine {
    /// Whether the fields are those of the phase.
    pub(crate) fn is_whole(&self) -> bool {
        let (transcript, reason) = (self.transcript_sha256.is_some(), self.reason.is_some());
        match self.phase {
            CeremonyPhase::Begun => !transcript && !reason,
            CeremonyPhase::Done => transcript && !reason,
            CeremonyPhase::Failed => transcript && reason,
        }
    }
}
