//! Reads the files of a plug-in CA from a directory; [`pki`] itself does no I/O.
//!
//! Supports Istio's two layouts (security/pkg/pki/ca, `istio_ca.go`): tls.crt, tls.key and ca.crt if there is a
//! tls.crt, otherwise ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem. Only public files are read here;
//! `import` gets the path of the key and reads it into zeroizing memory.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use pki::{
    Bundle,
    bundle::{BundleFiles, Input, Problem},
    pem::TEXT_MAX,
};
use process::files::read_input;

/// Paths of the files of a plug-in CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundlePaths {
    /// The CA certificate.
    pub ca_cert: PathBuf,
    /// The CA's private key; `serve` needs none.
    pub ca_key: PathBuf,
    /// The intermediate certificates; `None` if [`BundlePaths::ca_cert`] contains them.
    pub cert_chain: Option<PathBuf>,
    /// The roots.
    pub root_cert: PathBuf,
}

impl BundlePaths {
    /// The paths in a directory, in the layout found there.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        if directory.join("tls.crt").exists() {
            return Self {
                ca_cert: directory.join("tls.crt"),
                ca_key: directory.join("tls.key"),
                cert_chain: None,
                root_cert: directory.join("ca.crt"),
            };
        }
        Self {
            ca_cert: directory.join("ca-cert.pem"),
            ca_key: directory.join("ca-key.pem"),
            cert_chain: Some(directory.join("cert-chain.pem")),
            root_cert: directory.join("root-cert.pem"),
        }
    }

    /// Reads the public files.
    ///
    /// # Errors
    /// All files that are missing, unreadable, or larger than 1 MiB.
    pub fn read(&self) -> Result<BundleFiles, Vec<Problem>> {
        let (files, problems) = self.read_what_is_there();
        if problems.is_empty() { Ok(files) } else { Err(problems) }
    }

    /// The same; a file with a problem is empty, so that the others can be checked all the same
    /// ([`Bundle::check_read`]).
    #[must_use]
    pub fn read_what_is_there(&self) -> (BundleFiles, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut input = |path: &Path| {
            let name = path.display().to_string();
            match read(path) {
                Ok(bytes) => Input { name, bytes },
                Err((reason, remedy)) => {
                    problems.push(Problem::with_remedy(&name, reason, remedy));
                    Input { name, bytes: Vec::new() }
                }
            }
        };
        let ca_cert = input(&self.ca_cert);
        let cert_chain = match &self.cert_chain {
            Some(path) => input(path),
            None => Input { name: ca_cert.name.clone(), bytes: Vec::new() },
        };
        let files = BundleFiles { root_cert: input(&self.root_cert), ca_cert, cert_chain };
        (files, problems)
    }
}

/// Reads the public files in a directory, in either layout.
///
/// # Errors
/// If the directory does not exist, or for all files that are missing, unreadable, or larger than 1 MiB.
pub fn read_directory(directory: &Path) -> Result<BundleFiles, Vec<Problem>> {
    if !directory.is_dir() {
        return Err(vec![no_directory(directory)]);
    }
    BundlePaths::in_directory(directory).read()
}

/// Reads and checks the bundle in a directory, in either layout.
///
/// # Errors
/// When the directory does not exist, or every reason to refuse the files.
pub fn check_directory(directory: &Path, now: SystemTime) -> Result<Bundle, Vec<Problem>> {
    if !directory.is_dir() {
        return Err(vec![no_directory(directory)]);
    }
    let (files, unread) = BundlePaths::in_directory(directory).read_what_is_there();
    Bundle::check_read(files, unread, None, now)
}

fn no_directory(directory: &Path) -> Problem {
    let remedy = "name the one that `import` or `install` wrote by --bundle";
    Problem::with_remedy(&directory.display().to_string(), "is not a directory", remedy)
}

/// Reads one public file that is not one of a plug-in CA's, such as a CRL.
///
/// # Errors
/// If it is missing, unreadable, or larger than 1 MiB.
pub fn read_public(path: &Path) -> Result<Input, Problem> {
    let name = path.display().to_string();
    match read(path) {
        Ok(bytes) => Ok(Input { name, bytes }),
        Err((reason, remedy)) => {
            let remedy = if path.exists() { remedy } else { "put it there, or correct its path in the configuration" };
            Err(Problem::with_remedy(&name, reason, remedy))
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, (String, &'static str)> {
    match read_input(path, TEXT_MAX) {
        Ok(bytes) if bytes.len() > TEXT_MAX => Err(("is larger than 1 MiB".to_owned(), "give the PEM file itself")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(unreadable(&error)),
    }
}

/// Why a file of a plug-in CA cannot be read, as a predicate for its name, and the remedy.
#[must_use]
pub fn unreadable(error: &io::Error) -> (String, &'static str) {
    match error.kind() {
        io::ErrorKind::NotFound => (
            "is missing".to_owned(),
            "a plug-in CA has ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, or tls.crt, tls.key and ca.crt",
        ),
        io::ErrorKind::IsADirectory => {
            ("cannot be read: it is a directory".to_owned(), "put the PEM file in its place")
        }
        io::ErrorKind::InvalidInput => (format!("cannot be read: {error}"), "put the PEM file in its place"),
        _ => (format!("cannot be read ({error})"), "make it readable for this user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(directory.path().join(file), file).unwrap();
        }
        directory
    }

    #[test]
    fn both_layouts_are_read_byte_for_byte() {
        let istio = directory(&["ca-cert.pem", "root-cert.pem", "cert-chain.pem"]);
        let files = read_directory(istio.path()).unwrap();
        assert_eq!(files.ca_cert.bytes, b"ca-cert.pem");
        assert_eq!(files.cert_chain.bytes, b"cert-chain.pem");
        assert_eq!(files.root_cert.bytes, b"root-cert.pem");
        assert!(files.root_cert.name.ends_with("/root-cert.pem"));
        let tls = directory(&["tls.crt", "ca.crt", "ca-cert.pem"]);
        let files = read_directory(tls.path()).unwrap();
        assert_eq!((&*files.ca_cert.bytes, &*files.root_cert.bytes), (&b"tls.crt"[..], &b"ca.crt"[..]));
        assert!(files.cert_chain.bytes.is_empty());
        assert!(BundlePaths::in_directory(tls.path()).ca_key.ends_with("tls.key"));
    }

    #[test]
    fn each_missing_file_is_named() {
        let problems = read_directory(directory(&["root-cert.pem"]).path()).unwrap_err();
        let names: Vec<_> = problems.iter().map(|problem| problem.file.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["ca-cert.pem", "cert-chain.pem"]);
        assert!(problems[0].reason.contains("is missing"));
        let empty = read_directory(directory(&[]).path()).unwrap_err();
        assert_eq!(empty.len(), 3);
    }

    #[test]
    fn directories_and_large_files_are_reported() {
        let directory = directory(&["ca-cert.pem", "root-cert.pem"]);
        std::fs::create_dir(directory.path().join("cert-chain.pem")).unwrap();
        std::fs::write(directory.path().join("root-cert.pem"), vec![b' '; TEXT_MAX + 1]).unwrap();
        let problems = read_directory(directory.path()).unwrap_err();
        let reasons: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(reasons[0].contains("cert-chain.pem: cannot be read"), "{reasons:?}");
        assert!(reasons[1].contains("root-cert.pem: is larger than 1 MiB"), "{reasons:?}");
    }

    #[test]
    fn a_fifo_is_reported() {
        let directory = directory(&["ca-cert.pem", "root-cert.pem"]);
        nix::unistd::mkfifo(&directory.path().join("cert-chain.pem"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let problems = read_directory(directory.path()).unwrap_err();
        let reasons: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(reasons[0].contains("cert-chain.pem: cannot be read: it is a FIFO, not a regular file"), "{reasons:?}");
    }
}
