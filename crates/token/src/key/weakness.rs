//! Attributes of a key that a CA's key should not have, and which of them the operator has accepted.
//!
//! A weakness is accepted by a flag of the command that puts the key into service. The command's receipt in the bundle
//! records it, where `serve` and `check` find it.

use std::{collections::BTreeSet, fs, io::Read, path::Path};

use process::files::open_input;
use serde::{Deserialize, Serialize};

use super::hex;

/// The largest receipt that is read.
const RECEIPT_MAX: u64 = 1024 * 1024;

/// Something that a CA's key should not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weakness {
    /// CKA_DECRYPT is true.
    Decrypt,
    /// CKA_DERIVE is true.
    Derive,
    /// CKA_EXTRACTABLE is true, or the token wraps the key all the same.
    Extractable,
    /// CKA_SENSITIVE is false.
    NotSensitive,
    /// The token does not reveal CKA_SENSITIVE, CKA_EXTRACTABLE or CKA_SIGN.
    UnreadableAttributes,
    /// CKA_UNWRAP is true.
    Unwrap,
}

impl Weakness {
    /// The flag that accepts it.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::Decrypt => "--allow-decrypt",
            Self::Derive => "--allow-derive",
            Self::Extractable => "--allow-extractable",
            Self::NotSensitive => "--allow-not-sensitive",
            Self::UnreadableAttributes => "--allow-unreadable-attributes",
            Self::Unwrap => "--allow-unwrap",
        }
    }

    /// What it means, as the end of "the CA's key ...".
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Decrypt => "may decrypt (CKA_DECRYPT)",
            Self::Derive => "may derive keys (CKA_DERIVE)",
            Self::Extractable => "may leave the token (CKA_EXTRACTABLE)",
            Self::NotSensitive => "may be read in the clear (CKA_SENSITIVE is false)",
            Self::UnreadableAttributes => {
                "has attributes that the token does not reveal (CKA_SENSITIVE, CKA_EXTRACTABLE or CKA_SIGN)"
            }
            Self::Unwrap => "may unwrap keys (CKA_UNWRAP)",
        }
    }
}

/// The weaknesses that the operator has accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Accepted(BTreeSet<Weakness>);

impl FromIterator<Weakness> for Accepted {
    fn from_iter<I: IntoIterator<Item = Weakness>>(weaknesses: I) -> Self {
        Self(weaknesses.into_iter().collect())
    }
}

impl Accepted {
    /// Whether it is one of them.
    #[must_use]
    pub fn allows(&self, weakness: Weakness) -> bool {
        self.0.contains(&weakness)
    }

    /// Those that a key has.
    #[must_use]
    pub fn of(&self, of_key: &[Weakness]) -> Self {
        self.0.iter().copied().filter(|weakness| of_key.contains(weakness)).collect()
    }

    /// Those of the key's weaknesses that are not accepted.
    #[must_use]
    pub fn missing(&self, of_key: &[Weakness]) -> Vec<Weakness> {
        of_key.iter().copied().filter(|weakness| !self.allows(*weakness)).collect()
    }

    /// What the receipts in a bundle accept for a key in the token of that serial number. A file that is no receipt
    /// accepts nothing.
    #[must_use]
    pub fn in_bundle(bundle: &Path, key: &[u8; 32], serial: &str) -> Self {
        let files = fs::read_dir(bundle).into_iter().flatten().flatten().map(|entry| entry.path());
        let receipts = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let key = hex(key);
        let receipts = receipts.filter_map(|path| Receipt::read(&path));
        let of_key = receipts.filter(|receipt| receipt.key_sha256 == key && receipt.token.serial == serial);
        of_key.flat_map(|receipt| receipt.accepted_weaknesses.0).collect()
    }
}

/// What is read of a receipt.
#[derive(Deserialize)]
struct Receipt {
    key_sha256: String,
    token: ReceiptToken,
    accepted_weaknesses: Accepted,
}

#[derive(Deserialize)]
struct ReceiptToken {
    serial: String,
}

impl Receipt {
    fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        open_input(path).ok()?.take(RECEIPT_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipt_accepts_for_its_key_in_its_token_only() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(bundle.path().join(name), text).unwrap();
        let receipt = |key: [u8; 32], serial: &str, list: &str| {
            let key = hex(&key);
            format!(
                r#"{{"key_sha256":"{key}","token":{{"serial":"{serial}","label":"x"}},"accepted_weaknesses":{list},"at":1}}"#
            )
        };
        write("a.json", &receipt([1; 32], "s1", r#"["extractable","not-sensitive"]"#));
        write("b.json", &receipt([1; 32], "s1", r#"["unwrap"]"#));
        write("c.json", &receipt([2; 32], "s1", r#"["decrypt"]"#));
        write("d.json", r#"{"key_sha256":"older receipt","token":{"serial":"s1"}}"#);
        write("e.json", "no JSON");
        write("f.pem", &receipt([1; 32], "s1", r#"["derive"]"#));
        let accepted = |key: [u8; 32], serial: &str| Accepted::in_bundle(bundle.path(), &key, serial);
        let expected = [Weakness::Extractable, Weakness::NotSensitive, Weakness::Unwrap];
        assert_eq!(accepted([1; 32], "s1"), expected.into_iter().collect());
        assert_eq!(accepted([1; 32], "s2"), Accepted::default());
        assert_eq!(accepted([2; 32], "s1"), [Weakness::Decrypt].into_iter().collect());
        assert_eq!(Accepted::in_bundle(&bundle.path().join("none"), &[1; 32], "s1"), Accepted::default());
    }
}
