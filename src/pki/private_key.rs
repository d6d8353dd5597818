//! The private key file of a plug-in CA, in every form in which operators have it, as PKCS#8.

use zeroize::Zeroizing;

use super::PublicKey;

/// A software private key, on its way into a token. Zeroized when dropped; no Debug, no Clone.
pub struct PrivateKey {
    /// DER PrivateKeyInfo (RFC 5958).
    pkcs8: Zeroizing<Vec<u8>>,
    public_key: PublicKey,
}

/// Why a file is not a private key that can be imported. Never carries key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// Not PEM.
    #[error(transparent)]
    Pem(#[from] super::pem::PemError),
    // the builder of this module adds: no key block, two keys, malformed, encrypted without passphrase, wrong
    // passphrase, unsupported type/size (KeyError), unusual exponent, key inconsistent with itself ...
}

impl PrivateKey {
    /// Reads PKCS#1 (`RSA PRIVATE KEY`), SEC 1 (`EC PRIVATE KEY`, with or without an `EC PARAMETERS` block before
    /// it), PKCS#8 (`PRIVATE KEY`) or, with the passphrase, `ENCRYPTED PRIVATE KEY`.
    ///
    /// # Errors
    /// When the text holds no key, more than one, a damaged one, or one of a type or size that is not supported.
    pub fn from_pem(_text: &[u8], _passphrase: Option<&secrecy::SecretString>) -> Result<Self, PrivateKeyError> {
        todo!()
    }

    /// The key's public half, computed from the private half.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// DER PrivateKeyInfo.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}
