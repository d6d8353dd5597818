//! The plugged-in CA's public files: ca-cert.pem, cert-chain.pem, root-cert.pem, checked as a whole.

mod root;

use std::time::{Duration, SystemTime};

use super::{KeyAlgorithm, PublicKey};

/// A file's content and the name by which messages call it.
#[derive(Clone, Debug)]
pub struct Input {
    /// The path, or what the operator would call it.
    pub name: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// The public files of a plug-in CA, unchecked.
#[derive(Clone, Debug)]
pub struct BundleFiles {
    /// The CA's certificate: ca-cert.pem or tls.crt (its first certificate is the CA's).
    pub ca_cert: Input,
    /// The certificates between the CA's and a root: cert-chain.pem; may be empty.
    pub cert_chain: Input,
    /// The roots: root-cert.pem or ca.crt.
    pub root_cert: Input,
}

/// One reason to refuse a bundle: names the file and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct Problem {
    /// The file.
    pub file: String,
    /// What is wrong, and what to do, in one sentence each.
    pub reason: String,
}

/// What deserves the operator's attention but is no reason to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

/// A plug-in CA that was checked as a whole, with its files byte for byte as given.
#[derive(Clone, Debug)]
pub struct Bundle {
    files: BundleFiles,
    issuer: std::sync::Arc<Issuer>,
    warnings: Vec<Warning>,
}

/// What a request needs of the CA, from its start to its end.
#[derive(Clone, Debug)]
pub struct Issuer {
    certificate: Vec<u8>,
    subject: Vec<u8>,
    public_key: PublicKey,
    subject_key_id: Option<Vec<u8>>,
    path_len: Option<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
    path_pem: Vec<String>,
    roots_pem: String,
    roots: Vec<Vec<u8>>,
}

impl Bundle {
    /// Checks the files as a whole at a time.
    ///
    /// # Errors
    /// Every reason to refuse them, not only the first.
    pub fn check(_files: BundleFiles, _now: SystemTime) -> Result<Self, Vec<Problem>> {
        todo!()
    }

    /// The files, byte for byte as given.
    #[must_use]
    pub fn files(&self) -> &BundleFiles {
        &self.files
    }

    /// What signing needs of the bundle.
    #[must_use]
    pub fn issuer(&self) -> &std::sync::Arc<Issuer> {
        &self.issuer
    }

    /// Expiry within 90 days, SHA-1 in the chain, and the like.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

impl Issuer {
    /// DER of the CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// DER Name: the subject of the CA's certificate, byte for byte.
    #[must_use]
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The CA's public key, from its certificate.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The subject key identifier, if the CA's certificate has one.
    #[must_use]
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.subject_key_id.as_deref()
    }

    /// pathLenConstraint of the CA's certificate, if it has one.
    #[must_use]
    pub fn path_len(&self) -> Option<u8> {
        self.path_len
    }

    /// notBefore of the CA's certificate.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The earliest notAfter from the CA's certificate up to its root: no certificate lives longer.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The path from the CA's certificate up to, not including, a root: one PEM certificate an element.
    /// Empty when the CA is itself a root.
    #[must_use]
    pub fn path_pem(&self) -> &[String] {
        &self.path_pem
    }

    /// root-cert.pem, byte for byte.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// DER of each root.
    #[must_use]
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }

    /// How long the CA's certificate path still lives.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// The CA key's type.
    #[must_use]
    pub fn key_algorithm(&self) -> KeyAlgorithm {
        self.public_key.algorithm()
    }
}
