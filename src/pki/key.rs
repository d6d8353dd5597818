//! Public keys: parsed strictly, bounded before any arithmetic on them, verified with aws-lc-rs.

/// The kinds of key that this CA knows (RFC 3279, RFC 5480, RFC 8410).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// Ed25519 (RFC 8410).
    Ed25519,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA; `bits` is the modulus length.
    Rsa {
        /// Modulus length in bits, 2048 to 4096.
        bits: u16,
    },
}

/// The signature algorithms of certificates and requests (RFC 4055, RFC 5758, RFC 8410).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// ecdsa-with-SHA256.
    EcdsaSha256,
    /// ecdsa-with-SHA384.
    EcdsaSha384,
    /// ecdsa-with-SHA512.
    EcdsaSha512,
    /// Ed25519.
    Ed25519,
    /// sha256WithRSAEncryption (PKCS #1 v1.5).
    RsaSha256,
    /// sha384WithRSAEncryption.
    RsaSha384,
    /// sha512WithRSAEncryption.
    RsaSha512,
}

/// Why bytes are not a public key that this CA accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a DER SubjectPublicKeyInfo, or not the canonical encoding of one.
    #[error("the public key is malformed: {0}")]
    Malformed(&'static str),
    /// A key type or curve that this CA does not take.
    #[error("the public key's type is not supported (RSA 2048 to 4096, P-256, P-384 and Ed25519 are)")]
    UnsupportedType,
    /// An RSA modulus outside 2048 to 4096 bits.
    #[error("the RSA key has {0} bits; 2048 to 4096 are accepted")]
    RsaSize(usize),
    /// An RSA public exponent that is even, below 3 or above 32 bits.
    #[error("the RSA key's public exponent is unusual; 65537 is expected")]
    RsaExponent,
}

/// A public key whose form and size have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: KeyAlgorithm,
    /// DER SubjectPublicKeyInfo.
    spki: std::sync::Arc<[u8]>,
}

/// A signature that the key did not make over that message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct SignatureInvalid;

impl PublicKey {
    /// Reads a DER SubjectPublicKeyInfo (RFC 5280, section 4.1).
    ///
    /// # Errors
    /// When it is malformed, of another type, or of a size that is not accepted.
    pub fn from_spki_der(_der: &[u8]) -> Result<Self, KeyError> {
        todo!()
    }

    /// The key's type and size.
    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// The DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The content of the subjectPublicKey BIT STRING.
    #[must_use]
    pub fn subject_public_key(&self) -> &[u8] {
        todo!()
    }

    /// SHA-1 of the subjectPublicKey bits: the CKA_ID of the key's objects in a token, and the
    /// usual subject key identifier (RFC 5280, section 4.2.1.2, method 1).
    #[must_use]
    pub fn key_id(&self) -> [u8; 20] {
        todo!()
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo: how logs, denylists and the token host name a key.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        todo!()
    }

    /// The algorithm with which this CA signs with such a key: SHA-256 with RSA (PKCS #1 v1.5) and
    /// P-256, SHA-384 with P-384, Ed25519.
    #[must_use]
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        match self.algorithm {
            KeyAlgorithm::Ed25519 => SignatureAlgorithm::Ed25519,
            KeyAlgorithm::P256 => SignatureAlgorithm::EcdsaSha256,
            KeyAlgorithm::P384 => SignatureAlgorithm::EcdsaSha384,
            KeyAlgorithm::Rsa { .. } => SignatureAlgorithm::RsaSha256,
        }
    }

    /// Checks a signature; ECDSA signatures are DER ECDSA-Sig-Value (RFC 3279, section 2.2.3).
    ///
    /// # Errors
    /// When it does not verify, or the algorithm is not one of this key's.
    pub fn verify(
        &self,
        _algorithm: SignatureAlgorithm,
        _message: &[u8],
        _signature: &[u8],
    ) -> Result<(), SignatureInvalid> {
        todo!()
    }
}
