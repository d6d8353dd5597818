//! DER formats of private keys: parsed strictly, encoded as PKCS#8 into buffers of their final size.

use const_oid::{
    ObjectIdentifier,
    db::{rfc5912, rfc8410},
};
use der::{
    AnyRef, Decode, Encode, Sequence, Tag, Tagged,
    asn1::{BitStringRef, Null, OctetStringRef, UintRef},
};
use pkcs8::PrivateKeyInfoRef;
use spki::AlgorithmIdentifierRef;
use zeroize::Zeroizing;

use super::{Components, PrivateKeyError, RsaComponents};
use crate::{KeyAlgorithm, PublicKey, key::encoding::unsupported};

/// RFC 8017, appendix A.1.2, with two primes.
#[derive(Sequence)]
struct RsaPrivateKey<'a> {
    version: u8,
    modulus: UintRef<'a>,
    public_exponent: UintRef<'a>,
    private_exponent: UintRef<'a>,
    prime1: UintRef<'a>,
    prime2: UintRef<'a>,
    exponent1: UintRef<'a>,
    exponent2: UintRef<'a>,
    coefficient: UintRef<'a>,
}

/// RFC 5915, section 3.
#[derive(Sequence)]
struct EcPrivateKey<'a> {
    version: u8,
    private_key: &'a OctetStringRef,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    parameters: Option<AnyRef<'a>>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    public_key: Option<BitStringRef<'a>>,
}

type Secret = Zeroizing<Vec<u8>>;
/// PKCS#8 of the private key, and the public key in the file.
type Claim<'a> = (Secret, Option<&'a [u8]>);

/// PKCS#1.
pub(super) fn rsa(der: &[u8]) -> Result<Secret, PrivateKeyError> {
    let key = rsa_structure(der)?;
    let algorithm = AlgorithmIdentifierRef { oid: rfc5912::RSA_ENCRYPTION, parameters: Some(AnyRef::from(Null)) };
    wrap(algorithm, &encode(&key)?)
}

/// SEC 1; `outside` is the content of an `EC PARAMETERS` block.
pub(super) fn ec<'a>(der: &'a [u8], outside: Option<&[u8]>) -> Result<Claim<'a>, PrivateKeyError> {
    let outside = outside
        .map(AnyRef::from_der)
        .transpose()
        .map_err(|_error| PrivateKeyError::Malformed("the EC PARAMETERS are not DER"))?;
    ec_key(der, outside)
}

/// PKCS#8, version 1 or 2.
pub(super) fn pkcs8(der: &[u8]) -> Result<Claim<'_>, PrivateKeyError> {
    let info = key_info(der)?;
    let inner = info.private_key.as_bytes();
    let outer_claim = info.public_key.map(|bits| bits.raw_bytes());
    let (secret, claim) = match info.algorithm.oid {
        rfc5912::RSA_ENCRYPTION => (rsa(inner)?, None),
        rfc5912::ID_EC_PUBLIC_KEY => ec_key(inner, info.algorithm.parameters)?,
        rfc8410::ID_ED_25519 => (ed25519(inner)?, None),
        _ => return Err(unsupported(info.algorithm).into()),
    };
    match (claim, outer_claim) {
        (Some(inner), Some(outer)) if inner != outer => {
            Err(PrivateKeyError::Inconsistent("it claims two public halves"))
        }
        (claim, outer_claim) => Ok((secret, claim.or(outer_claim))),
    }
}

/// Our own PKCS#8 of an elliptic-curve key including its public key, which some tokens require.
pub(super) fn with_public_half(pkcs8: &[u8], public_key: &PublicKey) -> Result<Secret, PrivateKeyError> {
    match components(pkcs8)? {
        Components::Ec { scalar, .. } => wrap_ec(public_key.algorithm(), scalar, Some(public_key.subject_public_key())),
        Components::Ed25519 { .. } | Components::Rsa(_) => Ok(Zeroizing::new(pkcs8.to_vec())),
    }
}

/// The numbers of our own PKCS#8.
pub(super) fn components(pkcs8: &[u8]) -> Result<Components<'_>, PrivateKeyError> {
    let info = key_info(pkcs8)?;
    let inner = info.private_key.as_bytes();
    match info.algorithm.oid {
        rfc5912::ID_EC_PUBLIC_KEY => {
            let parameters = curve_der(named_curve(info.algorithm.parameters.ok_or(NO_CURVE)?)?)?;
            Ok(Components::Ec { parameters, scalar: ec_structure(inner)?.private_key.as_bytes() })
        }
        rfc8410::ID_ED_25519 => {
            Ok(Components::Ed25519 { parameters: curve_der(KeyAlgorithm::Ed25519)?, seed: seed(inner)? })
        }
        rfc5912::RSA_ENCRYPTION => {
            let key = rsa_structure(inner)?;
            Ok(Components::Rsa(RsaComponents {
                modulus: key.modulus.as_bytes(),
                public_exponent: key.public_exponent.as_bytes(),
                private_exponent: key.private_exponent.as_bytes(),
                prime1: key.prime1.as_bytes(),
                prime2: key.prime2.as_bytes(),
                exponent1: key.exponent1.as_bytes(),
                exponent2: key.exponent2.as_bytes(),
                coefficient: key.coefficient.as_bytes(),
            }))
        }
        _ => Err(unsupported(info.algorithm).into()),
    }
}

/// The PEM label that belongs to a private key of this form.
pub(super) fn label(der: &[u8]) -> Option<&'static str> {
    if PrivateKeyInfoRef::from_der(der).is_ok() {
        Some("PRIVATE KEY")
    } else if RsaPrivateKey::from_der(der).is_ok() {
        Some("RSA PRIVATE KEY")
    } else if EcPrivateKey::from_der(der).is_ok() {
        Some("EC PRIVATE KEY")
    } else {
        pkcs8::EncryptedPrivateKeyInfoRef::from_der(der).is_ok().then_some("ENCRYPTED PRIVATE KEY")
    }
}

const NO_CURVE: PrivateKeyError = PrivateKeyError::Malformed("it does not name its curve");

fn key_info(der: &[u8]) -> Result<PrivateKeyInfoRef<'_>, PrivateKeyError> {
    PrivateKeyInfoRef::from_der(der)
        .map_err(|_error| PrivateKeyError::Malformed("it is not a DER PrivateKeyInfo (PKCS#8)"))
}

fn rsa_structure(der: &[u8]) -> Result<RsaPrivateKey<'_>, PrivateKeyError> {
    let key = RsaPrivateKey::from_der(der)
        .map_err(|_error| PrivateKeyError::Malformed("it is not a DER RSAPrivateKey with two primes (PKCS#1)"))?;
    if key.version != 0 {
        return Err(PrivateKeyError::Malformed("it has more than two primes"));
    }
    Ok(key)
}

fn ec_structure(der: &[u8]) -> Result<EcPrivateKey<'_>, PrivateKeyError> {
    let key = EcPrivateKey::from_der(der)
        .map_err(|_error| PrivateKeyError::Malformed("it is not a DER ECPrivateKey (SEC 1)"))?;
    if key.version != 1 {
        return Err(PrivateKeyError::Malformed("its version is not 1"));
    }
    Ok(key)
}

/// A SEC 1 structure whose curve may also be named outside of it; if it is named twice, both must be equal.
fn ec_key<'a>(der: &'a [u8], around: Option<AnyRef<'_>>) -> Result<Claim<'a>, PrivateKeyError> {
    let key = ec_structure(der)?;
    let inside = key.parameters.map(named_curve).transpose()?;
    let around = around.map(named_curve).transpose()?;
    if inside.is_some() && around.is_some() && inside != around {
        return Err(PrivateKeyError::Inconsistent("it names two curves"));
    }
    let curve = inside.or(around).ok_or(NO_CURVE)?;
    let length = if curve == KeyAlgorithm::P384 { 48 } else { 32 };
    let scalar = scalar(key.private_key.as_bytes(), length)?;
    Ok((wrap_ec(curve, &scalar, None)?, key.public_key.map(|bits| bits.raw_bytes())))
}

fn named_curve(parameters: AnyRef<'_>) -> Result<KeyAlgorithm, PrivateKeyError> {
    if parameters.tag() == Tag::Sequence {
        return Err(PrivateKeyError::ExplicitCurve);
    }
    match parameters.decode_as::<ObjectIdentifier>() {
        Ok(rfc5912::SECP_256_R_1) => Ok(KeyAlgorithm::P256),
        Ok(rfc5912::SECP_384_R_1) => Ok(KeyAlgorithm::P384),
        Ok(_) => {
            let algorithm = AlgorithmIdentifierRef { oid: rfc5912::ID_EC_PUBLIC_KEY, parameters: Some(parameters) };
            Err(unsupported(algorithm).into())
        }
        Err(_) => Err(NO_CURVE),
    }
}

fn curve_der(curve: KeyAlgorithm) -> Result<&'static [u8], PrivateKeyError> {
    curve.ec_parameters_der().ok_or(NO_CURVE)
}

/// The scalar with the length of its field: some encoders omit leading zeros, some add one.
fn scalar(bytes: &[u8], length: usize) -> Result<Secret, PrivateKeyError> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let number = bytes.get(zeros..).unwrap_or_default();
    let padding = length
        .checked_sub(number.len())
        .ok_or(PrivateKeyError::Malformed("its number is longer than its curve allows"))?;
    let mut scalar = Zeroizing::new(Vec::with_capacity(length));
    scalar.resize(padding, 0);
    scalar.extend_from_slice(number);
    Ok(scalar)
}

/// RFC 8410, section 7: an OCTET STRING in an OCTET STRING.
fn seed(der: &[u8]) -> Result<&[u8], PrivateKeyError> {
    let seed = <&OctetStringRef>::from_der(der).map(OctetStringRef::as_bytes).unwrap_or_default();
    if seed.len() != 32 {
        return Err(PrivateKeyError::Malformed("its Ed25519 seed is not 32 bytes"));
    }
    Ok(seed)
}

fn ed25519(der: &[u8]) -> Result<Secret, PrivateKeyError> {
    let inner = encode(&OctetStringRef::new(seed(der)?).map_err(unencodable)?)?;
    wrap(AlgorithmIdentifierRef { oid: rfc8410::ID_ED_25519, parameters: None }, &inner)
}

fn wrap_ec(curve: KeyAlgorithm, scalar: &[u8], public: Option<&[u8]>) -> Result<Secret, PrivateKeyError> {
    let parameters = AnyRef::from_der(curve_der(curve)?).map_err(unencodable)?;
    let inner = encode(&EcPrivateKey {
        version: 1,
        private_key: OctetStringRef::new(scalar).map_err(unencodable)?,
        parameters: None,
        public_key: public.map(BitStringRef::from_bytes).transpose().map_err(unencodable)?,
    })?;
    wrap(AlgorithmIdentifierRef { oid: rfc5912::ID_EC_PUBLIC_KEY, parameters: Some(parameters) }, &inner)
}

fn wrap(algorithm: AlgorithmIdentifierRef<'_>, inner: &[u8]) -> Result<Secret, PrivateKeyError> {
    encode(&PrivateKeyInfoRef::new(algorithm, OctetStringRef::new(inner).map_err(unencodable)?))
}

/// Encodes into one buffer of the final size, so that no reallocation leaves a copy behind.
fn encode(value: &impl Encode) -> Result<Secret, PrivateKeyError> {
    let length = value.encoded_len().and_then(usize::try_from).map_err(unencodable)?;
    let mut der = Zeroizing::new(vec![0; length]);
    value.encode_to_slice(&mut der).map_err(unencodable)?;
    Ok(der)
}

fn unencodable(_error: der::Error) -> PrivateKeyError {
    PrivateKeyError::Malformed("its numbers cannot be encoded")
}
