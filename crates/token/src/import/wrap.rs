//! Import of the private key in wrapped form.
//!
//! An RSA key pair generated in the token for this import unwraps an AES key (RSA-OAEP), which unwraps the private key
//! (AES-KWP, RFC 5649). All of these are session objects and end with the session.

use aws_lc_rs::{
    key_wrap::{AES_256, AesKek, KeyWrapPadded},
    rand,
    rsa::{OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey},
};
use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
        vendor_defined::VendorDefinedMechanism,
    },
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::How;
use crate::{
    Pkcs11Error,
    key::{objects::Made, public},
};

/// Size of the RSA pair. It exists for one import only, and generating larger pairs is slow.
const PAIR_BITS: u32 = 2048;

/// Hash of RSA-OAEP. SHA-1 is not a weakness here (OAEP does not depend on collision resistance).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum OaepHash {
    /// SHA-1, for tokens that support no other hash (SoftHSM).
    #[serde(rename = "SHA-1")]
    Sha1,
    /// SHA-256.
    #[serde(rename = "SHA-256")]
    Sha256,
}

/// Mechanism number with which the token implements RFC 5649.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum KeyWrap {
    /// CKM_AES_KEY_WRAP_KWP, standard since v3.0.
    #[serde(rename = "CKM_AES_KEY_WRAP_KWP (0x210b)")]
    Kwp,
    /// CKM_AES_KEY_WRAP_PAD, the earlier number, with which some tokens (SoftHSM) mean RFC 5649.
    #[serde(rename = "CKM_AES_KEY_WRAP_PAD (0x210a)")]
    Pad,
}

/// Reasons why the token cannot unwrap a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// AES-KWP is not supported.
    #[error("the token cannot unwrap with AES-KWP (RFC 5649), neither as mechanism 0x210a nor as 0x210b")]
    KeyWrap(#[source] Pkcs11Error),
    /// RSA-OAEP is not supported.
    #[error("the token cannot unwrap with RSA-OAEP, neither with SHA-256 nor with SHA-1")]
    Oaep(#[source] Pkcs11Error),
    /// The RSA pair cannot be generated.
    #[error("the token cannot generate an RSA key pair for unwrapping")]
    Pair(#[source] Pkcs11Error),
    /// Cryptography in this process failed.
    #[error("wrapping the key in software failed (internal error)")]
    Software,
}

impl WrapError {
    /// The token's error, unless the failure was in this process.
    #[must_use]
    pub fn fault(&self) -> Option<&Pkcs11Error> {
        match self {
            Self::KeyWrap(fault) | Self::Oaep(fault) | Self::Pair(fault) => Some(fault),
            Self::Software => None,
        }
    }
}

/// Session keys of a token that unwraps with RSA-OAEP and AES-KWP. They exist until the session is closed.
pub(super) struct Wrapping {
    aes: Zeroizing<[u8; 32]>,
    aes_in_token: ObjectHandle,
    oaep: OaepHash,
    key_wrap: KeyWrap,
}

impl std::fmt::Debug for Wrapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wrapping").field("oaep", &self.oaep).field("key_wrap", &self.key_wrap).finish_non_exhaustive()
    }
}

impl Wrapping {
    /// Generates the RSA pair and the AES key, and determines the mechanism variants of this token by unwrapping a
    /// random key.
    pub(super) fn establish(session: &Session) -> Result<Self, WrapError> {
        let (public_half, private) =
            session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &pair_public(), &pair_private()).map_err(pair)?;
        let recipient = match public::read(session, public_half).map_err(WrapError::Pair)? {
            Ok(key) => PublicEncryptingKey::from_der(key.spki_der()).map_err(|_| WrapError::Software)?,
            Err(_) => return Err(WrapError::Software),
        };
        let recipient = OaepPublicEncryptingKey::new(recipient).map_err(|_| WrapError::Software)?;
        let mut aes = Zeroizing::new([0; 32]);
        rand::fill(aes.as_mut_slice()).map_err(|_| WrapError::Software)?;
        let unwrap_aes = |hash: OaepHash| {
            let wrapped = oaep_encrypt(&recipient, hash, aes.as_slice())?;
            session.unwrap_key(&hash.mechanism(), private, &wrapped, &aes_template(false)).map_err(oaep)
        };
        let (oaep, aes_in_token) = match unwrap_aes(OaepHash::Sha256) {
            Ok(handle) => (OaepHash::Sha256, handle),
            Err(WrapError::Software) => return Err(WrapError::Software),
            Err(_) => (OaepHash::Sha1, unwrap_aes(OaepHash::Sha1)?),
        };
        let mut wrapping = Self { aes, aes_in_token, oaep, key_wrap: KeyWrap::Pad };
        wrapping.find_key_wrap(session)?;
        Ok(wrapping)
    }

    /// How a key that was unwrapped came into the token, for the report.
    pub(super) fn how(&self) -> How {
        How::Wrapped { oaep_hash: self.oaep, key_wrap: self.key_wrap, pair_bits: PAIR_BITS }
    }

    /// Unwraps a PKCS#8 key (C_UnwrapKey) into the session object described by `template`.
    pub(super) fn unwrap(
        &self,
        session: &Session,
        pkcs8: &[u8],
        template: &[Attribute],
    ) -> Result<ObjectHandle, WrapError> {
        let wrapped = self.wrap(pkcs8)?;
        session
            .unwrap_key(&self.key_wrap.mechanism(), self.aes_in_token, &wrapped, template)
            .map_err(|e| WrapError::KeyWrap(e.into()))
    }

    /// Tries to wrap an object (C_WrapKey) and discards the result.
    pub(super) fn wrap_out(&self, session: &Session, object: ObjectHandle) -> Result<(), Pkcs11Error> {
        session.wrap_key(&self.key_wrap.mechanism(), self.aes_in_token, object)?;
        Ok(())
    }

    /// Selects the mechanism number with which the token unwraps a random key.
    fn find_key_wrap(&mut self, session: &Session) -> Result<(), WrapError> {
        let mut random_key = Zeroizing::new([0; 32]);
        rand::fill(random_key.as_mut_slice()).map_err(|_| WrapError::Software)?;
        let mut made = Made::new(session);
        let mut unwrap = |wrapping: &Self| {
            let object = wrapping.unwrap(session, random_key.as_slice(), &aes_template(true))?;
            made.scratch(object);
            Ok(())
        };
        if unwrap(self).is_ok() {
            return Ok(());
        }
        self.key_wrap = KeyWrap::Kwp;
        unwrap(self)
    }

    fn wrap(&self, key: &[u8]) -> Result<Vec<u8>, WrapError> {
        let kek = AesKek::new(&AES_256, self.aes.as_slice()).map_err(|_| WrapError::Software)?;
        // RFC 5649: padded to eight bytes, and eight bytes before it.
        let mut output = vec![0; key.len() + 16];
        let length = kek.wrap_with_padding(key, &mut output).map_err(|_| WrapError::Software)?.len();
        output.truncate(length);
        Ok(output)
    }
}

impl OaepHash {
    fn mechanism(self) -> Mechanism<'static> {
        let (hash, mgf) = match self {
            Self::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
            Self::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        };
        Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
    }

    fn software(self) -> &'static OaepAlgorithm {
        match self {
            Self::Sha1 => &OAEP_SHA1_MGF1SHA1,
            Self::Sha256 => &OAEP_SHA256_MGF1SHA256,
        }
    }
}

impl KeyWrap {
    fn mechanism(self) -> Mechanism<'static> {
        match self {
            Self::Kwp => Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(aes_key_wrap_kwp(), None)),
            Self::Pad => Mechanism::AesKeyWrapPad,
        }
    }
}

/// CKM_AES_KEY_WRAP_KWP (PKCS#11 v3.0, section 2.13.1), which the binding has no name for, and whose constructor for
/// other numbers takes those of vendors alone.
#[expect(unsafe_code, reason = "the binding cannot express this number of the standard in another way")]
fn aes_key_wrap_kwp() -> MechanismType {
    const CKM_AES_KEY_WRAP_KWP: cryptoki_number::Number = 0x210b;
    // SAFETY: MechanismType is a `#[repr(transparent)]` struct around one CK_MECHANISM_TYPE, every value of which is a
    // valid one; `transmute` itself refuses to compile should the sizes ever differ.
    unsafe { std::mem::transmute::<cryptoki_number::Number, MechanismType>(CKM_AES_KEY_WRAP_KWP) }
}

/// The integer that CK_ULONG is on this platform.
mod cryptoki_number {
    pub(super) type Number = std::ffi::c_ulong;
}

fn oaep_encrypt(recipient: &OaepPublicEncryptingKey, hash: OaepHash, key: &[u8]) -> Result<Vec<u8>, WrapError> {
    let mut output = vec![0; recipient.ciphertext_size()];
    let length = recipient.encrypt(hash.software(), key, &mut output, None).map_err(|_| WrapError::Software)?.len();
    output.truncate(length);
    Ok(output)
}

fn pair(error: cryptoki::error::Error) -> WrapError {
    WrapError::Pair(error.into())
}

fn oaep(error: cryptoki::error::Error) -> WrapError {
    WrapError::Oaep(error.into())
}

fn pair_public() -> Vec<Attribute> {
    vec![
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Encrypt(false),
        Attribute::Wrap(true),
        Attribute::ModulusBits(u64::from(PAIR_BITS).into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ]
}

fn pair_private() -> Vec<Attribute> {
    vec![
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Unwrap(true),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::SignRecover(false),
        Attribute::Derive(false),
    ]
}

/// The AES key that unwraps and, for the proof that the key cannot be wrapped out, wraps; also the throw-away key.
fn aes_template(throw_away: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(!throw_away),
        Attribute::Unwrap(!throw_away),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
    ]
}
