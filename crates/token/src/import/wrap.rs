//! The way into the token on which the key crosses the PKCS#11 boundary wrapped.
//!
//! A key pair made in the token for this one import unwraps an AES key (RSA-OAEP), which unwraps the key (AES-KWP,
//! RFC 5649). Everything here is a session object: nothing of it survives the session.

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

use crate::{
    Pkcs11Error,
    key::{objects::Made, public},
};

/// Bits of the pair: it lives for one import, within this process, and small pairs are made fast.
const PAIR_BITS: u32 = 2048;

/// The hash of RSA-OAEP. SHA-1 is no weakness here (OAEP does not rely on collisions being hard), but auditors ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum OaepHash {
    /// SHA-1, for tokens that know no other (SoftHSM).
    #[serde(rename = "SHA-1")]
    Sha1,
    /// SHA-256.
    #[serde(rename = "SHA-256")]
    Sha256,
}

/// The number under which the token has RFC 5649.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum KeyWrap {
    /// CKM_AES_KEY_WRAP_KWP, the standard's number since v3.0.
    #[serde(rename = "CKM_AES_KEY_WRAP_KWP (0x210b)")]
    Kwp,
    /// CKM_AES_KEY_WRAP_PAD, the number of before, which some tokens (SoftHSM) still mean RFC 5649 by.
    #[serde(rename = "CKM_AES_KEY_WRAP_PAD (0x210a)")]
    Pad,
}

/// Why the token takes no wrapped key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// AES-KWP is not there.
    #[error("the token does not unwrap by AES-KWP (RFC 5649), neither as mechanism 0x210a nor as 0x210b")]
    KeyWrap(#[source] Pkcs11Error),
    /// RSA-OAEP is not there.
    #[error("the token does not unwrap by RSA-OAEP, neither with SHA-256 nor with SHA-1")]
    Oaep(#[source] Pkcs11Error),
    /// The pair cannot be made.
    #[error("the token does not make an RSA key pair for unwrapping")]
    Pair(#[source] Pkcs11Error),
    /// Our own cryptography failed.
    #[error("wrapping the key in software failed; this is a fault of the program or of this machine")]
    Software,
}

impl WrapError {
    /// What the token answered, if it was the token.
    #[must_use]
    pub fn fault(&self) -> Option<&Pkcs11Error> {
        match self {
            Self::KeyWrap(fault) | Self::Oaep(fault) | Self::Pair(fault) => Some(fault),
            Self::Software => None,
        }
    }
}

/// A token that is ready to unwrap.
pub struct Wrapping<'s> {
    session: &'s Session,
    aes: Zeroizing<[u8; 32]>,
    aes_in_token: ObjectHandle,
    oaep: OaepHash,
    key_wrap: KeyWrap,
}

impl<'s> Wrapping<'s> {
    /// Makes the pair and the AES key, and finds out how the token wants both, with a throw-away key.
    ///
    /// # Errors
    /// When the token lacks a step of it.
    pub fn establish(session: &'s Session, made: &mut Made<'_>) -> Result<Self, WrapError> {
        let (public_half, private) =
            session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &pair_public(), &pair_private()).map_err(pair)?;
        made.scratch(public_half);
        made.scratch(private);
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
        made.scratch(aes_in_token);
        let mut wrapping = Self { session, aes, aes_in_token, oaep, key_wrap: KeyWrap::Pad };
        wrapping.find_key_wrap(made)?;
        Ok(wrapping)
    }

    /// The hash that the token took.
    #[must_use]
    pub fn oaep(&self) -> OaepHash {
        self.oaep
    }

    /// The mechanism that the token took.
    #[must_use]
    pub fn key_wrap(&self) -> KeyWrap {
        self.key_wrap
    }

    /// Bits of the pair.
    #[must_use]
    pub fn pair_bits(&self) -> u32 {
        PAIR_BITS
    }

    /// Brings a PKCS#8 key into the token as the session object that `template` describes.
    ///
    /// # Errors
    /// When the token refuses.
    pub fn unwrap(&self, pkcs8: &[u8], template: &[Attribute]) -> Result<ObjectHandle, WrapError> {
        let wrapped = self.wrap(pkcs8)?;
        self.session
            .unwrap_key(&self.key_wrap.mechanism(), self.aes_in_token, &wrapped, template)
            .map_err(|e| WrapError::KeyWrap(e.into()))
    }

    /// Tries to wrap an object of the token out of it. The outcome is thrown away: only whether it works counts.
    ///
    /// # Errors
    /// What the token answers when it refuses.
    pub fn wrap_out(&self, object: ObjectHandle) -> Result<(), Pkcs11Error> {
        self.session.wrap_key(&self.key_wrap.mechanism(), self.aes_in_token, object)?;
        Ok(())
    }

    fn find_key_wrap(&mut self, made: &mut Made<'_>) -> Result<(), WrapError> {
        let mut throw_away = Zeroizing::new([0; 32]);
        rand::fill(throw_away.as_mut_slice()).map_err(|_| WrapError::Software)?;
        let mut refused = None;
        for key_wrap in [KeyWrap::Pad, KeyWrap::Kwp] {
            self.key_wrap = key_wrap;
            match self.unwrap(throw_away.as_slice(), &aes_template(true)) {
                Ok(object) => {
                    made.scratch(object);
                    return Ok(());
                }
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(()), Err)
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
