//! Private keys for Secrets: P-256, generated in memory, in zeroizing types until they are handed to the HTTP client.
//!
//! P-256 rather than RSA: a pair takes microseconds, and Envoy, Go and ztunnel accept it, istiod also for a CA
//! (ISTIO: security/pkg/pki/util/keycertbundle.go, "EC PRIVATE KEY" | "RSA PRIVATE KEY" | "PRIVATE KEY").

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use zeroize::Zeroizing;

use pki::{PublicKey, key, pem, request};

/// Generating a key failed.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum KeyError {
    /// aws-lc returned no key or no signature.
    #[error("cannot generate a key")]
    Crypto,
    #[error("BUG: the generated public key is not accepted")]
    Public(#[from] key::KeyError),
    #[error(transparent)]
    Request(#[from] request::RequestError),
}

/// A new key with a certificate request without names.
pub(super) struct FreshKey {
    /// PKCS#8, unencrypted, in PEM.
    pub(super) pem: Zeroizing<String>,
    /// The request in PEM.
    pub(super) csr: String,
}

impl FreshKey {
    pub(super) fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Crypto)?;
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Crypto)?;
        let public = PublicKey::from_spki_der(spki.as_ref())?;
        let info = request::nameless_info(&public)?;
        let signature = pair.sign(&SystemRandom::new(), &info).map_err(|_| KeyError::Crypto)?;
        let csr = request::nameless(&public, &info, signature.as_ref())?;
        // The document is zeroized on drop.
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto)?;
        Ok(Self { pem: pem::encode_secret("PRIVATE KEY", pkcs8.as_ref()), csr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{VerifiedCsr, private_key::PrivateKey};

    #[test]
    fn request_is_for_the_generated_key() {
        let key = FreshKey::generate().unwrap();
        let csr = VerifiedCsr::from_pem(&key.csr).unwrap();
        assert!(csr.names().is_empty());
        let read = PrivateKey::from_pem(key.pem.as_bytes(), None).unwrap();
        assert_eq!(read.public_key(), csr.public_key());
    }
}
