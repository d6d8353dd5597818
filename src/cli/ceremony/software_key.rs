//! A key pair made in software, with its self-signed certificate: what the rehearsal of an import imports.

use anyhow::Context;
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::{self, KeySize},
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
    },
};
use zeroize::Zeroizing;

use pki::{CaProfile, Issued, Issuer, KeyAlgorithm, Profile, Tbs, Template, pem, private_key::PrivateKey};

/// A key of nobody.
pub(super) struct SoftwareKey {
    pub(super) key: PrivateKey,
    /// DER of its self-signed certificate.
    pub(super) certificate: Vec<u8>,
}

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(rsa::KeyPair),
}

impl SoftwareKey {
    /// Makes a key of a type, whose certificate has the name and the validity of the CA.
    ///
    /// # Errors
    /// If the type is not supported, or there are no random numbers.
    pub(super) fn like(ca: &Issuer) -> anyhow::Result<Self> {
        let algorithm = ca.key_algorithm();
        let (signer, pkcs8) = make(algorithm).with_context(|| format!("no {algorithm} key can be made in software"))?;
        let key = PrivateKey::from_pem(pem::encode("PRIVATE KEY", &pkcs8).as_bytes(), None)?;
        let public_key = key.public_key().clone();
        let subject_key_id = public_key.key_id().to_vec();
        let profile = CaProfile { subject: ca.subject().to_vec(), subject_key_id, path_len: ca.path_len() };
        let (not_before, not_after) = (ca.not_before(), ca.not_after());
        let template = Template { profile: Profile::Ca(profile), public_key, names: Vec::new(), not_before, not_after };
        let issuer = Issuer::of_new_root(&template)?;
        let tbs = Tbs::build(template, issuer, pki::tbs::Serial::random())?;
        let signature = signer.sign(tbs.der()).context("the stand-in does not sign")?;
        let certificate = Issued::assemble(tbs.into(), &signature)?.der().to_vec();
        Ok(Self { key, certificate })
    }
}

fn make(algorithm: KeyAlgorithm) -> Option<(Signer, Zeroizing<Vec<u8>>)> {
    let der = |pkcs8: Pkcs8V1Der<'static>| Zeroizing::new(pkcs8.as_ref().to_vec());
    let ecdsa = |curve| {
        let pair = EcdsaKeyPair::generate(curve).ok()?;
        let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().ok()?.as_ref().to_vec());
        Some((Signer::Ecdsa(pair), pkcs8))
    };
    match algorithm {
        KeyAlgorithm::P256 => ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
        KeyAlgorithm::P384 => ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
        KeyAlgorithm::Ed25519 => {
            let pair = Ed25519KeyPair::generate().ok()?;
            let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().ok()?.as_ref().to_vec());
            Some((Signer::Ed25519(pair), pkcs8))
        }
        KeyAlgorithm::Rsa { bits } => {
            let size = match bits {
                2048 => KeySize::Rsa2048,
                3072 => KeySize::Rsa3072,
                4096 => KeySize::Rsa4096,
                _ => return None,
            };
            let pair = rsa::KeyPair::generate(size).ok()?;
            let pkcs8 = der(pair.as_der().ok()?);
            Some((Signer::Rsa(pair), pkcs8))
        }
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Self::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).ok()?;
                Some(signature)
            }
        }
    }
}
