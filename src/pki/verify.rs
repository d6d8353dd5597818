//! Never trust the token's output: the certificate is parsed again and checked against what was meant.

use super::Tbs;

/// A certificate that may be released.
#[derive(Clone, Debug)]
pub struct Issued {
    der: Vec<u8>,
    tbs: std::sync::Arc<Tbs>,
}

/// Why a signed certificate is not released. Each is an alarm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The token's signature does not verify with the key in ca-cert.pem.
    #[error("the token's signature does not verify with the CA certificate's key")]
    Signature,
    /// A field of the certificate differs from what was granted.
    #[error("BUG: the certificate's {0} differs from what was granted")]
    Field(&'static str),
}

impl Issued {
    /// Puts certificate and signature together, and checks the result. `signature` is the content of
    /// signatureValue (for ECDSA: DER ECDSA-Sig-Value).
    ///
    /// # Errors
    /// When the signature does not verify, or a field differs.
    pub fn assemble(_tbs: std::sync::Arc<Tbs>, _signature: &[u8]) -> Result<Self, VerifyError> {
        todo!()
    }

    /// The DER certificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// What was signed.
    #[must_use]
    pub fn tbs(&self) -> &Tbs {
        &self.tbs
    }

    /// The reply of ISTIO.md 1.2: the leaf, the path from the CA's certificate up to (not including) a root, one
    /// certificate an element, and last the roots, byte for byte.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        todo!()
    }
}
