//! Import into a token that cannot unwrap: C_CreateObject with the key's numbers in the clear, which leave this process
//! only through the library. Only if the operator permits it.

use cryptoki::object::Attribute;
use zeroize::Zeroize;

use pki::private_key::{Components, PrivateKey, PrivateKeyError};

/// A template with the key's numbers, zeroized when dropped.
pub struct ClearTemplate(Vec<Attribute>);

impl ClearTemplate {
    /// Adds the numbers to the attributes of [`crate::key::template::private`].
    ///
    /// # Errors
    /// Never for a parsed key.
    pub fn new(key: &PrivateKey, flags: Vec<Attribute>) -> Result<Self, PrivateKeyError> {
        let mut template = Self(flags);
        // Reserve first: a reallocated vector would leave its old memory behind, although it has only pointers.
        template.0.reserve(8);
        match key.components()? {
            Components::Ec { parameters, scalar: value } | Components::Ed25519 { parameters, seed: value } => {
                template.0.push(Attribute::EcParams(parameters.to_vec()));
                template.0.push(Attribute::Value(value.to_vec()));
            }
            Components::Rsa(rsa) => template.0.extend([
                Attribute::Modulus(rsa.modulus.to_vec()),
                Attribute::PublicExponent(rsa.public_exponent.to_vec()),
                Attribute::PrivateExponent(rsa.private_exponent.to_vec()),
                Attribute::Prime1(rsa.prime1.to_vec()),
                Attribute::Prime2(rsa.prime2.to_vec()),
                Attribute::Exponent1(rsa.exponent1.to_vec()),
                Attribute::Exponent2(rsa.exponent2.to_vec()),
                Attribute::Coefficient(rsa.coefficient.to_vec()),
            ]),
        }
        Ok(template)
    }

    /// The attributes for C_CreateObject.
    #[must_use]
    pub fn attributes(&self) -> &[Attribute] {
        &self.0
    }
}

impl Drop for ClearTemplate {
    fn drop(&mut self) {
        for attribute in &mut self.0 {
            match attribute {
                Attribute::Value(bytes)
                | Attribute::PrivateExponent(bytes)
                | Attribute::Prime1(bytes)
                | Attribute::Prime2(bytes)
                | Attribute::Exponent1(bytes)
                | Attribute::Exponent2(bytes)
                | Attribute::Coefficient(bytes) => bytes.zeroize(),
                // Flags, names and public numbers.
                _ => {}
            }
        }
    }
}
