//! A workload's key and CSR, as created by istio-agent and ztunnel.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256},
};
use const_oid::db::{
    rfc5280::ID_CE_SUBJECT_ALT_NAME,
    rfc5912::{ECDSA_WITH_SHA_256, SHA_256_WITH_RSA_ENCRYPTION},
};
use der::{
    Decode, Encode, EncodePem,
    asn1::{Any, BitString, Ia5String, OctetString, SetOfVec},
    pem::LineEnding,
};
use x509_cert::{
    ext::{
        Extension,
        pkix::{SubjectAltName, name::GeneralName},
    },
    name::Name,
    request::{CertReq, CertReqInfo, ExtensionReq, Version},
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
};
use zeroize::Zeroizing;

/// Subject of istio-agent's CSRs: one empty organization, as Go encodes it (a PrintableString).
const SUBJECT_EMPTY_ORGANIZATION: &[u8] =
    &[0x30, 0x0b, 0x31, 0x09, 0x30, 0x07, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x00];

/// Key types that Istio's data plane uses by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyKind {
    /// ECDSA on P-256: ztunnel, and istio-agent with ECC_SIGNATURE_ALGORITHM=ECDSA.
    P256,
    /// RSA with 2048 bits: istio-agent's default.
    #[value(name = "rsa-2048")]
    Rsa2048,
}

/// A workload's key or CSR could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The identity is not an IA5String.
    #[error("the identity cannot stand in a certificate request; it must be a URI in ASCII")]
    Identity,
    /// The request could not be encoded.
    #[error("the certificate request cannot be encoded: {0}")]
    Encoding(#[source] der::Error),
    /// The crypto library failed.
    #[error("the workload's key cannot be made or used")]
    Key,
}

impl From<aws_lc_rs::error::Unspecified> for RequestError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Key
    }
}

impl From<der::Error> for RequestError {
    fn from(source: der::Error) -> Self {
        Self::Encoding(source)
    }
}

/// A workload's private key, in memory.
pub struct WorkloadKey {
    pair: Pair,
}

enum Pair {
    P256(Box<EcdsaKeyPair>),
    Rsa2048(rsa::KeyPair),
}

impl WorkloadKey {
    /// Generates a new key; RSA takes tens of milliseconds.
    ///
    /// # Errors
    /// If the crypto library has no randomness.
    pub fn generate(kind: KeyKind) -> Result<Self, RequestError> {
        let pair = match kind {
            KeyKind::P256 => Pair::P256(Box::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?)),
            KeyKind::Rsa2048 => Pair::Rsa2048(rsa::KeyPair::generate(rsa::KeySize::Rsa2048)?),
        };
        Ok(Self { pair })
    }

    /// The key as DER PrivateKeyInfo (RFC 5958).
    ///
    /// # Errors
    /// If the crypto library cannot encode it.
    pub fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, RequestError> {
        Ok(Zeroizing::new(match &self.pair {
            Pair::P256(pair) => pair.to_pkcs8v1()?.as_ref().to_vec(),
            Pair::Rsa2048(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair)?.as_ref().to_vec(),
        }))
    }

    /// The key as PKCS#8 in PEM.
    ///
    /// # Errors
    /// If the crypto library cannot encode it.
    pub fn pem(&self) -> Result<Zeroizing<String>, RequestError> {
        let pem = der::pem::encode_string("PRIVATE KEY", LineEnding::LF, &self.pkcs8()?);
        pem.map(Zeroizing::new).map_err(|_| RequestError::Key)
    }

    /// A CSR in PEM for a SPIFFE ID: subject `O=""`, and one critical extension with the URI (Istio:
    /// pkg/pki/util/generate_csr.go; ztunnel: src/tls/csr.rs, with an empty subject).
    ///
    /// # Errors
    /// If the identity is not ASCII.
    pub fn request(&self, identity: &str) -> Result<String, RequestError> {
        let name = Ia5String::new(identity).map_err(|_| RequestError::Identity)?;
        let names = SubjectAltName(vec![GeneralName::UniformResourceIdentifier(name)]);
        let extension = Extension {
            extn_id: ID_CE_SUBJECT_ALT_NAME,
            critical: true,
            extn_value: OctetString::new(names.to_der()?)?,
        };
        let info = CertReqInfo {
            version: Version::V1,
            subject: Name::from_der(SUBJECT_EMPTY_ORGANIZATION)?,
            public_key: SubjectPublicKeyInfoOwned::from_der(&self.public_key()?)?,
            attributes: SetOfVec::try_from(vec![ExtensionReq(vec![extension]).try_into()?])?,
        };
        let signature = BitString::from_bytes(&self.sign(&info.to_der()?)?)?;
        Ok(CertReq { info, algorithm: self.algorithm(), signature }.to_pem(LineEnding::LF)?)
    }

    fn public_key(&self) -> Result<Vec<u8>, RequestError> {
        let der: PublicKeyX509Der<'_> = match &self.pair {
            Pair::P256(pair) => pair.public_key().as_der()?,
            Pair::Rsa2048(pair) => pair.public_key().as_der()?,
        };
        Ok(der.as_ref().to_vec())
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        match &self.pair {
            Pair::P256(_) => AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None },
            Pair::Rsa2048(_) => {
                AlgorithmIdentifierOwned { oid: SHA_256_WITH_RSA_ENCRYPTION, parameters: Some(Any::null()) }
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RequestError> {
        match &self.pair {
            Pair::P256(pair) => Ok(pair.sign(&SystemRandom::new(), message)?.as_ref().to_vec()),
            Pair::Rsa2048(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
                Ok(signature)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    /// Parses a CSR with openssl: (verified, text).
    fn openssl(request: &str) -> (bool, String) {
        let mut child = Command::new("openssl")
            .args(["req", "-verify", "-noout", "-text"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is missing; run: sudo apt-get install openssl");
        child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let said = text.clone() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success() && said.contains("self-signature verify OK"), text)
    }

    #[test]
    fn openssl_reads_the_request_that_an_agent_sends() {
        for kind in [KeyKind::P256, KeyKind::Rsa2048] {
            let key = WorkloadKey::generate(kind).unwrap();
            let request = key.request("spiffe://cluster.local/ns/demo/sa/httpbin").unwrap();
            let (verified, text) = openssl(&request);
            assert!(verified, "{kind:?}: {text}");
            assert!(text.contains("Subject: O = \n") || text.contains("Subject: O=\n"), "{text}");
            assert!(text.contains("X509v3 Subject Alternative Name: critical"), "{text}");
            assert!(text.contains("URI:spiffe://cluster.local/ns/demo/sa/httpbin"), "{text}");
        }
    }

    #[test]
    fn a_changed_request_does_not_verify() {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let other = WorkloadKey::generate(KeyKind::P256).unwrap();
        let mut request = CertReq::from_der(
            &der::pem::decode_vec(key.request("spiffe://a/ns/b/sa/c").unwrap().as_bytes()).unwrap().1,
        )
        .unwrap();
        request.info.public_key = SubjectPublicKeyInfoOwned::from_der(&other.public_key().unwrap()).unwrap();
        assert!(!openssl(&request.to_pem(LineEnding::LF).unwrap()).0);
    }

    #[test]
    fn an_identity_outside_ascii_is_refused() {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        assert_eq!(key.request("spiffe://cluster.local/ns/d\u{e9}mo/sa/a"), Err(RequestError::Identity));
    }
}
