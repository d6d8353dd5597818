//! Keeps the CA certificate in use beside the log, where token hosts find it.
//!
//! A host that is replaced reads the bundle afresh. Should the bundle on disk be one that the daemon has refused, the
//! new host would not know the key that the daemon goes on with; this file names it. It is public, and decides
//! nothing: the daemon itself only ever starts from the bundle.

use std::{
    fs::DirBuilder,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// Writes the certificate, whole or not at all; a failure is told and stops nothing.
pub fn keep(path: &Path, ca_cert: &[u8]) {
    if let Err(error) = write(path, ca_cert) {
        tracing::warn!(path = %path.display(), %error, "the CA certificate in use cannot be kept for the token hosts");
    }
}

fn write(path: &Path, ca_cert: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // The mode is the log's, whose directory it is.
    DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(ca_cert)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log/ca-in-use.pem");
        for content in [&b"first"[..], b"second"] {
            keep(&path, content);
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
    }
}
