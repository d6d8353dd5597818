//! The key of a certificate that the daemon issues to itself: generated in memory, never encoded, never stored.
//!
//! It is held by aws-lc, which zeroizes it when it is freed.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use const_oid::db::rfc5912::ECDSA_WITH_SHA_256;
use der::{Decode, Encode, EncodePem, asn1::BitString, pem::LineEnding};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    sign::{Signer, SigningKey},
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{
    attr::Attributes,
    name::Name,
    request::{CertReq, CertReqInfo, Version},
};

/// A key or its CSR could not be created: the crypto library or the system's random generator failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The CSR could not be encoded.
    #[error("BUG: the request for the serving certificate cannot be encoded")]
    Encoding(#[from] der::Error),
    /// aws-lc returned no key or no signature.
    #[error("the key of the serving certificate cannot be generated")]
    Crypto,
}

/// A P-256 key of the endpoint.
#[derive(Clone)]
pub struct ServingKey {
    pair: Arc<EcdsaKeyPair>,
    /// DER SubjectPublicKeyInfo.
    spki: Arc<[u8]>,
}

impl fmt::Debug for ServingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServingKey(P-256)")
    }
}

impl ServingKey {
    /// Generates a key.
    ///
    /// # Errors
    /// If the system's random generator fails.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Crypto)?;
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Crypto)?;
        let spki = spki.as_ref().into();
        Ok(Self { pair: Arc::new(pair), spki })
    }

    /// A CSR in PEM for this key (RFC 2986), without subject and names, which policy determines.
    ///
    /// # Errors
    /// If encoding or signing fails.
    pub fn request(&self) -> Result<String, KeyError> {
        let info = CertReqInfo {
            version: Version::V1,
            subject: Name::default(),
            public_key: SubjectPublicKeyInfoOwned::from_der(&self.spki)?,
            attributes: Attributes::default(),
        };
        let signature = self.signature(&info.to_der()?)?;
        let request = CertReq {
            info,
            algorithm: AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None },
            signature: BitString::from_bytes(&signature)?,
        };
        Ok(request.to_pem(LineEnding::LF)?)
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Crypto)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl SigningKey for ServingKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer: Box<dyn Signer> = Box::new(self.clone());
        offered.contains(&signer.scheme()).then_some(signer)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(&*self.spki))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for ServingKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.signature(message).map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_one_to_openssl() {
        let request = ServingKey::generate().unwrap().request().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), request).unwrap();
        let output = std::process::Command::new("openssl")
            .args(["req", "-verify", "-noout", "-text", "-in"])
            .arg(file.path())
            .output()
            .expect("openssl is needed; install the package openssl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("verify OK"), "{text}");
        assert!(text.contains("NIST CURVE: P-256"), "{text}");
    }
}
