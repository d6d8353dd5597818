//! The endpoint's certificate from files that somebody else renews, such as a Secret's mount.

use std::{borrow::Cow, io, path::PathBuf, sync::Arc};

use rustls::{crypto::aws_lc_rs::sign::any_supported_type, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use process::error::{Advice, Remedy};

/// The largest file that is read: a long chain is some 10 KiB.
const FILE_MAX: u64 = 1 << 20;

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// PEM certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM private key of the leaf.
    pub key: PathBuf,
}

/// Why the files give no certificate.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// No certificate, or one that is not PEM.
    #[error("{}: no certificate in PEM{}", .0.display(), Advice(self))]
    Certificate(PathBuf),
    /// No key, or a kind that is not known.
    #[error("{}: no private key in PEM that can sign (RSA, ECDSA or Ed25519)", .0.display())]
    Key(PathBuf),
    /// Key and certificate are not of one pair.
    #[error("{}: the key is not that of {}{}", .0.key.display(), .0.certificate.display(), Advice(self))]
    Mismatch(Files),
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{}: larger than 1 MiB", .0.display())]
    TooLarge(PathBuf),
}

impl Remedy for FilesError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Certificate(_) => Some("put the leaf first, then what issued it".into()),
            Self::Mismatch(_) => Some("if both are being replaced, they are read again within seconds".into()),
            Self::Key(_) | Self::Read { .. } | Self::TooLarge(_) => None,
        }
    }
}

/// Both files as they were read at one time; a change in either is seen by comparing.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Files {
    /// Reads both files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(&self) -> Result<Content, FilesError> {
        let certificate = read(&self.certificate)?.to_vec();
        Ok(Content { certificate, key: read(&self.key)? })
    }

    /// Parses what was read, and checks that the key is the leaf's.
    ///
    /// # Errors
    /// When one is malformed, or they are not of one pair.
    pub fn parse(&self, content: &Content) -> Result<Arc<CertifiedKey>, FilesError> {
        let no_certificate = || FilesError::Certificate(self.certificate.clone());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&content.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| no_certificate())?;
        if chain.is_empty() {
            return Err(no_certificate());
        }
        let no_key = || FilesError::Key(self.key.clone());
        let key = Zeroizing::new(PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| no_key())?);
        let key = any_supported_type(&key).map_err(|_| no_key())?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => Ok(Arc::new(certified)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(FilesError::Mismatch(self.clone())),
            Err(_) => Err(no_certificate()),
        }
    }
}

fn read(path: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, FilesError> {
    let failed = |source| FilesError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_MAX {
        return Err(FilesError::TooLarge(path.to_owned()));
    }
    // `fs::read` sizes its buffer by the file's length, so that no copy of a key is left behind by its growth.
    std::fs::read(path).map(Zeroizing::new).map_err(failed)
}
