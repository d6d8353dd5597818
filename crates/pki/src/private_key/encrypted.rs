//! EncryptedPrivateKeyInfo (RFC 5958, section 3) with PBES2 (RFC 8018): decrypted in place, at a bounded cost.

use der::Decode;
use pkcs8::{
    EncryptedPrivateKeyInfoRef,
    pkcs5::{EncryptionScheme, Error, pbes2::Kdf},
};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::PrivateKeyError;

/// Maximum number of PBKDF2 iterations: seconds of work; the highest recommendations are below two million.
const ITERATIONS_MAX: u32 = 20_000_000;
/// Maximum memory for scrypt; OpenSSL writes 16 MiB, and by default rejects more than 32 MiB.
const SCRYPT_BYTES_MAX: u64 = 512 << 20;

/// The plaintext without its padding.
pub(super) fn decrypt(der: &[u8], passphrase: &SecretString) -> Result<Zeroizing<Vec<u8>>, PrivateKeyError> {
    let info = EncryptedPrivateKeyInfoRef::from_der(der).map_err(|_error| {
        PrivateKeyError::UnsupportedEncryption("it is not PBES2 with PBKDF2 or scrypt and AES, or not DER")
    })?;
    let scheme = match &info.encryption_algorithm {
        EncryptionScheme::Pbes2(scheme) => scheme,
        _ => return Err(PrivateKeyError::UnsupportedEncryption("it is PBES1")),
    };
    check_cost(&scheme.kdf)?;
    let mut buffer = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
    let length = match scheme.decrypt_in_place(passphrase.expose_secret(), &mut buffer) {
        Ok(plain) => plain.len(),
        Err(Error::UnsupportedAlgorithm { .. } | Error::AlgorithmParametersInvalid { .. }) => {
            return Err(PrivateKeyError::UnsupportedEncryption("its algorithms are not SHA-2 and AES"));
        }
        Err(_) => return Err(PrivateKeyError::PassphraseWrong),
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// The file determines the cost of its decryption; limit it.
fn check_cost(kdf: &Kdf) -> Result<(), PrivateKeyError> {
    let within = match kdf {
        Kdf::Pbkdf2(pbkdf2) => (1..=ITERATIONS_MAX).contains(&pbkdf2.iteration_count),
        Kdf::Scrypt(scrypt) => {
            let block = 128 * u64::from(scrypt.block_size);
            let bytes = scrypt.cost_parameter.checked_mul(block);
            scrypt.cost_parameter.is_power_of_two()
                && scrypt.cost_parameter > 1
                && (1..=16).contains(&scrypt.parallelization)
                && bytes.is_some_and(|bytes| (1..=SCRYPT_BYTES_MAX).contains(&bytes))
        }
        _ => false,
    };
    if within { Ok(()) } else { Err(PrivateKeyError::UnsupportedEncryption("its key derivation is out of bounds")) }
}
