//! Keys of certificates that go into Secrets: P-256, made in memory, in zeroizing types until the HTTP client has them.
//!
//! P-256 rather than RSA: it is made in microseconds, Envoy, Go and ztunnel all take it, and istiod takes it as a CA's
//! key too (ISTIO: security/pkg/pki/util/keycertbundle.go, "EC PRIVATE KEY" | "RSA PRIVATE KEY" | "PRIVATE KEY").

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use zeroize::Zeroizing;

use pki::{PublicKey, key, pem, request};

/// Why there is no key: each is a fault of the library or of the system's generator.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// aws-lc made no key or no signature.
    #[error("no key can be made")]
    Crypto,
    /// Its public half is not what it should be.
    #[error("BUG: the new key is not one of ours")]
    Public(#[from] key::KeyError),
    /// The request for it cannot be encoded.
    #[error(transparent)]
    Request(#[from] request::RequestError),
}

/// A new key with a request for its certificate, which names nobody.
pub(super) struct FreshKey {
    /// PKCS#8, unencrypted, in PEM.
    pub(super) pem: Zeroizing<String>,
    /// The request in PEM.
    pub(super) csr: String,
}

impl FreshKey {
    /// Makes one.
    pub(super) fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Crypto)?;
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Crypto)?;
        let public = PublicKey::from_spki_der(spki.as_ref())?;
        let info = request::nameless_info(&public)?;
        let signature = pair.sign(&SystemRandom::new(), &info).map_err(|_| KeyError::Crypto)?;
        let csr = request::nameless(&public, &info, signature.as_ref())?;
        // The document cleanses itself.
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto)?;
        Ok(Self { pem: pem::encode_secret("PRIVATE KEY", pkcs8.as_ref()), csr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{VerifiedCsr, private_key::PrivateKey};

    #[test]
    fn key_and_request_belong_together() {
        let key = FreshKey::generate().unwrap();
        let csr = VerifiedCsr::from_pem(&key.csr).unwrap();
        assert!(csr.subject_is_empty() && csr.names().is_empty());
        let read = PrivateKey::from_pem(key.pem.as_bytes(), None).unwrap();
        assert_eq!(read.public_key(), csr.public_key());
    }
}
