//! A JWT issuer for the demo, the benches and the tests, like a cluster's API server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{Jwk, JwkSet, ThumbprintHash},
};
use serde_json::json;
use zeroize::Zeroizing;

/// A JWT issuer could not be created or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenIssuerError {
    /// The key is not a P-256 key in PKCS#8.
    #[error("the token issuer's key is not a P-256 key in PKCS#8; make one with: openssl genpkey -algorithm EC")]
    Key,
    /// The JWT could not be encoded or signed.
    #[error("the token cannot be made")]
    Token(#[source] jsonwebtoken::errors::Error),
    /// The time is before 1970.
    #[error("the clock stands before 1970; set the clock right")]
    Clock,
}

/// The workload of a JWT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
}

/// Signs service account JWTs with ES256, in the form of Kubernetes' projected tokens.
pub struct TokenIssuer {
    key: EncodingKey,
    key_id: String,
    jwk: Jwk,
    issuer: String,
    audience: String,
}

impl TokenIssuer {
    /// Generates a new key for an issuer: PKCS#8 in PEM.
    ///
    /// # Errors
    /// If the crypto library has no randomness.
    pub fn generate_key() -> Result<Zeroizing<String>, TokenIssuerError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| TokenIssuerError::Key)?;
        let document = pair.to_pkcs8v1().map_err(|_| TokenIssuerError::Key)?;
        der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, document.as_ref())
            .map(Zeroizing::new)
            .map_err(|_| TokenIssuerError::Key)
    }

    /// An issuer with an existing key; the key ID is its RFC 7638 thumbprint.
    ///
    /// # Errors
    /// If the key is not a P-256 key in PKCS#8.
    pub fn new(key_pem: &[u8], issuer: String, audience: String) -> Result<Self, TokenIssuerError> {
        let key = EncodingKey::from_ec_pem(key_pem).map_err(|_| TokenIssuerError::Key)?;
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).map_err(|_| TokenIssuerError::Key)?;
        let key_id = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| TokenIssuerError::Key)?;
        jwk.common.key_id = Some(key_id.clone());
        Ok(Self { key, key_id, jwk, issuer, audience })
    }

    /// The issuer's public keys as a JWK set (RFC 7517, section 5).
    #[must_use]
    pub fn key_set(&self) -> JwkSet {
        JwkSet { keys: vec![self.jwk.clone()] }
    }

    /// A workload's JWT, valid from `now` for `lifetime`.
    ///
    /// # Errors
    /// If the time is before 1970, or the JWT cannot be signed.
    pub fn mint(&self, workload: &Workload, now: SystemTime, lifetime: Duration) -> Result<String, TokenIssuerError> {
        let issued = now.duration_since(UNIX_EPOCH).map_err(|_| TokenIssuerError::Clock)?.as_secs();
        let Workload { namespace, service_account } = workload;
        let claims = json!({
            "aud": [self.audience],
            "exp": issued + lifetime.as_secs(),
            "iat": issued,
            "iss": self.issuer,
            "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": service_account } },
            "nbf": issued,
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(TokenIssuerError::Token)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    fn issuer(key: &str) -> TokenIssuer {
        TokenIssuer::new(key.as_bytes(), "https://issuer.test".into(), "istio-ca".into()).unwrap()
    }

    #[test]
    fn a_token_verifies_with_the_key_set_and_with_no_other() {
        let (ours, other) =
            (issuer(&TokenIssuer::generate_key().unwrap()), issuer(&TokenIssuer::generate_key().unwrap()));
        let workload = Workload { namespace: "demo".into(), service_account: "httpbin".into() };
        let token = ours.mint(&workload, process::clock::now(), Duration::from_secs(60)).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["istio-ca"]);
        validation.set_issuer(&["https://issuer.test"]);
        let decode = |issuer: &TokenIssuer| {
            let key = DecodingKey::from_jwk(&issuer.key_set().keys[0]).unwrap();
            jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation)
        };
        let claims = decode(&ours).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:demo:httpbin");
        assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "httpbin");
        assert!(decode(&other).is_err());
    }

    #[test]
    fn invalid_key_is_refused() {
        let refused = TokenIssuer::new(b"no key", String::new(), String::new());
        assert!(matches!(refused.err(), Some(TokenIssuerError::Key)));
    }
}
