//! Plug-in CAs: a key and a self-signed certificate for it.

use pki::private_key::PrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};

/// A key and its certificate.
pub struct TestCa {
    /// For signing more certificates.
    pub pair: KeyPair,
    /// PKCS#8 in PEM, as in ca-key.pem.
    pub key_pem: String,
    /// The key in the form used by the import.
    pub key: PrivateKey,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
}

impl TestCa {
    /// ECDSA on P-256, the fastest.
    pub fn p256() -> Self {
        Self::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// ECDSA on P-384.
    pub fn p384() -> Self {
        Self::new(KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap())
    }

    /// Ed25519.
    pub fn ed25519() -> Self {
        Self::new(KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    /// RSA.
    pub fn rsa(size: RsaKeySize) -> Self {
        Self::new(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).unwrap())
    }

    fn new(pair: KeyPair) -> Self {
        let key_pem = pair.serialize_pem();
        let key = PrivateKey::from_pem(key_pem.as_bytes(), None).unwrap();
        let certificate = self_signed(&pair, "test CA");
        Self { pair, key_pem, key, certificate }
    }

    /// Another certificate for the same key.
    pub fn renewed(&self) -> Vec<u8> {
        self_signed(&self.pair, "test CA, renewed")
    }
}

fn self_signed(pair: &KeyPair, name: &str) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(pair).unwrap().der().to_vec()
}
