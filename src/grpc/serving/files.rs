//! The endpoint's certificate from files that are renewed by another program, such as a mounted Secret.

use std::{
    borrow::Cow,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use const_oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_SERVER_AUTH};
use rustls::{
    client::verify_server_name, crypto::aws_lc_rs::sign::any_supported_type, server::ParsedCertificate,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{ExtendedKeyUsage, SubjectAltName, name::GeneralName},
};
use zeroize::Zeroizing;

use audit_log::timestamp;
use pki::{
    found::{self, Found, Wanted},
    identity::Name,
};
use process::{
    error::{Advice, Remedy},
    files::open_input,
};

/// Maximum size of a file: a long chain has some 10 KiB.
const FILE_MAX: u64 = 1 << 20;

/// Paths of certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// PEM certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM private key of the leaf.
    pub key: PathBuf,
    /// The names that clients use, each of which the leaf must have.
    pub names: Vec<Name>,
}

/// The files contain no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is no certificate in PEM.
    #[error("{}: no certificate in PEM{}", .0.display(), Advice(self))]
    Certificate(PathBuf),
    /// The leaf has expired.
    #[error("{}: the certificate expired at {}{}", path.display(), timestamp::format(*not_after), Advice(self))]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// The end of its validity.
        not_after: SystemTime,
    },
    /// No key, or a kind that is not known.
    #[error("{}: no private key in PEM that can sign (RSA, ECDSA or Ed25519){}", .0.display(), Advice(self))]
    Key(PathBuf),
    /// Key and certificate do not match.
    #[error("{}: the key is not that of {}{}", .0.key.display(), .0.certificate.display(), Advice(self))]
    Mismatch(Files),
    /// The leaf lacks a name that clients use.
    #[error("{}: the certificate is not valid for {missing}; its names are {found}{}", path.display(), Advice(self))]
    Name {
        /// The certificate's file.
        path: PathBuf,
        /// The configured name.
        missing: Name,
        /// The names that it has.
        found: String,
    },
    /// The leaf's validity has not begun.
    #[error("{}: the certificate is not valid before {}{}", path.display(), timestamp::format(*not_before), Advice(self))]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// The start of its validity.
        not_before: SystemTime,
    },
    /// The leaf is not for servers (extendedKeyUsage).
    #[error("{}: the certificate's extended key usage lacks serverAuth{}", .0.display(), Advice(self))]
    Purpose(PathBuf),
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A file is too large.
    #[error("{}: larger than 1 MiB", .0.display())]
    TooLarge(PathBuf),
    /// A file is something that people take for PEM.
    #[error("{}: {}{}", path.display(), found.what, Advice(self))]
    Unlike {
        /// Path of the file.
        path: PathBuf,
        /// What it is.
        found: Found,
    },
}

impl Remedy for FilesError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Certificate(_) => Some("put the leaf first, then what issued it".into()),
            Self::Expired { .. } => Some("put a renewed certificate and its key there".into()),
            Self::Mismatch(_) => Some("if both are being replaced, they are read again within seconds".into()),
            Self::Name { missing, .. } => Some(
                format!("have a certificate issued with the subject alternative name {missing}, or remove the name from [serving]")
                    .into(),
            ),
            Self::NotYetValid { .. } => Some("set the clock right, or have another certificate issued".into()),
            Self::Purpose(_) => Some("have a certificate issued for TLS servers".into()),
            Self::Key(_) => Some("put the certificate's private key there as PEM".into()),
            Self::Unlike { found, .. } => Some(found.remedy.clone().into()),
            Self::Read { .. } | Self::TooLarge(_) => None,
        }
    }
}

/// Content of both files; changes are detected by comparison.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Files {
    /// Reads both files.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read(&self) -> Result<Content, FilesError> {
        let certificate = read(&self.certificate)?.to_vec();
        Ok(Content { certificate, key: read(&self.key)? })
    }

    /// Parses what was read, and checks that clients accept it now: the key is the leaf's, and the leaf is valid, for
    /// servers, and has every configured name. Who issued it is not checked.
    ///
    /// # Errors
    /// When one is malformed, they are not of one pair, or clients would reject the leaf.
    pub fn parse(&self, content: &Content, now: SystemTime) -> Result<Arc<CertifiedKey>, FilesError> {
        let unlike = |path: &PathBuf, bytes: &[u8], wanted| {
            let found = found::file(bytes, &path.display().to_string(), wanted)?;
            Some(FilesError::Unlike { path: path.clone(), found })
        };
        let no_certificate = || {
            unlike(&self.certificate, &content.certificate, Wanted::Certificates)
                .unwrap_or_else(|| FilesError::Certificate(self.certificate.clone()))
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&content.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| no_certificate())?;
        self.check_leaf(chain.first().ok_or_else(no_certificate)?, now)?;
        let no_key =
            || unlike(&self.key, &content.key, Wanted::PrivateKey).unwrap_or_else(|| FilesError::Key(self.key.clone()));
        let key = Zeroizing::new(PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| no_key())?);
        let key = any_supported_type(&key).map_err(|_| no_key())?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => Ok(Arc::new(certified)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(FilesError::Mismatch(self.clone())),
            Err(_) => Err(no_certificate()),
        }
    }

    fn check_leaf(&self, der: &CertificateDer<'_>, now: SystemTime) -> Result<(), FilesError> {
        let path = || self.certificate.clone();
        let malformed = |_| FilesError::Certificate(path());
        let leaf = Certificate::from_der(der).map_err(malformed)?;
        let tbs = leaf.tbs_certificate();
        let (not_before, not_after) =
            (tbs.validity().not_before.to_system_time(), tbs.validity().not_after.to_system_time());
        if now < not_before {
            return Err(FilesError::NotYetValid { path: path(), not_before });
        }
        if now > not_after {
            return Err(FilesError::Expired { path: path(), not_after });
        }
        let usage = tbs.get_extension::<ExtendedKeyUsage>().map_err(malformed)?;
        let serves = |usage: &ExtendedKeyUsage| {
            usage.0.iter().any(|purpose| [ID_KP_SERVER_AUTH, ANY_EXTENDED_KEY_USAGE].contains(purpose))
        };
        if usage.is_some_and(|(_, usage)| !serves(&usage)) {
            return Err(FilesError::Purpose(path()));
        }
        let parsed = ParsedCertificate::try_from(der).ok();
        for name in &self.names {
            let name_of_server = match name {
                // Any name that the wildcard stands for.
                Name::Dns(dns) => ServerName::try_from(dns.as_str().replacen('*', "any", 1)).ok(),
                Name::Ip(ip) => Some(ServerName::from(*ip)),
                Name::Spiffe(_) => None,
            };
            let has =
                parsed.as_ref().zip(name_of_server).is_some_and(|(leaf, name)| verify_server_name(leaf, &name).is_ok());
            if !has {
                return Err(FilesError::Name { path: path(), missing: name.clone(), found: names_of(&leaf) });
            }
        }
        Ok(())
    }
}

/// The names of a leaf as a message shows them.
fn names_of(leaf: &Certificate) -> String {
    let names = leaf.tbs_certificate().get_extension::<SubjectAltName>().ok().flatten();
    let names: Vec<String> = names
        .iter()
        .flat_map(|(_, names)| &names.0)
        .map(|name| match name {
            GeneralName::DnsName(name) => format!("DNS:{name}"),
            GeneralName::UniformResourceIdentifier(uri) => format!("URI:{uri}"),
            GeneralName::IpAddress(bytes) => {
                match (<[u8; 4]>::try_from(bytes.as_bytes()), <[u8; 16]>::try_from(bytes.as_bytes())) {
                    (Ok(v4), _) => format!("IP:{}", std::net::Ipv4Addr::from(v4)),
                    (_, Ok(v6)) => format!("IP:{}", std::net::Ipv6Addr::from(v6)),
                    _ => "an IP address of the wrong length".to_owned(),
                }
            }
            _ => "a name of another type".to_owned(),
        })
        .collect();
    if names.is_empty() { "none (no subject alternative name)".to_owned() } else { names.join(", ") }
}

fn read(path: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, FilesError> {
    let failed = |source| FilesError::Read { path: path.to_owned(), source };
    let file = open_input(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    // Sized in advance, so that no reallocation leaves a copy of the key behind.
    let size = usize::try_from(length.min(FILE_MAX)).unwrap_or_default();
    let mut content = Zeroizing::new(Vec::with_capacity(size.saturating_add(1)));
    file.take(FILE_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    if u64::try_from(content.len()).is_ok_and(|length| length <= FILE_MAX) {
        Ok(content)
    } else {
        Err(FilesError::TooLarge(path.to_owned()))
    }
}
