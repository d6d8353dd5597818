//! Serial numbers of any certificate of a CA, also of those that it issued before this program did.

use std::{cmp::Ordering, fmt, str::FromStr};

use crate::tbs::Serial;

/// Maximum length of a serial number in bytes (RFC 5280, section 4.1.2.2).
const BYTES_MAX: usize = 20;

/// A positive serial number of at most 20 bytes, without its leading zeros; ordered by its value.
#[derive(Clone, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SerialNumber(Vec<u8>);

/// Not a serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SerialError {
    /// There are other characters than hexadecimal digits.
    #[error("{0:?} is not a serial number in hexadecimal, as `openssl x509 -noout -serial` prints it")]
    Digits(String),
    /// It is too long.
    #[error(
        "the serial number {0:?} has more than 20 bytes, which no certificate may have (RFC 5280, section 4.1.2.2)"
    )]
    Long(String),
    /// It is zero.
    #[error("the serial number is zero, which no certificate may have (RFC 5280, section 4.1.2.2)")]
    Zero,
}

impl SerialNumber {
    /// The number with these bytes, most significant first; leading zeros are ignored. `None` if it is zero or too long.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let start = bytes.iter().position(|byte| *byte != 0)?;
        let bytes = bytes.get(start..)?;
        // The encoding has another byte if the highest bit is set.
        let encoded = bytes.len() + usize::from(bytes.first().is_some_and(|first| first & 0x80 != 0));
        (encoded <= BYTES_MAX).then(|| Self(bytes.to_vec()))
    }

    /// The bytes, most significant first, without leading zeros.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Serial> for SerialNumber {
    fn from(serial: Serial) -> Self {
        // Its highest bit is set.
        Self(serial.as_bytes().to_vec())
    }
}

impl Ord for SerialNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for SerialNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SerialNumber({self})")
    }
}

/// Case, colons, a prefix `0x` or `serial=`, and leading zeros are ignored.
impl FromStr for SerialNumber {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let digits = trimmed.strip_prefix("serial=").unwrap_or(trimmed);
        let digits: String = digits.chars().filter(|c| *c != ':').collect();
        let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(&digits);
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(SerialError::Digits(text.to_owned()));
        }
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Err(SerialError::Zero);
        }
        let padded = if digits.len().is_multiple_of(2) { digits.to_owned() } else { format!("0{digits}") };
        let pairs = padded.as_bytes().as_chunks::<2>().0.iter();
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect();
        let bytes = bytes.ok_or_else(|| SerialError::Digits(text.to_owned()))?;
        Self::new(&bytes).ok_or_else(|| SerialError::Long(text.to_owned()))
    }
}

impl TryFrom<String> for SerialNumber {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SerialNumber> for String {
    fn from(serial: SerialNumber) -> Self {
        serial.to_string()
    }
}
