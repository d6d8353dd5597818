//! Hashes of public keys.

use std::{fmt, str::FromStr};

use audit_log::record::hex;

/// SHA-256 of a key's DER SubjectPublicKeyInfo; as text in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(pub [u8; 32]);

/// Not a key's hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the SHA-256 of a key's DER SubjectPublicKeyInfo, 64 hexadecimal digits")]
pub struct KeyHashError(String);

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// A prefix `sha256:`, case and colons are ignored.
impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || KeyHashError(text.to_owned());
        let digits: String = text.strip_prefix("sha256:").unwrap_or(text).chars().filter(|c| *c != ':').collect();
        const_hex::decode_to_array(digits).map(Self).map_err(|_error| wrong())
    }
}

impl TryFrom<String> for KeyHash {
    type Error = KeyHashError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_tools_print_them() {
        let hash = KeyHash([0xab; 32]);
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(format!("sha256:{}", "AB:".repeat(32).trim_end_matches(':')).parse(), Ok(hash));
        for bad in ["", "ab", &"ab".repeat(33), &"a".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<KeyHash>().is_err(), "{bad}");
        }
    }
}
