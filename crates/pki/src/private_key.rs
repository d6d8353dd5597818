//! The private key file of a plug-in CA, in all usual formats, converted to PKCS#8.
//!
//! The numbers are encoded again as strict DER, the public key is computed from the private key, and a signature is
//! made and verified, so that a damaged key is detected before the import into a token. Keys are never written to a
//! file, and no error contains any part of one. The daemon itself reads only the short-lived keys in the Secrets that
//! its controllers maintain, never a CA key.

mod encrypted;
mod form;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{
    KeyAlgorithm, PublicKey,
    bundle::Problem,
    found::{self, Found, Wanted},
    key::KeyError,
    pem::{self, Block, PemError},
};

/// A software private key for the import into a token. Zeroized when dropped; no Debug, no Clone.
pub struct PrivateKey {
    /// DER PrivateKeyInfo (RFC 5958).
    pkcs8: Zeroizing<Vec<u8>>,
    public_key: PublicKey,
}

/// The numbers of a private key, borrowed from it, for C_CreateObject in tokens that cannot unwrap.
pub enum Components<'a> {
    /// P-256 or P-384.
    Ec {
        /// DER of the curve's OID: CKA_EC_PARAMS.
        parameters: &'static [u8],
        /// The private scalar, big-endian, with the length of the field: CKA_VALUE.
        scalar: &'a [u8],
    },
    /// Ed25519.
    Ed25519 {
        /// DER of the OID of RFC 8410: CKA_EC_PARAMS.
        parameters: &'static [u8],
        /// The 32 bytes of the seed (RFC 8032): CKA_VALUE.
        seed: &'a [u8],
    },
    /// RSA with two primes (RFC 8017, appendix A.1.2).
    Rsa(RsaComponents<'a>),
}

/// The numbers of an RSA private key, big-endian without leading zeros.
pub struct RsaComponents<'a> {
    /// CKA_MODULUS.
    pub modulus: &'a [u8],
    /// CKA_PUBLIC_EXPONENT.
    pub public_exponent: &'a [u8],
    /// CKA_PRIVATE_EXPONENT.
    pub private_exponent: &'a [u8],
    /// CKA_PRIME_1.
    pub prime1: &'a [u8],
    /// CKA_PRIME_2.
    pub prime2: &'a [u8],
    /// CKA_EXPONENT_1.
    pub exponent1: &'a [u8],
    /// CKA_EXPONENT_2.
    pub exponent2: &'a [u8],
    /// CKA_COEFFICIENT.
    pub coefficient: &'a [u8],
}

/// A file has no private key that can be imported. Never contains key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// RFC 1421 encryption, as formerly written by `openssl rsa -aes256`: its key derivation is one round of MD5.
    #[error("the key on line {line} is encrypted in the old way (Proc-Type: 4,ENCRYPTED), which is not supported")]
    EncryptedLegacy {
        /// Line at which the key's block begins.
        line: usize,
    },
    /// The curve is given by explicit parameters.
    #[error("the key spells its curve out instead of naming it")]
    ExplicitCurve,
    /// The parts of the key do not match.
    #[error("the private key contradicts itself: {0}; the file is damaged, take it from a backup")]
    Inconsistent(&'static str),
    /// The type or size is not supported.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The content is not DER of the form in the PEM label.
    #[error("the private key is malformed: {0}; take it from a backup")]
    Malformed(&'static str),
    /// The key is of another form than its label says.
    #[error("the key is a `{form}` under the label `{label}`")]
    Mislabelled {
        /// The label of its PEM block.
        label: String,
        /// The label that belongs to the content.
        form: &'static str,
    },
    /// No block with a private key.
    #[error("there is no private key in it, but {found}; {remedy}")]
    NoKey {
        /// What is in it.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Encrypted, and no passphrase was given.
    #[error("the private key is encrypted; give its passphrase")]
    PassphraseNeeded,
    /// Decryption failed.
    #[error("the passphrase is wrong, or the encrypted key is damaged; give the right one")]
    PassphraseWrong,
    /// The text is not PEM.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// There is more than one key.
    #[error("there are two private keys in it, on lines {first} and {second}; leave the CA's only")]
    SeveralKeys {
        /// Line at which the first key's block begins.
        first: usize,
        /// Line at which the second key's block begins.
        second: usize,
    },
    /// The encryption is not PBES2 with PBKDF2 or scrypt and AES, or its cost is excessive.
    #[error("the private key's encryption is not supported: {0}")]
    UnsupportedEncryption(&'static str),
    /// A private key in a form of another world, such as `OPENSSH PRIVATE KEY`.
    #[error("a `{label}` is not supported (RSA, EC and PKCS#8 private keys are)")]
    UnsupportedForm {
        /// The label of its PEM block.
        label: String,
    },
    /// An RSA exponent other than 65537: legal, but what tokens and peers make of it is not known.
    #[error("the RSA key's public exponent is not 65537, which a CA's key must have; make another CA key")]
    UnusualExponent,
}

impl PrivateKeyError {
    /// The error about a file of that name and content: what the file is, where that can be recognized.
    #[must_use]
    pub fn in_file(&self, name: &str, text: &[u8]) -> Problem {
        match (self, found::file(text, name, Wanted::PrivateKey)) {
            (Self::NoKey { .. }, None) if text.trim_ascii().is_empty() => {
                Problem::with_remedy(name, "is empty", "put the CA's private key there as PEM")
            }
            (Self::NoKey { .. } | Self::Pem(_), Some(Found { what, remedy })) => {
                Problem::with_remedy(name, what, remedy)
            }
            (Self::Pem(error), None) => {
                Problem::with_remedy(name, error.to_string(), "correct that line, or take the file from a backup")
            }
            (Self::Key(error), _) => {
                let remedy = "make a CA key of a supported type, and have a certificate issued for it";
                Problem::with_remedy(name, error.to_string(), remedy)
            }
            _ => match self.conversion(name) {
                Some(remedy) => Problem::with_remedy(name, self.to_string(), remedy),
                None => Problem::new(name, self.to_string()),
            },
        }
    }
}

impl PrivateKeyError {
    /// What makes a key of the file that can be read.
    fn conversion(&self, name: &str) -> Option<String> {
        let by = |command: &str| Some(found::key_converted(name, command));
        match self {
            Self::EncryptedLegacy { .. } | Self::UnsupportedEncryption(_) => {
                by("openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE")
            }
            Self::ExplicitCurve => by("openssl ec -in FILE -param_enc named_curve"),
            Self::Mislabelled { label, form } => Some(found::key_relabelled(name, label, form)),
            Self::UnsupportedForm { label } => match label.as_str() {
                "DSA PRIVATE KEY" => Some("make another CA key".to_owned()),
                "OPENSSH PRIVATE KEY" => Some(found::ssh_key_converted(name)),
                "TSS2 PRIVATE KEY" => Some(
                    "it can be used with its TPM alone; give a key that was made outside, or use a token".to_owned(),
                ),
                _ => by("openssl pkey -in FILE"),
            },
            Self::Inconsistent(_)
            | Self::Key(_)
            | Self::Malformed(_)
            | Self::NoKey { .. }
            | Self::PassphraseNeeded
            | Self::PassphraseWrong
            | Self::Pem(_)
            | Self::SeveralKeys { .. }
            | Self::UnusualExponent => None,
        }
    }
}

impl PrivateKey {
    /// Parses PKCS#1 (`RSA PRIVATE KEY`), SEC 1 (`EC PRIVATE KEY`, optionally after an `EC PARAMETERS` block), PKCS#8
    /// (`PRIVATE KEY`) or, with the passphrase, `ENCRYPTED PRIVATE KEY`.
    ///
    /// # Errors
    /// If the text has no key or more than one, or if the key is damaged or not supported.
    pub fn from_pem(text: &[u8], passphrase: Option<&SecretString>) -> Result<Self, PrivateKeyError> {
        let blocks = pem::blocks(text)?;
        let block = the_key(&blocks)?;
        Self::from_block(block, &blocks, passphrase).map_err(|error| match (error, form::label(&block.der)) {
            (PrivateKeyError::Malformed(_) | PrivateKeyError::UnsupportedForm { .. }, Some(form))
                if form != block.label =>
            {
                PrivateKeyError::Mislabelled { label: block.label.clone(), form }
            }
            (error, _) => error,
        })
    }

    fn from_block(block: &Block, blocks: &[Block], passphrase: Option<&SecretString>) -> Result<Self, PrivateKeyError> {
        match block.label.as_str() {
            "RSA PRIVATE KEY" => Self::checked(&form::rsa(&block.der)?, None),
            "EC PRIVATE KEY" => {
                let curve = blocks.iter().find(|block| block.label == "EC PARAMETERS");
                let (pkcs8, public) = form::ec(&block.der, curve.map(|block| block.der.as_slice()))?;
                Self::checked(&pkcs8, public)
            }
            "PRIVATE KEY" => Self::from_pkcs8(&block.der),
            "ENCRYPTED PRIVATE KEY" => {
                let plain = encrypted::decrypt(&block.der, passphrase.ok_or(PrivateKeyError::PassphraseNeeded)?)?;
                Self::from_pkcs8(&plain).map_err(|error| match error {
                    // One wrong passphrase in 256 produces valid padding.
                    PrivateKeyError::Malformed(_) => PrivateKeyError::PassphraseWrong,
                    other => other,
                })
            }
            other => Err(PrivateKeyError::UnsupportedForm { label: other.to_owned() }),
        }
    }

    /// Whether [`PrivateKey::from_pem`] needs a passphrase, so that users are not prompted without need.
    ///
    /// # Errors
    /// If the text has no key or more than one.
    pub fn needs_passphrase(text: &[u8]) -> Result<bool, PrivateKeyError> {
        Ok(the_key(&pem::blocks(text)?)?.label == "ENCRYPTED PRIVATE KEY")
    }

    /// The public key, computed from the private key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// DER PrivateKeyInfo, version 1, without attributes or trailing bytes: the form that is wrapped for a token.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key's numbers, borrowed.
    ///
    /// # Errors
    /// Never for a parsed key: [`PrivateKey::pkcs8`] is our own encoding.
    pub fn components(&self) -> Result<Components<'_>, PrivateKeyError> {
        form::components(&self.pkcs8)
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, PrivateKeyError> {
        let (pkcs8, public) = form::pkcs8(der)?;
        Self::checked(&pkcs8, public)
    }

    /// Computes the public key, compares it with the one in the file, if any, and makes a test signature.
    fn checked(pkcs8: &Zeroizing<Vec<u8>>, claimed: Option<&[u8]>) -> Result<Self, PrivateKeyError> {
        const MESSAGE: &[u8] = b"istio-hsm-ca: test signature of a key that is to be imported";
        let damaged = |_rejected| PrivateKeyError::Inconsistent("its numbers do not belong together");
        let (public_key, signature) = match form::components(pkcs8)? {
            Components::Ec { parameters, .. } => {
                let p384 = KeyAlgorithm::P384.ec_parameters_der() == Some(parameters);
                let algorithm = if p384 { &ECDSA_P384_SHA384_ASN1_SIGNING } else { &ECDSA_P256_SHA256_ASN1_SIGNING };
                let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8).map_err(damaged)?;
                let signature = pair.sign(&SystemRandom::new(), MESSAGE).map_err(|_error| failed())?;
                (public_half(pair.public_key())?, signature.as_ref().to_vec())
            }
            Components::Ed25519 { .. } => {
                let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(damaged)?;
                (public_half(pair.public_key())?, pair.sign(MESSAGE).as_ref().to_vec())
            }
            Components::Rsa(rsa) => {
                // Size and exponent are checked before any computation.
                let public_key = PublicKey::from_rsa(rsa.modulus, rsa.public_exponent)?;
                if !public_key.has_usual_exponent() {
                    return Err(PrivateKeyError::UnusualExponent);
                }
                let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(damaged)?;
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), MESSAGE, &mut signature)
                    .map_err(|_error| failed())?;
                (public_key, signature)
            }
        };
        if claimed.is_some_and(|claimed| !is_same_point(claimed, public_key.subject_public_key())) {
            return Err(PrivateKeyError::Inconsistent("its public half is another key's"));
        }
        public_key.verify(public_key.signature_algorithm(), MESSAGE, &signature).map_err(|_invalid| failed())?;
        Ok(Self { pkcs8: form::with_public_half(pkcs8, &public_key)?, public_key })
    }
}

fn failed() -> PrivateKeyError {
    PrivateKeyError::Inconsistent("a signature that it made does not verify")
}

fn public_half(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Result<PublicKey, PrivateKeyError> {
    let der = key.as_der().map_err(|_error| PrivateKeyError::Inconsistent("it has no public half"))?;
    Ok(PublicKey::from_spki_der(der.as_ref())?)
}

/// Whether a claimed public key, which may be compressed (SEC 1, section 2.3.3), is this one.
fn is_same_point(claimed: &[u8], uncompressed: &[u8]) -> bool {
    let (Some((4, coordinates)), Some((sign @ (2 | 3), x))) = (uncompressed.split_first(), claimed.split_first())
    else {
        return claimed == uncompressed;
    };
    let is_odd = coordinates.last().is_some_and(|byte| byte % 2 == 1);
    coordinates.get(..coordinates.len() / 2) == Some(x) && (*sign == 3) == is_odd
}

/// The only block with a private key.
fn the_key(blocks: &[Block]) -> Result<&Block, PrivateKeyError> {
    let mut keys = blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY"));
    let key = keys.next().ok_or_else(|| no_key(blocks))?;
    if let Some(second) = keys.next() {
        return Err(PrivateKeyError::SeveralKeys { first: key.line, second: second.line });
    }
    if key.headers.iter().any(|header| header.contains("ENCRYPTED")) {
        return Err(PrivateKeyError::EncryptedLegacy { line: key.line });
    }
    Ok(key)
}

/// What there is in place of a private key.
fn no_key(blocks: &[Block]) -> PrivateKeyError {
    let has = |labels: &[&str]| blocks.iter().any(|block| labels.contains(&block.label.as_str()));
    let private = "give the file with the private key (BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY)";
    let (found, remedy) = if has(&["PUBLIC KEY", "RSA PUBLIC KEY"]) {
        ("a public key", private)
    } else if has(&["CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE"]) {
        ("a certificate", private)
    } else if has(&["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"]) {
        ("a certificate request", private)
    } else if has(&["PKCS#11 PROVIDER URI"]) {
        (
            "a reference to a key in a token",
            "nothing has to be imported: name that token, and bring the certificate in by `istio-hsm-ca install`",
        )
    } else if has(&["EC PARAMETERS"]) {
        ("EC PARAMETERS alone, which name a curve", private)
    } else if blocks.is_empty() {
        ("text without a PEM block", private)
    } else {
        ("something else", private)
    };
    PrivateKeyError::NoKey { found, remedy }
}

#[cfg(test)]
mod tests;
