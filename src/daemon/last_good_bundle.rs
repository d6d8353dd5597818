//! Keeps the CA certificate and the roots in use beside the log: for token hosts, and for the next start.
//!
//! A replaced host reads the bundle again. Should the bundle on disk be one that the daemon has refused, the
//! new host would not know the key that the daemon goes on with; ca-in-use.pem names it. The roots tell a daemon that
//! starts whether its bundle drops one that workloads trust, as a running one sees it. Both are public, and decide
//! nothing else: the daemon itself only ever starts from the bundle.

use std::{
    fs::DirBuilder,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use x509_cert::{Certificate, der::Encode};

use pki::{Issuer, bundle::BundleFiles};

/// Where it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGoodBundle {
    /// The CA's certificate, as in ca-cert.pem.
    pub ca_cert: PathBuf,
    /// The roots, as in root-cert.pem.
    pub roots: PathBuf,
}

impl LastGoodBundle {
    /// Writes both, each whole or not at all; a failure is logged and stops nothing.
    pub fn keep(&self, files: &BundleFiles) {
        for (path, content) in [(&self.ca_cert, &files.ca_cert.bytes), (&self.roots, &files.root_cert.bytes)] {
            if let Err(error) = write(path, content) {
                tracing::warn!(path = %path.display(), %error, "cannot save the bundle in use for token hosts and the next start");
            }
        }
    }

    /// Whether an issuer lacks a root that was in use. What was not kept, or cannot be read, says nothing.
    #[must_use]
    pub fn drops_a_root(&self, new: &Issuer) -> bool {
        let Ok(kept) = std::fs::read(&self.roots) else { return false };
        let kept = Certificate::load_pem_chain(&kept).unwrap_or_default();
        kept.iter().filter_map(|root| root.to_der().ok()).any(|root| !new.roots().contains(&root))
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // The mode is the log's, whose directory it is.
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
