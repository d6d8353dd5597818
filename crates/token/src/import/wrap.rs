//! Import of the private key in wrapped form.
//!
//! The ways in are tried strictest first, with a random key of the CA key's type, and the first that the token can do is
//! used. Usually an RSA key pair generated in the token for this import unwraps an AES key (RSA-OAEP), which unwraps the
//! private key (AES-KWP, RFC 5649). All keys of a way are session objects and end with the session.

mod keys;

use std::fmt;

use aws_lc_rs::{
    rand,
    rsa::{OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm},
};
use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
        vendor_defined::VendorDefinedMechanism,
    },
    object::{Attribute, ObjectHandle},
    session::Session,
};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use keys::{PAIR_BITS, Pair, aes_template, generate_aes, random_key, wrap_cbc, wrap_kwp};

use super::{How, rehearsal};
use crate::{
    Pkcs11Error,
    key::{
        objects::Made,
        template::{self, Omission},
    },
};
use pki::KeyAlgorithm;

/// CKM_AES_KEY_WRAP_KWP (PKCS#11 v3.0, section 2.13.1).
const CKM_AES_KEY_WRAP_KWP: Number = 0x210b;
/// CKM_RSA_AES_KEY_WRAP (PKCS#11 v3.0, section 2.1.19).
const CKM_RSA_AES_KEY_WRAP: Number = 0x1054;

/// The integer that CK_ULONG is on this platform.
pub type Number = std::ffi::c_ulong;

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

/// The mechanism that unwraps the private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyWrap {
    /// CKM_AES_CBC_PAD. Unlike the others it does not detect damage, which the proof of the key does.
    CbcPad,
    /// CKM_AES_KEY_WRAP_KWP, standard since v3.0.
    Kwp,
    /// CKM_RSA_PKCS_OAEP, without an AES key: for keys that fit into one RSA operation.
    Oaep,
    /// CKM_AES_KEY_WRAP_PAD, the earlier number, with which some tokens (SoftHSM) mean RFC 5649.
    Pad,
    /// CKM_RSA_AES_KEY_WRAP: RSA-OAEP and RFC 5649 in one mechanism.
    RsaAes,
    /// A vendor's number for RFC 5649.
    Vendor(Number),
}

impl fmt::Display for KeyWrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CbcPad => f.write_str("CKM_AES_CBC_PAD (0x1085)"),
            Self::Kwp => f.write_str("CKM_AES_KEY_WRAP_KWP (0x210b)"),
            Self::Oaep => f.write_str("CKM_RSA_PKCS_OAEP (0x9)"),
            Self::Pad => f.write_str("CKM_AES_KEY_WRAP_PAD (0x210a)"),
            Self::RsaAes => f.write_str("CKM_RSA_AES_KEY_WRAP (0x1054)"),
            Self::Vendor(number) => write!(f, "the vendor's mechanism 0x{number:x}"),
        }
    }
}

impl Serialize for KeyWrap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How strictly the private key is protected on its way, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// RFC 5649 under an AES key that the token unwraps with RSA-OAEP.
    AesKwpUnderRsaOaep,
    /// CKM_RSA_AES_KEY_WRAP, the same in one mechanism.
    RsaAesKeyWrap,
    /// As the first, with RFC 5649 under a vendor's mechanism number.
    VendorKwpUnderRsaOaep,
    /// CKM_AES_CBC_PAD under an AES key that the token unwraps with RSA-OAEP.
    AesCbcPadUnderRsaOaep,
    /// Directly under RSA-OAEP, as some tokens and remote protocols have no AES mechanism that unwraps. For elliptic-curve
    /// keys, which are short enough. The standard describes it for secret keys only (PKCS#11 v3.1, section 6.1.8).
    RsaOaep,
    /// Under an AES key that the token generates and reveals to this program: as strict as the connection to the token's
    /// library is private.
    AesKeyGeneratedInToken,
}

/// Reasons why the token cannot unwrap a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// An AES key cannot be generated and read.
    #[error("the token does not generate an AES key that this program can read")]
    GeneratedKey(#[source] Pkcs11Error),
    /// The mechanism is not supported for such a key.
    #[error("the token cannot unwrap with {mechanism}")]
    KeyWrap {
        /// The mechanism.
        mechanism: KeyWrap,
        /// The token's error.
        #[source]
        source: Pkcs11Error,
    },
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
            Self::GeneratedKey(fault) | Self::KeyWrap { source: fault, .. } | Self::Oaep(fault) | Self::Pair(fault) => {
                Some(fault)
            }
            Self::Software => None,
        }
    }

    /// Whether the token lacks the ability, so that the next level may work.
    #[must_use]
    pub(super) fn is_inability(&self) -> bool {
        self.fault().is_some_and(Pkcs11Error::is_inability)
    }
}

/// Session keys of a token that unwrap. They exist until the session is closed.
pub(super) struct Wrapping {
    way: Way,
    /// What is left out from the key's template; or why the way unwraps other keys and not such a one.
    unwraps: Result<Omission, WrapError>,
}

/// One way into the token.
struct Way {
    level: Level,
    mechanism: KeyWrap,
    hash: Option<OaepHash>,
    keys: Keys,
}

/// The keys of a way.
enum Keys {
    Aes { key: Zeroizing<[u8; 32]>, in_token: ObjectHandle },
    Rsa(Pair),
}

impl fmt::Debug for Wrapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Way { level, mechanism, hash, .. } = &self.way;
        f.debug_struct("Wrapping").field("level", level).field("mechanism", mechanism).field("hash", hash).finish()
    }
}

impl Wrapping {
    /// Finds the strictest way by which the token unwraps a random key of such a type. `vendor` is a vendor's mechanism
    /// number for RFC 5649.
    ///
    /// # Errors
    /// When there is no way that unwraps anything: the error of the strictest one. When a way fails for a reason that
    /// the next one would not avoid.
    pub(super) fn establish(
        session: &Session,
        algorithm: KeyAlgorithm,
        signing: Option<MechanismType>,
        vendor: Option<Number>,
    ) -> Result<Self, WrapError> {
        let mut attempts = Attempts { session, algorithm, signing, half: None, first: None };
        let pair = attempts.possible(Pair::generate(session))?;
        let mut sent = None;
        if let Some(pair) = &pair {
            for hash in [OaepHash::Sha256, OaepHash::Sha1] {
                if let Some(keys) = attempts.possible(pair.send_aes(session, hash))? {
                    sent = Some((hash, keys));
                    break;
                }
            }
        }
        let vendor = vendor.map(KeyWrap::Vendor);
        let short = !matches!(algorithm, KeyAlgorithm::Rsa { .. });
        let underneath = [
            (Level::AesKwpUnderRsaOaep, vec![KeyWrap::Pad, KeyWrap::Kwp]),
            (Level::RsaAesKeyWrap, vec![KeyWrap::RsaAes]),
            (Level::VendorKwpUnderRsaOaep, vendor.into_iter().collect()),
            (Level::AesCbcPadUnderRsaOaep, vec![KeyWrap::CbcPad]),
            (Level::RsaOaep, if short { vec![KeyWrap::Oaep] } else { Vec::new() }),
        ];
        for (level, mechanisms) in underneath {
            for mechanism in mechanisms {
                let ways: Vec<Way> = match (mechanism, &pair, &sent) {
                    (KeyWrap::Oaep | KeyWrap::RsaAes, Some(pair), _) => [OaepHash::Sha256, OaepHash::Sha1]
                        .map(|hash| Way { level, mechanism, hash: Some(hash), keys: Keys::Rsa(pair.clone()) })
                        .into(),
                    (KeyWrap::Oaep | KeyWrap::RsaAes, None, _) | (_, _, None) => Vec::new(),
                    (_, _, Some((hash, keys))) => {
                        vec![Way { level, mechanism, hash: Some(*hash), keys: keys.again() }]
                    }
                };
                for way in ways {
                    if let Some(found) = attempts.rehearse(way)? {
                        return Ok(found);
                    }
                }
            }
        }
        if let Some(keys) = attempts.possible(generate_aes(session))? {
            let level = Level::AesKeyGeneratedInToken;
            for mechanism in [KeyWrap::Pad, KeyWrap::Kwp].into_iter().chain(vendor).chain([KeyWrap::CbcPad]) {
                if let Some(found) = attempts.rehearse(Way { level, mechanism, hash: None, keys: keys.again() })? {
                    return Ok(found);
                }
            }
        }
        attempts.half.ok_or_else(|| attempts.first.unwrap_or(WrapError::Software))
    }

    /// What is left out from the key's template, if such a key can be unwrapped.
    pub(super) fn unwraps(&self) -> Result<Omission, WrapError> {
        self.unwraps.clone()
    }

    /// How an unwrapped key was imported, for the report.
    pub(super) fn how(&self) -> How {
        let Way { level, mechanism, hash, .. } = &self.way;
        How::Wrapped { level: *level, oaep_hash: *hash, key_wrap: *mechanism, pair_bits: hash.map(|_| PAIR_BITS) }
    }

    /// Unwraps a PKCS#8 key (C_UnwrapKey) into the object described by `template`.
    pub(super) fn unwrap(
        &self,
        session: &Session,
        pkcs8: &[u8],
        template: &[Attribute],
    ) -> Result<ObjectHandle, WrapError> {
        self.way.unwrap(session, pkcs8, template)
    }

    /// Tries to wrap an object (C_WrapKey) and discards the result.
    pub(super) fn wrap_out(&self, session: &Session, object: ObjectHandle) -> Result<(), Pkcs11Error> {
        let with = match &self.way.keys {
            Keys::Aes { in_token, .. } => *in_token,
            Keys::Rsa(pair) => pair.public_half,
        };
        let wrap = |mechanism: &Mechanism<'_>| session.wrap_key(mechanism, with, object);
        self.way.with_mechanism([0; 16], wrap)?;
        Ok(())
    }
}

/// The attempts of one import to find a way.
struct Attempts<'a> {
    session: &'a Session,
    algorithm: KeyAlgorithm,
    signing: Option<MechanismType>,
    /// The strictest way that unwraps other keys.
    half: Option<Wrapping>,
    first: Option<WrapError>,
}

impl Attempts<'_> {
    /// The result of a step, or `None` where the token lacks the ability.
    fn possible<T>(&mut self, step: Result<T, WrapError>) -> Result<Option<T>, WrapError> {
        match step {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_inability() => {
                self.first.get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Unwraps a random key of the CA key's type, or else a random AES key.
    fn rehearse(&mut self, way: Way) -> Result<Option<Wrapping>, WrapError> {
        let session = self.session;
        let key = rehearsal::random_pkcs8(self.algorithm).ok_or(WrapError::Software)?;
        let attributes = rehearsal::template(self.algorithm, self.signing);
        let mut made = Made::new(session);
        let mut software = None;
        let unwrapped = template::with_fallbacks(&attributes, |omission| {
            way.unwrap(session, &key, &omission.apply(&attributes)).map_err(|error| match error.fault() {
                Some(fault) => fault.clone(),
                None => {
                    software = Some(error);
                    // Never seen: `software` goes first.
                    Pkcs11Error::from(cryptoki::error::Error::InvalidValue)
                }
            })
        });
        if let Some(error) = software {
            return Err(error);
        }
        let unwrapped = unwrapped.map_err(|source| WrapError::KeyWrap { mechanism: way.mechanism, source });
        if let Err(error) = &unwrapped
            && error.is_inability()
            && self.half.is_none()
        {
            let other = way.unwrap(session, random_key()?.as_slice(), &aes_template(true, true));
            if let Ok(object) = other {
                made.scratch(object);
                self.half = Some(Wrapping { way, unwraps: Err(error.clone()) });
                self.possible(unwrapped)?;
                return Ok(None);
            }
        }
        Ok(self.possible(unwrapped)?.map(|(object, omission)| {
            made.scratch(object);
            Wrapping { way, unwraps: Ok(omission) }
        }))
    }
}

impl Keys {
    /// The same keys for another way.
    fn again(&self) -> Self {
        match self {
            Self::Aes { key, in_token } => Self::Aes { key: key.clone(), in_token: *in_token },
            Self::Rsa(pair) => Self::Rsa(pair.clone()),
        }
    }
}

/// CK_RSA_AES_KEY_WRAP_PARAMS (PKCS#11 v3.0, section 2.1.20).
#[repr(C)]
struct RsaAesParameters<'a> {
    aes_key_bits: Number,
    oaep: *const PkcsOaepParams<'a>,
}

impl Way {
    fn unwrap(&self, session: &Session, pkcs8: &[u8], template: &[Attribute]) -> Result<ObjectHandle, WrapError> {
        let mut iv = [0; 16];
        rand::fill(&mut iv).map_err(|_| WrapError::Software)?;
        let (wrapped, with) = match &self.keys {
            Keys::Aes { key, in_token } => (self.wrap(key, pkcs8, iv)?, *in_token),
            Keys::Rsa(pair) if self.mechanism == KeyWrap::Oaep => (pair.encrypt(self.hash(), pkcs8)?, pair.private),
            Keys::Rsa(pair) => {
                let key = random_key()?;
                let mut wrapped = pair.encrypt(self.hash(), key.as_slice())?;
                wrapped.extend(wrap_kwp(&key, pkcs8)?);
                (wrapped, pair.private)
            }
        };
        self.with_mechanism(iv, |mechanism| session.unwrap_key(mechanism, with, &wrapped, template))
            .map_err(|e| WrapError::KeyWrap { mechanism: self.mechanism, source: e.into() })
    }

    /// The hash of RSA-OAEP.
    fn hash(&self) -> OaepHash {
        self.hash.unwrap_or(OaepHash::Sha256)
    }

    fn wrap(&self, key: &[u8; 32], pkcs8: &[u8], iv: [u8; 16]) -> Result<Vec<u8>, WrapError> {
        if self.mechanism == KeyWrap::CbcPad { wrap_cbc(key, pkcs8, iv) } else { wrap_kwp(key, pkcs8) }
    }

    fn with_mechanism<T>(&self, iv: [u8; 16], call: impl FnOnce(&Mechanism<'_>) -> T) -> T {
        let numbered = |number| VendorDefinedMechanism::new::<()>(mechanism_type(number), None);
        match self.mechanism {
            KeyWrap::CbcPad => call(&Mechanism::AesCbcPad(iv)),
            KeyWrap::Kwp => call(&Mechanism::VendorDefined(numbered(CKM_AES_KEY_WRAP_KWP))),
            KeyWrap::Oaep => call(&self.hash().mechanism()),
            KeyWrap::Pad => call(&Mechanism::AesKeyWrapPad),
            KeyWrap::Vendor(number) => call(&Mechanism::VendorDefined(numbered(number))),
            KeyWrap::RsaAes => {
                let oaep = self.hash().parameters();
                let parameters = RsaAesParameters { aes_key_bits: 256, oaep: &raw const oaep };
                let number = mechanism_type(CKM_RSA_AES_KEY_WRAP);
                call(&Mechanism::VendorDefined(VendorDefinedMechanism::new(number, Some(&parameters))))
            }
        }
    }
}

impl OaepHash {
    fn parameters(self) -> PkcsOaepParams<'static> {
        let (hash, mgf) = match self {
            Self::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
            Self::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        };
        PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty())
    }

    fn mechanism(self) -> Mechanism<'static> {
        Mechanism::RsaPkcsOaep(self.parameters())
    }

    fn software(self) -> &'static OaepAlgorithm {
        match self {
            Self::Sha1 => &OAEP_SHA1_MGF1SHA1,
            Self::Sha256 => &OAEP_SHA256_MGF1SHA256,
        }
    }
}

/// A mechanism that the binding has no name for, and whose constructor for other numbers takes those of vendors alone.
#[expect(unsafe_code, reason = "the binding cannot express these numbers of the standard in another way")]
fn mechanism_type(number: Number) -> MechanismType {
    // SAFETY: MechanismType is a `#[repr(transparent)]` struct around one CK_MECHANISM_TYPE, every value of which is a
    // valid one; `transmute` itself refuses to compile should the sizes ever differ.
    unsafe { std::mem::transmute::<Number, MechanismType>(number) }
}
