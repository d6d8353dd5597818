//! Stores the CA certificate and the roots in use next to the log, for token hosts and for the next start.
//!
//! A restarted token host reads the bundle again. If the daemon has rejected the bundle on disk, the host would not
//! know the key that the daemon still uses; ca-in-use.pem identifies it. The stored roots let a starting daemon detect
//! that the bundle drops a root that workloads trust, as a running daemon detects it. Both files are public and used
//! for nothing else: the daemon always starts from the bundle.

use std::{
    fs::DirBuilder,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use x509_cert::{Certificate, der::Encode};

use pki::{Issuer, bundle::BundleFiles};

/// Paths of the stored files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGoodBundle {
    /// The CA certificate, as in ca-cert.pem.
    pub ca_cert: PathBuf,
    /// The roots, as in root-cert.pem.
    pub roots: PathBuf,
}

impl LastGoodBundle {
    /// Writes both files atomically. A failure is logged but has no other effect.
    pub fn keep(&self, files: &BundleFiles) {
        for (path, content) in [(&self.ca_cert, &files.ca_cert.bytes), (&self.roots, &files.root_cert.bytes)] {
            if let Err(error) = write(path, content) {
                tracing::warn!(path = %path.display(), %error, "cannot save the bundle in use for token hosts and the next start");
            }
        }
    }

    /// Whether an issuer lacks a root that was in use; `false` if the stored roots cannot be read.
    #[must_use]
    pub fn drops_a_root(&self, new: &Issuer) -> bool {
        let Ok(kept) = std::fs::read(&self.roots) else { return false };
        let kept = Certificate::load_pem_chain(&kept).unwrap_or_default();
        kept.iter().filter_map(|root| root.to_der().ok()).any(|root| !new.roots().contains(&root))
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // The mode of the log, which shares this directory.
    DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::bundle::Input;

    #[test]
    fn the_files_are_replaced_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join("log").join(name);
        let kept = LastGoodBundle { ca_cert: path("ca-in-use.pem"), roots: path("roots-in-use.pem") };
        for content in [&b"first"[..], b"second"] {
            let input = |what: &[u8]| Input { name: String::new(), bytes: [what, content].concat() };
            kept.keep(&BundleFiles { ca_cert: input(b"ca "), cert_chain: input(b""), root_cert: input(b"root ") });
            assert_eq!(std::fs::read(&kept.ca_cert).unwrap(), [b"ca ", content].concat());
            assert_eq!(std::fs::read(&kept.roots).unwrap(), [b"root ", content].concat());
        }
        assert_eq!(directory.path().join("log").read_dir().unwrap().count(), 2);
    }
}
