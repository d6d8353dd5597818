//! JSON Web Key Sets (RFC 7517): the public keys for verifying JWTs.
//!
//! Pure. Keys of other types, uses or algorithms are ignored, since an issuer may publish more than we support; a
//! malformed key of a supported type rejects the whole set.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use serde::Deserialize;

use super::Algorithm;

/// Maximum number of keys in a set; Kubernetes publishes one to three.
const MOST: usize = 64;
/// Maximum length of a key ID in bytes.
const MOST_KID: usize = 1024;
/// Sizes of RSA moduli in bytes: 2048 to 8192 bits, which aws-lc-rs supports for verification.
const RSA_SIZES: std::ops::RangeInclusive<usize> = 256..=1024;

/// A key set is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// There is no usable key.
    #[error("the key set holds no public key for RS256, ES256 or ES384")]
    Empty,
    /// A key of a supported type is malformed.
    #[error("key {0} of the set is malformed")]
    Key(usize),
    /// Not a key set.
    #[error("the document is not a JSON Web Key Set")]
    Malformed,
    /// Something else that stands where a key set is expected.
    #[error("the document is {0}, not a JSON Web Key Set")]
    Other(&'static str),
    /// There are more keys than any issuer publishes.
    #[error("the key set holds more than {MOST} keys")]
    TooMany,
}

/// A public key for verifying JWTs.
#[derive(Clone)]
pub struct Jwk {
    kid: Option<String>,
    algorithm: Algorithm,
    material: Material,
    decoding_key: DecodingKey,
}

/// The key material, for comparing two keys.
#[derive(Clone, PartialEq, Eq)]
enum Material {
    Ec { x: Vec<u8>, y: Vec<u8> },
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
}

/// Parses a key set.
///
/// # Errors
/// If it is malformed or has no usable key.
pub fn parse(json: &[u8]) -> Result<Vec<Jwk>, JwksError> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    let document: Document = serde_json::from_slice(json).map_err(|_| other(json))?;
    if document.keys.len() > MOST {
        return Err(JwksError::TooMany);
    }
    let mut keys = Vec::new();
    for (number, entry) in (1..).zip(&document.keys) {
        if let Some(algorithm) = entry.algorithm() {
            keys.push(Jwk::new(entry, algorithm).ok_or(JwksError::Key(number))?);
        }
    }
    if keys.is_empty() { Err(JwksError::Empty) } else { Ok(keys) }
}

/// What a document is that is not a key set.
fn other(document: &[u8]) -> JwksError {
    let text = String::from_utf8_lossy(document);
    let starts = |with: &str| text.trim_start().starts_with(with);
    let has = |key: &str| {
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(document)
            .is_ok_and(|it| it.contains_key(key))
    };
    JwksError::Other(if text.trim().is_empty() {
        "empty"
    } else if starts("<") {
        "an HTML or XML page, such as a login or error page"
    } else if starts("-----BEGIN ") {
        "PEM"
    } else if has("jwks_uri") {
        "a discovery document, whose jwks_uri names the key set"
    } else if has("kty") {
        "a single key, which belongs into the list `keys` of a key set"
    } else {
        return JwksError::Malformed;
    })
}

impl Entry {
    /// The algorithm of the key, if it is supported: a key has exactly one (RFC 8725, section 3.1).
    fn algorithm(&self) -> Option<Algorithm> {
        let algorithm = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Algorithm::Rs256,
            ("EC", Some("P-256")) => Algorithm::Es256,
            ("EC", Some("P-384")) => Algorithm::Es384,
            _ => return None,
        };
        let same = self.alg.as_deref().is_none_or(|name| name == algorithm.as_str());
        let signs = self.usage.as_deref().is_none_or(|usage| usage == "sig");
        let verifies = self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|one| one == "verify"));
        (same && signs && verifies).then_some(algorithm)
    }
}

impl Jwk {
    fn new(entry: &Entry, algorithm: Algorithm) -> Option<Self> {
        let decode = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        if entry.kid.as_ref().is_some_and(|kid| kid.len() > MOST_KID) {
            return None;
        }
        let material = match algorithm {
            Algorithm::Rs256 => rsa(decode(&entry.n)?, decode(&entry.e)?)?,
            Algorithm::Es256 => ec(decode(&entry.x)?, decode(&entry.y)?, 32)?,
            Algorithm::Es384 => ec(decode(&entry.x)?, decode(&entry.y)?, 48)?,
        };
        let decoding_key = match &material {
            Material::Ec { x, y } => {
                // An uncompressed point (SEC 1, section 2.3.3); aws-lc-rs checks that it is on the curve.
                let point: Vec<u8> = std::iter::once(4).chain(x.iter().copied()).chain(y.iter().copied()).collect();
                DecodingKey::from_ec_der(&point)
            }
            Material::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
        };
        Some(Self { kid: entry.kid.clone(), algorithm, material, decoding_key })
    }

    /// The key's ID.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The only algorithm that the key is used with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key for the verification library.
    #[must_use]
    pub fn decoding_key(&self) -> &DecodingKey {
        &self.decoding_key
    }
}

impl PartialEq for Jwk {
    fn eq(&self, other: &Self) -> bool {
        self.kid == other.kid && self.algorithm == other.algorithm && self.material == other.material
    }
}

impl std::fmt::Debug for Jwk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwk").field("kid", &self.kid).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// RFC 7518, section 6.3.1. Small or even exponents are rejected.
fn rsa(n: Vec<u8>, e: Vec<u8>) -> Option<Material> {
    let exponent = e.iter().try_fold(0u32, |value, byte| value.checked_mul(256)?.checked_add(u32::from(*byte)))?;
    let leads = n.first().is_some_and(|first| *first != 0);
    (RSA_SIZES.contains(&n.len()) && leads && exponent >= 3 && exponent % 2 == 1).then_some(Material::Rsa { n, e })
}

/// RFC 7518, section 6.2.1: both coordinates have the full length of the field.
fn ec(x: Vec<u8>, y: Vec<u8>, size: usize) -> Option<Material> {
    (x.len() == size && y.len() == size).then_some(Material::Ec { x, y })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[&str]) -> String {
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    fn b64(size: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![0xab; size])
    }

    #[test]
    fn key_sets() {
        let rsa = format!(r#"{{"kty":"RSA","kid":"r","alg":"RS256","use":"sig","n":"{}","e":"AQAB"}}"#, b64(256));
        let ec = format!(r#"{{"kty":"EC","crv":"P-256","x":"{0}","y":"{0}"}}"#, b64(32));
        let ec384 = format!(r#"{{"kty":"EC","crv":"P-384","key_ops":["verify"],"x":"{0}","y":"{0}"}}"#, b64(48));
        let other = [
            r#"{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#.to_owned(),
            format!(r#"{{"kty":"RSA","use":"enc","n":"{}","e":"AQAB"}}"#, b64(256)),
            format!(r#"{{"kty":"RSA","alg":"PS256","n":"{}","e":"AQAB"}}"#, b64(256)),
            format!(r#"{{"kty":"RSA","key_ops":["encrypt"],"n":"{}","e":"AQAB"}}"#, b64(256)),
            format!(r#"{{"kty":"EC","crv":"P-521","x":"{0}","y":"{0}"}}"#, b64(66)),
        ];
        assert_eq!(parse(set(&[&rsa, &ec, &ec384]).as_bytes()).unwrap().len(), 3);
        for key in &other {
            assert_eq!(parse(set(&[key]).as_bytes()).unwrap_err(), JwksError::Empty, "{key}");
            assert_eq!(parse(set(&[key, &rsa]).as_bytes()).unwrap().len(), 1, "{key}");
        }
        let bad = [
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64(128)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64(2048)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQ"}}"#, b64(256)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAA"}}"#, b64(256)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQABAQABAQAB"}}"#, b64(256)),
            format!(r#"{{"kty":"RSA","n":"{}"}}"#, b64(256)),
            r#"{"kty":"RSA","n":"=","e":"AQAB"}"#.to_owned(),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{0}","y":"{0}"}}"#, b64(31)),
            format!(r#"{{"kty":"EC","crv":"P-384","x":"{0}","y":"{0}"}}"#, b64(32)),
        ];
        for key in &bad {
            assert_eq!(parse(set(&[key]).as_bytes()).unwrap_err(), JwksError::Key(1), "{key}");
            assert_eq!(parse(set(&[&rsa, key]).as_bytes()).unwrap_err(), JwksError::Key(2), "{key}");
        }
        for (text, expected) in [
            (" \n", "empty"),
            ("<!DOCTYPE html>", "an HTML or XML page, such as a login or error page"),
            ("-----BEGIN PUBLIC KEY-----", "PEM"),
            (r#"{"issuer":"a","jwks_uri":"b"}"#, "a discovery document, whose jwks_uri names the key set"),
            (&*rsa, "a single key, which belongs into the list `keys` of a key set"),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), JwksError::Other(expected), "{text}");
        }
        let marked = ["\u{feff}", &set(&[&rsa])].concat();
        assert_eq!(parse(marked.as_bytes()).unwrap().len(), 1, "a byte order mark is skipped");
        for text in ["{}", "[]", "null", r#"{"keys":{}}"#, r#"{"keys":[1]}"#, r#"{"keys":[{}]}"#] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), JwksError::Malformed, "{text}");
        }
        assert_eq!(parse(br#"{"keys":[]}"#).unwrap_err(), JwksError::Empty);
        assert_eq!(parse(set(&vec![ec.as_str(); 65]).as_bytes()).unwrap_err(), JwksError::TooMany);
    }
}
