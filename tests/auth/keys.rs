//! Keys that sign JWTs, and JWTs.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeySize, PublicKeyComponents},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use istio_hsm_ca::auth::{
    ClusterId, ClusterName,
    credentials::BearerToken,
    jwt::{Jwt, JwtError, Proven, Settings},
};
use serde_json::{Value, json};

pub const ISSUER: &str = "https://issuer.example";
pub const NOW: u64 = 1_800_000_000;

pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

pub enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
}

pub struct Key {
    pub kid: String,
    pub signer: Signer,
}

pub static RSA: LazyLock<Key> =
    LazyLock::new(|| Key { kid: "rsa".into(), signer: Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()) });
pub static P256: LazyLock<Key> = LazyLock::new(|| Key::p256("p256"));
pub static P384: LazyLock<Key> = LazyLock::new(|| Key {
    kid: "p384".into(),
    signer: Signer::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
});

impl Key {
    pub fn p256(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { kid: kid.into(), signer: Signer::P256(pair) }
    }

    pub fn alg(&self) -> &'static str {
        match self.signer {
            Signer::Rsa(_) => "RS256",
            Signer::P256(_) => "ES256",
            Signer::P384(_) => "ES384",
        }
    }

    pub fn jwk(&self) -> Value {
        match &self.signer {
            Signer::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "kid": self.kid, "use": "sig", "alg": "RS256",
                       "n": B64.encode(public.n), "e": B64.encode(public.e)})
            }
            Signer::P256(pair) | Signer::P384(pair) => {
                let point = pair.public_key().as_ref();
                let half = (point.len() - 1) / 2;
                let crv = if half == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "kid": self.kid, "crv": crv,
                       "x": B64.encode(&point[1..=half]), "y": B64.encode(&point[half + 1..])})
            }
        }
    }

    pub fn sign_bytes(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.signer {
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Signer::P256(pair) | Signer::P384(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
        }
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = B64.encode(self.sign_bytes(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    pub fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": self.alg(), "kid": self.kid}), claims)
    }

    pub fn public_point(&self) -> Vec<u8> {
        match &self.signer {
            Signer::Rsa(pair) => {
                let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
                    aws_lc_rs::encoding::AsDer::as_der(pair.public_key()).unwrap();
                public.as_ref().to_vec()
            }
            Signer::P256(pair) | Signer::P384(pair) => pair.public_key().as_ref().to_vec(),
        }
    }
}

pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()))
}

pub fn jwks(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

/// Claims of a pod's JWT as Kubernetes creates it.
pub fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": ["istio-ca"], "sub": "system:serviceaccount:shop:cart",
        "exp": NOW + 3600, "nbf": NOW - 10, "iat": NOW - 10, "jti": "1",
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": {"name": "cart", "uid": "u-1"},
            "pod": {"name": "cart-0", "uid": "u-2"},
            "node": {"name": "n", "uid": "u-3"},
        },
    })
}

/// The same with some claims changed, or removed by `null`.
pub fn with(changes: Value) -> Value {
    let mut claims = claims();
    let object = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(object.remove(name)),
            value => drop(object.insert(name.clone(), value.clone())),
        }
    }
    claims
}

pub fn checker(settings: &str) -> Jwt {
    #[derive(serde::Deserialize)]
    struct All {
        jwt: Vec<Settings>,
    }
    let all: All = toml::from_str(settings).unwrap();
    Jwt::new(&all.jwt, ClusterName::default(), &["cluster.local".parse().unwrap()]).unwrap()
}

pub fn file_checker(path: &std::path::Path, more: &str) -> Jwt {
    checker(&format!("[[jwt]]\nissuer = '{ISSUER}'\nkeys.file.path = '{}'\n{more}", path.display()))
}

pub async fn check(jwt: &Jwt, token: &str) -> Result<Proven, JwtError> {
    jwt.check(BearerToken::new(token), ClusterId::Default, at(NOW)).await
}

pub fn reason(result: &Result<Proven, JwtError>) -> String {
    match result {
        Ok(proven) => proven.identity.to_string(),
        Err(error) => error.reason().to_owned(),
    }
}
