//! PEM (RFC 7468) with line numbers in the errors.

/// One PEM block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// The label, such as `CERTIFICATE`.
    pub label: String,
    /// The line, counted from 1, on which the block begins.
    pub line: usize,
    /// The decoded content; zeroized when dropped since it may be a key.
    pub der: zeroize::Zeroizing<Vec<u8>>,
}

/// What is wrong with a PEM text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct PemError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// Splits a text into its PEM blocks; text outside of blocks is skipped, as Go and OpenSSL do.
///
/// # Errors
/// At the first block that is malformed.
pub fn blocks(_text: &[u8]) -> Result<Vec<Block>, PemError> {
    todo!()
}

/// Encodes one block, 64 columns, with a newline at the end.
#[must_use]
pub fn encode(_label: &str, _der: &[u8]) -> String {
    todo!()
}
