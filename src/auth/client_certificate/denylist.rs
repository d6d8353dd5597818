//! Identities and keys that get no certificate any more.
//!
//! One entry a line: a SPIFFE ID, or `sha256:` and the SHA-256 of the key's DER SubjectPublicKeyInfo in
//! hexadecimal; `#` starts a comment; characters that no editor shows are skipped. Pure; read by
//! [`super::ClientCertificates`] at start and by each reload.

use std::collections::HashSet;

use crate::auth::credential_cache::Hash;
use pki::{
    PublicKey,
    identity::{Name, NameError, SpiffeId},
    pem,
};

/// Prefix of a key's hash.
const KEY: &str = "sha256:";

/// The entries of a denylist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denylist {
    identities: HashSet<SpiffeId>,
    keys: HashSet<Hash>,
}

/// A malformed line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct DenylistError {
    /// The line, counted from 1.
    pub line: usize,
    /// The error.
    pub source: EntryError,
}

/// Not a valid entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Neither a SPIFFE ID nor a key.
    #[error(transparent)]
    Identity(#[from] NameError),
    /// Not 64 hexadecimal digits after `sha256:`.
    #[error("a key is sha256: and 64 hexadecimal digits, the SHA-256 of its DER SubjectPublicKeyInfo")]
    Key,
}

impl Denylist {
    /// Parses a denylist.
    ///
    /// # Errors
    /// All malformed lines: a denylist with any of them is not used at all.
    pub fn parse(text: &str) -> Result<Self, Vec<DenylistError>> {
        let mut denylist = Self::default();
        let mut errors = Vec::new();
        for (line, content) in (1..).zip(pem::without_marks(text).lines()) {
            let entry = content.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            if let Err(source) = denylist.add(entry) {
                errors.push(DenylistError { line, source });
            }
        }
        if errors.is_empty() { Ok(denylist) } else { Err(errors) }
    }

    /// Whether an identity or a key (SHA-256 of its DER SubjectPublicKeyInfo) is on the list.
    #[must_use]
    pub fn names(&self, identity: &SpiffeId, key: &Hash) -> bool {
        self.keys.contains(key) || self.identities.contains(identity)
    }

    /// The entry that names the caller, or a name or the key of its certificate.
    pub(super) fn entry(&self, caller: Option<&SpiffeId>, names: &[Name], key: &PublicKey) -> Option<String> {
        let names = names.iter().filter_map(|name| match name {
            Name::Spiffe(id) => Some(id),
            Name::Dns(_) | Name::Ip(_) => None,
        });
        if let Some(id) = caller.into_iter().chain(names).find(|id| self.identities.contains(id)) {
            return Some(id.to_string());
        }
        self.keys.contains(&key.fingerprint()).then(|| format!("{KEY}{}", const_hex::encode(key.fingerprint())))
    }

    fn add(&mut self, entry: &str) -> Result<(), EntryError> {
        match entry.strip_prefix(KEY) {
            Some(hex) => {
                self.keys.insert(const_hex::decode_to_array(hex).map_err(|_error| EntryError::Key)?);
            }
            None => {
                self.identities.insert(entry.parse()?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_comments_and_blank_lines() {
        let text = format!(
            "\u{feff}# stolen\n\nspiffe://td/ns/n/sa/a # with a comment\r\n  sha256:{}\u{200b}  \nsha256:{}\n",
            "0a".repeat(32),
            "FF".repeat(32)
        );
        let denylist = Denylist::parse(&text).unwrap();
        let (on, off) = ("spiffe://td/ns/n/sa/a".parse().unwrap(), "spiffe://td/ns/n/sa/b".parse().unwrap());
        assert!(denylist.names(&on, &[0; 32]));
        assert!(denylist.names(&off, &[0x0a; 32]));
        assert!(denylist.names(&off, &[0xff; 32]));
        assert!(!denylist.names(&off, &[0; 32]));
    }

    #[test]
    fn every_bad_line_is_reported() {
        let bad = ["spiffe://td/ns/n", "sha256:00", "sha256:é", "0a0a", &format!("sha256:+{}", "0".repeat(63))];
        let text = format!("spiffe://td/ns/n/sa/a\n{}\n", bad.join("\n"));
        let errors = Denylist::parse(&text).unwrap_err();
        assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert!(errors.first().unwrap().to_string().starts_with("line 2: "));
    }
}
