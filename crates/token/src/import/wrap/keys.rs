//! The keys of a wrapped import: templates of those in the token, and the software half that encrypts the CA's key.

use aws_lc_rs::{
    cipher::{AES_256 as AES_256_CBC, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey},
    iv::FixedLength,
    key_wrap::{AES_256, AesKek, KeyWrapPadded},
    rand,
    rsa::{OaepPublicEncryptingKey, PublicEncryptingKey},
};
use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use zeroize::{Zeroize, Zeroizing};

use super::{Keys, OaepHash, WrapError};
use crate::key::{
    public,
    template::{self, Omission},
};

/// Size of the RSA pair. It exists for one import only, and generating larger pairs is slow.
pub(super) const PAIR_BITS: u32 = 2048;

pub(super) fn random_key() -> Result<Zeroizing<[u8; 32]>, WrapError> {
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(key.as_mut_slice()).map_err(|_| WrapError::Software)?;
    Ok(key)
}

/// The RSA pair of one import.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) public_half: ObjectHandle,
    pub(super) private: ObjectHandle,
    spki: Vec<u8>,
}

impl Pair {
    pub(super) fn generate(session: &Session) -> Result<Self, WrapError> {
        let generate = |omission: Omission| {
            let halves = (omission.apply(&pair_public()), omission.apply(&pair_private()));
            Ok(session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &halves.0, &halves.1)?)
        };
        let all = [pair_public(), pair_private()].concat();
        let ((public_half, private), _) = template::with_fallbacks(&all, generate).map_err(WrapError::Pair)?;
        match public::read(session, public_half).map_err(WrapError::Pair)? {
            Ok(key) => Ok(Self { public_half, private, spki: key.spki_der().to_vec() }),
            Err(_) => Err(WrapError::Software),
        }
    }

    pub(super) fn encrypt(&self, hash: OaepHash, key: &[u8]) -> Result<Vec<u8>, WrapError> {
        let recipient = PublicEncryptingKey::from_der(&self.spki).map_err(|_| WrapError::Software)?;
        let recipient = OaepPublicEncryptingKey::new(recipient).map_err(|_| WrapError::Software)?;
        let mut output = vec![0; recipient.ciphertext_size()];
        let length = recipient.encrypt(hash.software(), key, &mut output, None).map_err(|_| WrapError::Software)?.len();
        output.truncate(length);
        Ok(output)
    }

    /// Has the token unwrap a new AES key.
    pub(super) fn send_aes(&self, session: &Session, hash: OaepHash) -> Result<Keys, WrapError> {
        let key = random_key()?;
        let wrapped = self.encrypt(hash, key.as_slice())?;
        let attributes = aes_template(false, true);
        let unwrap = |omission: Omission| {
            Ok(session.unwrap_key(&hash.mechanism(), self.private, &wrapped, &omission.apply(&attributes))?)
        };
        let (in_token, _) = template::with_fallbacks(&attributes, unwrap).map_err(WrapError::Oaep)?;
        Ok(Keys::Aes { key, in_token })
    }
}

/// Has the token generate an AES key, and reads it.
pub(super) fn generate_aes(session: &Session) -> Result<Keys, WrapError> {
    let failed = |error: cryptoki::error::Error| WrapError::GeneratedKey(error.into());
    let mut attributes = aes_template(false, false);
    attributes.push(Attribute::ValueLen(32.into()));
    let generate = |omission: Omission| Ok(session.generate_key(&Mechanism::AesKeyGen, &omission.apply(&attributes))?);
    let (in_token, _) = template::with_fallbacks(&attributes, generate).map_err(WrapError::GeneratedKey)?;
    let mut key = Zeroizing::new([0; 32]);
    for attribute in session.get_attributes(in_token, &[AttributeType::Value]).map_err(failed)? {
        if let Attribute::Value(mut value) = attribute {
            if value.len() == key.len() {
                key.copy_from_slice(&value);
            }
            value.zeroize();
        }
    }
    // A token that does not reveal the value returns no attribute.
    if key.iter().all(|byte| *byte == 0) {
        let error = cryptoki::error::Error::Pkcs11(
            cryptoki::error::RvError::AttributeSensitive,
            cryptoki::context::Function::GetAttributeValue,
        );
        return Err(failed(error));
    }
    Ok(Keys::Aes { key, in_token })
}

/// RFC 5649.
pub(super) fn wrap_kwp(key: &[u8; 32], pkcs8: &[u8]) -> Result<Vec<u8>, WrapError> {
    let kek = AesKek::new(&AES_256, key.as_slice()).map_err(|_| WrapError::Software)?;
    // Padded to eight bytes, and eight bytes before it.
    let mut output = vec![0; pkcs8.len() + 16];
    let length = kek.wrap_with_padding(pkcs8, &mut output).map_err(|_| WrapError::Software)?.len();
    output.truncate(length);
    Ok(output)
}

/// AES-256-CBC with the padding of PKCS#7.
pub(super) fn wrap_cbc(key: &[u8; 32], pkcs8: &[u8], iv: [u8; 16]) -> Result<Vec<u8>, WrapError> {
    let key = UnboundCipherKey::new(&AES_256_CBC, key.as_slice()).and_then(PaddedBlockEncryptingKey::cbc_pkcs7);
    let key = key.map_err(|_| WrapError::Software)?;
    // Encrypted in place; with room for the padding, no copy of the key is left behind.
    let mut output = Vec::with_capacity(pkcs8.len() + 16);
    output.extend_from_slice(pkcs8);
    match key.less_safe_encrypt(&mut output, EncryptionContext::Iv128(FixedLength::from(iv))) {
        Ok(_) => Ok(output),
        Err(_) => {
            output.zeroize();
            Err(WrapError::Software)
        }
    }
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

/// The AES key that unwraps and, for the proof that the key cannot be wrapped out, wraps; also the throw-away key. Only
/// a key that the token generates for this program to read is not `sensitive`.
pub(super) fn aes_template(throw_away: bool, sensitive: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(sensitive),
        Attribute::Extractable(!sensitive),
        Attribute::Wrap(!throw_away),
        Attribute::Unwrap(!throw_away),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
    ]
}
