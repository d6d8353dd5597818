//! Public keys: parsed strictly, bounded before any arithmetic on them, verified with aws-lc-rs.
//!
//! A [`PublicKey`] has exactly one encoding: bytes that are not the canonical DER of their key are rejected, so that
//! keys can be compared, hashed and denied by their bytes. Never contains or generates a private key.

pub(crate) mod encoding;

use std::sync::{Arc, OnceLock};

use aws_lc_rs::{
    digest,
    signature::{self, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm},
};

use super::SignatureAlgorithm;

/// The supported key types (RFC 3279, RFC 5480, RFC 8410).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// Ed25519 (RFC 8410).
    Ed25519,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA; `bits` is the length of the modulus.
    Rsa {
        /// Modulus length in bits, 2048 to 4096.
        bits: u16,
    },
}

impl KeyAlgorithm {
    /// DER of the curve's OID, for CKA_EC_PARAMS; for Ed25519 the OID of RFC 8410, which tokens prefer. `None` for RSA.
    #[must_use]
    pub fn ec_parameters_der(self) -> Option<&'static [u8]> {
        encoding::ec_parameters_der(self)
    }
}

/// The usual notation: `RSA-2048`, `P-256`, `P-384`, `Ed25519`.
impl std::fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::Rsa { bits } => write!(f, "RSA-{bits}"),
        }
    }
}

/// Not a public key that this CA accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are not a canonical DER SubjectPublicKeyInfo.
    #[error("the public key is malformed: {0}")]
    Malformed(&'static str),
    /// The RSA public exponent is even, below 3 or longer than 32 bits.
    #[error("the RSA key's public exponent is unusual; 65537 is expected")]
    RsaExponent,
    /// The RSA modulus is not between 2048 and 4096 bits.
    #[error("the RSA key has {0} bits; 2048 to 4096 are accepted")]
    RsaSize(usize),
    /// The RSA modulus has a small prime factor.
    #[error("the RSA key's modulus is divisible by {0} and not a product of two large primes; generate another key")]
    SmallFactor(u64),
    /// An Ed25519 key whose order divides 8.
    #[error("the Ed25519 key is a point of small order, for which everyone can make signatures; generate another key")]
    SmallOrder,
    /// A key type or curve that this CA does not take.
    #[error("the key is {0}, which is not supported (RSA 2048 to 4096, P-256, P-384 and Ed25519 are)")]
    UnsupportedType(String),
}

/// A public key whose form and size have been checked. Clones are cheap and share the bytes.
#[derive(Clone)]
pub struct PublicKey(Arc<Inner>);

struct Inner {
    algorithm: KeyAlgorithm,
    /// DER SubjectPublicKeyInfo, canonical.
    spki: Vec<u8>,
    /// The subjectPublicKey bits, parsed for [`PublicKey::signature_algorithm`].
    parsed: ParsedPublicKey,
    /// Needed several times per certificate.
    fingerprint: OnceLock<[u8; 32]>,
}

/// The signature does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct SignatureInvalid;

impl PublicKey {
    /// Parses a DER SubjectPublicKeyInfo (RFC 5280, section 4.1).
    ///
    /// # Errors
    /// If it is malformed, or of a type or size that is not accepted.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        let key = Self::new(encoding::from_spki(der)?)?;
        if key.spki_der() != der {
            return Err(KeyError::Malformed("it is not the canonical DER of the key"));
        }
        Ok(key)
    }

    /// An RSA key from the big-endian bytes of a token's CKA_MODULUS and CKA_PUBLIC_EXPONENT; leading zeros are
    /// permitted.
    ///
    /// # Errors
    /// If the modulus or exponent is not accepted.
    pub fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        Self::new(encoding::rsa(modulus, exponent)?)
    }

    /// A key from a token's CKA_EC_PARAMS (DER: a named curve, or for Ed25519 the OID of RFC 8410 or the
    /// PrintableString of PKCS #11 3.0) and CKA_EC_POINT (DER OCTET STRING as in the standard, or the raw point as in
    /// some tokens).
    ///
    /// # Errors
    /// If the curve is not supported, or the point is not an uncompressed point on it.
    pub fn from_ec_point(parameters_der: &[u8], point: &[u8]) -> Result<Self, KeyError> {
        Self::new(encoding::ec_point(parameters_der, point)?)
    }

    fn new((algorithm, bits): (KeyAlgorithm, Vec<u8>)) -> Result<Self, KeyError> {
        let spki = encoding::to_spki(algorithm, &bits)?;
        // Parsing checks that a point is on its curve.
        let parsed = ParsedPublicKey::new(verification(signature_algorithm(algorithm), algorithm), bits)
            .map_err(|_rejected| KeyError::Malformed("the key is not a valid one of its type"))?;
        Ok(Self(Arc::new(Inner { algorithm, spki, parsed, fingerprint: OnceLock::new() })))
    }

    /// The key's type and size.
    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.0.algorithm
    }

    /// The DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.0.spki
    }

    /// The content of the subjectPublicKey BIT STRING.
    #[must_use]
    pub fn subject_public_key(&self) -> &[u8] {
        self.0.parsed.as_ref()
    }

    /// Modulus and public exponent of an RSA key, big-endian without leading zeros: CKA_MODULUS, CKA_PUBLIC_EXPONENT.
    #[must_use]
    pub fn rsa_components(&self) -> Option<(&[u8], &[u8])> {
        match self.0.algorithm {
            KeyAlgorithm::Rsa { .. } => encoding::rsa_components(self.subject_public_key()),
            KeyAlgorithm::Ed25519 | KeyAlgorithm::P256 | KeyAlgorithm::P384 => None,
        }
    }

    /// [`KeyAlgorithm::ec_parameters_der`] of this key.
    #[must_use]
    pub fn ec_parameters_der(&self) -> Option<&'static [u8]> {
        self.0.algorithm.ec_parameters_der()
    }

    /// The raw point: uncompressed (0x04, x, y), or the 32 bytes of Ed25519. CKA_EC_POINT contains it in a DER OCTET
    /// STRING.
    #[must_use]
    pub fn ec_point(&self) -> Option<&[u8]> {
        self.ec_parameters_der().map(|_curve| self.subject_public_key())
    }

    /// Whether an RSA key's public exponent is 65537, as required of a CA key; true for every other type.
    #[must_use]
    pub fn has_usual_exponent(&self) -> bool {
        self.rsa_components().is_none_or(|(_, exponent)| exponent == [1, 0, 1])
    }

    /// SHA-1 of the subjectPublicKey bits: the CKA_ID of the key's objects in a token, and the usual subject key
    /// identifier (RFC 5280, section 4.2.1.2, method 1).
    #[must_use]
    pub fn key_id(&self) -> [u8; 20] {
        sum(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.subject_public_key())
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo, which identifies a key in logs, denylists and the token host.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        *self.0.fingerprint.get_or_init(|| sum(&digest::SHA256, self.spki_der()))
    }

    /// The algorithm with which this CA signs with such a key: SHA-256 with RSA (PKCS #1 v1.5) and P-256, SHA-384 with
    /// P-384, Ed25519.
    #[must_use]
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        signature_algorithm(self.0.algorithm)
    }

    /// Verifies a signature; ECDSA signatures are DER ECDSA-Sig-Value (RFC 3279, section 2.2.3).
    ///
    /// # Errors
    /// If it does not verify, or the algorithm does not match the key.
    pub fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureInvalid> {
        if algorithm == self.signature_algorithm() {
            return self.0.parsed.verify_sig(message, signature).map_err(|_unspecified| SignatureInvalid);
        }
        if !fits(algorithm, self.0.algorithm) {
            return Err(SignatureInvalid);
        }
        self.verify_unparsed(verification(algorithm, self.0.algorithm), message, signature)
    }

    /// Verifies a signature with SHA-1: of an old root or intermediate, never of ours. P-384 with SHA-1 is not
    /// supported.
    ///
    /// # Errors
    /// If it does not verify.
    pub(super) fn verify_legacy_sha1(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureInvalid> {
        match self.0.algorithm {
            KeyAlgorithm::P256 => self.verify_unparsed(&signature::ECDSA_P256_SHA1_ASN1, message, signature),
            KeyAlgorithm::Rsa { .. } => {
                let algorithm = &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY;
                self.verify_unparsed(algorithm, message, signature)
            }
            KeyAlgorithm::Ed25519 | KeyAlgorithm::P384 => Err(SignatureInvalid),
        }
    }

    fn verify_unparsed(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureInvalid> {
        UnparsedPublicKey::new(algorithm, self.subject_public_key())
            .verify(message, signature)
            .map_err(|_unspecified| SignatureInvalid)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for PublicKey {}

impl std::hash::Hash for PublicKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.spki.hash(state);
    }
}

/// Type and fingerprint: enough to distinguish keys, short enough for a log line.
impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({}, SHA-256 ", self.0.algorithm)?;
        f.write_str(&const_hex::encode(self.fingerprint()))?;
        f.write_str(")")
    }
}

/// A digest as an array of its size.
fn sum<const N: usize>(algorithm: &'static digest::Algorithm, bytes: &[u8]) -> [u8; N] {
    let digest = digest::digest(algorithm, bytes);
    let mut array = [0; N];
    array.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    array
}

fn signature_algorithm(key: KeyAlgorithm) -> SignatureAlgorithm {
    match key {
        KeyAlgorithm::Ed25519 => SignatureAlgorithm::Ed25519,
        KeyAlgorithm::P256 => SignatureAlgorithm::EcdsaSha256,
        KeyAlgorithm::P384 => SignatureAlgorithm::EcdsaSha384,
        KeyAlgorithm::Rsa { .. } => SignatureAlgorithm::RsaSha256,
    }
}

/// Whether a key of this type can make such a signature.
fn fits(signature: SignatureAlgorithm, key: KeyAlgorithm) -> bool {
    match signature {
        SignatureAlgorithm::EcdsaSha256 | SignatureAlgorithm::EcdsaSha384 | SignatureAlgorithm::EcdsaSha512 => {
            matches!(key, KeyAlgorithm::P256 | KeyAlgorithm::P384)
        }
        SignatureAlgorithm::Ed25519 => key == KeyAlgorithm::Ed25519,
        SignatureAlgorithm::RsaSha256 | SignatureAlgorithm::RsaSha384 | SignatureAlgorithm::RsaSha512 => {
            matches!(key, KeyAlgorithm::Rsa { .. })
        }
    }
}

/// aws-lc-rs's algorithm for a signature that [`fits`] the key.
fn verification(signature: SignatureAlgorithm, key: KeyAlgorithm) -> &'static dyn VerificationAlgorithm {
    let p384 = key == KeyAlgorithm::P384;
    match signature {
        SignatureAlgorithm::EcdsaSha256 if p384 => &signature::ECDSA_P384_SHA256_ASN1,
        SignatureAlgorithm::EcdsaSha256 => &signature::ECDSA_P256_SHA256_ASN1,
        SignatureAlgorithm::EcdsaSha384 if p384 => &signature::ECDSA_P384_SHA384_ASN1,
        SignatureAlgorithm::EcdsaSha384 => &signature::ECDSA_P256_SHA384_ASN1,
        SignatureAlgorithm::EcdsaSha512 if p384 => &signature::ECDSA_P384_SHA512_ASN1,
        SignatureAlgorithm::EcdsaSha512 => &signature::ECDSA_P256_SHA512_ASN1,
        SignatureAlgorithm::Ed25519 => &signature::ED25519,
        SignatureAlgorithm::RsaSha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        SignatureAlgorithm::RsaSha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        SignatureAlgorithm::RsaSha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
    }
}

#[cfg(test)]
mod tests;
