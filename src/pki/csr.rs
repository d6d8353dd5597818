//! Certificate requests (RFC 2986): parsed within limits, key policy and self-signature checked.

use super::PublicKey;

/// The largest certificate request in PEM bytes that is read: an RSA-4096 request with a long SAN is below 4 KiB.
pub const CSR_MAX: usize = 16 * 1024;

/// A request whose signer holds the private key, and whose names have been read.
#[derive(Clone, Debug)]
pub struct VerifiedCsr {
    public_key: PublicKey,
    /// Whether the subject is empty or `O=""`, as Istio's agents send it.
    subject_is_empty: bool,
    /// The subject alternative names as asked for, unparsed: (kind, text).
    names: Vec<RequestedName>,
}

/// A subject alternative name as it stands in a request; not yet a name that anybody may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedName {
    /// A dNSName.
    Dns(String),
    /// An iPAddress, 4 or 16 bytes.
    Ip(std::net::IpAddr),
    /// A uniformResourceIdentifier.
    Uri(String),
    /// Any other kind, which is never granted.
    Other(&'static str),
}

/// Why a request is refused before its names are looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// The self-signature does not verify.
    #[error("the request's signature does not verify with its own key")]
    Signature,
    // the builder of this module adds: TooLarge, Pem, Malformed(&'static str), Key(KeyError), UnsupportedSignatureAlgorithm...
}

impl VerifiedCsr {
    /// Reads the first PEM block of a request (any label, as istiod does) and checks it.
    ///
    /// # Errors
    /// When it is too large, malformed, of a key that is not accepted, or not signed by its own key.
    pub fn from_pem(_text: &str) -> Result<Self, CsrError> {
        todo!()
    }

    /// The subject's public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Whether the subject is an empty sequence or a lone `O=""`.
    #[must_use]
    pub fn subject_is_empty(&self) -> bool {
        self.subject_is_empty
    }

    /// The names asked for.
    #[must_use]
    pub fn names(&self) -> &[RequestedName] {
        &self.names
    }
}
