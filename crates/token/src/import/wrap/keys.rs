//! The keys of a wrapped import: templates of those in the token, and the software half that encrypts the CA's key.

use aws_lc_rs::{
    cipher::{AES_256 as AES_256_CBC, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey},
    iv::FixedLength,
    key_wrap::{AES_256, AesKek, KeyWrapPadded},
    rand,
};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use zeroize::{Zeroize, Zeroizing};

use super::WrapError;

/// Size of the RSA pair. It exists for one import only, and generating larger pairs is slow.
pub(super) const PAIR_BITS: u32 = 2048;

pub(super) fn random_key() -> Result<Zeroizing<[u8; 32]>, WrapError> {
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(key.as_mut_slice()).map_err(|_| WrapError::Software)?;
    Ok(key)
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

pub(super) fn pair_public() -> Vec<Attribute> {
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

pub(super) fn pair_private() -> Vec<Attribute> {
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
