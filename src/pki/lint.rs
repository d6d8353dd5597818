//! Rules that every certificate must keep, checked on the encoded bytes before they are signed.

/// A rule that a certificate breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Finding(pub &'static str);
