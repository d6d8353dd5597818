//! Where the state document is kept, and its changes by compare-and-swap.

use std::{borrow::Cow, fmt::Debug};

use super::state::{Document, VERSION};
use crate::signer::BoxFuture;
use process::error::{Advice, Remedy};

/// Number of attempts to change a document that others change as well.
const ATTEMPTS: usize = 16;

/// The state document as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The document; an empty one if the store has none yet.
    pub document: Document,
    /// Identifies this version of it for [`Store::replace`]; `None` if the store has none yet.
    pub version: Option<String>,
}

/// Keeps the state document for all replicas.
pub trait Store: Debug + Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Maximum size of the document in bytes, if there is one.
    fn capacity(&self) -> Option<usize>;

    /// Reads the document.
    fn read(&self) -> BoxFuture<'_, Result<Stored, StoreError>>;

    /// Replaces the version that was read, or creates the document. [`StoreError::Conflict`] if another one is there.
    fn replace<'a>(&'a self, content: &'a [u8], version: Option<&'a str>) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Waits until the document may have changed since the last read, or the store may have come back.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// The state document cannot be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process changed it meanwhile.
    #[error("{place}: other processes changed it {ATTEMPTS} times meanwhile{}", Advice(self))]
    Busy {
        /// The store.
        place: String,
    },
    /// Another process changed it since it was read.
    #[error("it was changed since it was read")]
    Conflict,
    /// It is not such a document.
    #[error("{place}: it is not a state document of revocation: {reason}{}", Advice(self))]
    Malformed {
        /// The store.
        place: String,
        /// Why not.
        reason: String,
    },
    /// It would become too large.
    #[error(
        "{place}: it would have {bytes} bytes, and {most} fit; about {fit} revoked certificates fit{}",
        Advice(self)
    )]
    TooLarge {
        /// The store.
        place: String,
        /// Its size.
        bytes: usize,
        /// The store's capacity.
        most: usize,
        /// Number of revoked certificates that fit.
        fit: usize,
    },
    /// The store cannot be read or written.
    #[error("{place}: {reason}{}", Advice(self))]
    Unavailable {
        /// The store.
        place: String,
        /// The error.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It is a document of a newer program.
    #[error("{place}: its format is version {found}; this program reads version {VERSION}{}", Advice(self))]
    Version {
        /// The store.
        place: String,
        /// Its version.
        found: u64,
    },
}

impl Remedy for StoreError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Busy { .. } => Some("try again".into()),
            Self::Conflict => None,
            Self::Malformed { .. } => Some("restore it from a backup".into()),
            Self::TooLarge { .. } => Some(
                "revoke fewer certificates: entries leave after the certificates have expired; to keep a whole namespace \
                 or identity out, block it with --no-revoke and wait until its certificates expire"
                    .into(),
            ),
            Self::Unavailable { remedy, .. } => (!remedy.is_empty()).then(|| (*remedy).into()),
            Self::Version { .. } => Some("upgrade this program".into()),
        }
    }
}

/// Parses a document.
///
/// # Errors
/// If it is malformed or of another version.
pub fn parse(place: &str, content: &[u8]) -> Result<Document, StoreError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        v: u64,
    }
    let malformed =
        |error: serde_json::Error| StoreError::Malformed { place: place.to_owned(), reason: error.to_string() };
    let Versioned { v } = serde_json::from_slice(content).map_err(malformed)?;
    if v != u64::from(VERSION) {
        return Err(StoreError::Version { place: place.to_owned(), found: v });
    }
    serde_json::from_slice(content).map_err(malformed)
}

/// Changes the document, and repeats that while other processes change it as well. Returns the new document and the result
/// of the change.
///
/// # Errors
/// Those of the change, and of the store.
pub async fn update<T, E: From<StoreError>>(
    store: &dyn Store,
    mut change: impl FnMut(&mut Document) -> Result<T, E>,
) -> Result<(Document, T), E> {
    for _ in 0..ATTEMPTS {
        let Stored { mut document, version } = store.read().await?;
        let result = change(&mut document)?;
        let content = serialize(store, &document)?;
        match store.replace(&content, version.as_deref()).await {
            Ok(()) => return Ok((document, result)),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Busy { place: store.place() }.into())
}

fn serialize(store: &dyn Store, document: &Document) -> Result<Vec<u8>, StoreError> {
    let place = store.place();
    let content = serde_json::to_vec(document)
        .map_err(|error| StoreError::Malformed { place: place.clone(), reason: error.to_string() })?;
    match store.capacity() {
        Some(most) if content.len() > most => {
            let entries = document.revoked_count();
            let fit = entries.saturating_mul(most) / content.len();
            Err(StoreError::TooLarge { place, bytes: content.len(), most, fit })
        }
        Some(_) | None => Ok(content),
    }
}
