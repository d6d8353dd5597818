//! Reads the inputs that a ceremony file pins, and judges the certificates among them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::document::{Input, IssuerFiles};
use audit_log::tree::sha256;
use pki::{
    Bundle, CertificateFields, Issuer,
    bundle::{self, BundleFiles},
    pem,
};
use process::{error::chain, output::Refused};
use token::key::hex;

/// Most bytes of an input.
const INPUT_MAX: usize = 1 << 20;

/// A file and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct FileDigest {
    /// As the ceremony file names it.
    pub(super) name: String,
    /// Hexadecimal.
    pub(super) sha256: String,
}

impl FileDigest {
    pub(super) fn of(name: &Path, content: &[u8]) -> Self {
        Self { name: name.display().to_string(), sha256: hex(&sha256(&[content])) }
    }
}

/// The inputs that were read.
#[derive(Debug)]
pub(super) struct Inputs {
    directory: PathBuf,
    pub(super) read: Vec<FileDigest>,
}

impl Inputs {
    /// Inputs of a ceremony file in a directory.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, read: Vec::new() }
    }

    /// The path of a file that the ceremony file names.
    pub(super) fn path(&self, file: &Path) -> PathBuf {
        self.directory.join(file)
    }

    /// Reads an input.
    ///
    /// # Errors
    /// If it cannot be read, or its digest is another.
    pub(super) fn read(&mut self, input: &Input) -> anyhow::Result<Vec<u8>> {
        let path = self.path(&input.file);
        let name = path.display();
        let content = process::files::read_input(&path, INPUT_MAX)
            .map_err(|error| anyhow::anyhow!("{name}: cannot be read: {error}"))?;
        if content.len() > INPUT_MAX {
            anyhow::bail!("{name}: has more than {INPUT_MAX} bytes; name another file");
        }
        let found = FileDigest::of(&input.file, &content);
        if !found.sha256.eq_ignore_ascii_case(&input.sha256) {
            anyhow::bail!(
                "{name}: its SHA-256 is {}, and the ceremony file says {}; put the reviewed file there, or write the digest \
                 into the ceremony file and review it again",
                found.sha256,
                input.sha256
            );
        }
        if !self.read.contains(&found) {
            self.read.push(found);
        }
        Ok(content)
    }

    /// Reads and judges the CA that signs, or is certified.
    ///
    /// # Errors
    /// If a file cannot be read, or no client of Istio would accept the CA.
    pub(super) fn issuer(&mut self, files: &IssuerFiles, now: SystemTime) -> anyhow::Result<Bundle> {
        let certificate = files.certificate();
        let content = self.read(&certificate)?;
        let chain = files.chain.as_ref().map(|input| self.named(input)).transpose()?;
        let root = files.root.as_ref().map(|input| self.named(input)).transpose()?;
        let own = bundle::Input { name: self.path(&files.file).display().to_string(), bytes: content };
        let nothing = || bundle::Input { name: "chain".to_owned(), bytes: Vec::new() };
        let files = BundleFiles {
            cert_chain: chain.unwrap_or_else(nothing),
            root_cert: root.unwrap_or_else(|| own.clone()),
            ca_cert: own,
        };
        judged(files, now)
    }

    /// Reads and judges a certificate that is renewed. One that has expired is judged as of its last second.
    ///
    /// # Errors
    /// If a file cannot be read, the certificate is not below `issuer`, or no client of Istio would accept it.
    pub(super) fn renewed(
        &mut self,
        certificate: &Input,
        issuer: Option<&IssuerFiles>,
        now: SystemTime,
    ) -> anyhow::Result<Arc<Issuer>> {
        let own = self.named(certificate)?;
        let end = end_of(&own.bytes).unwrap_or(now);
        let files = match issuer {
            None => BundleFiles {
                cert_chain: bundle::Input { name: "chain".to_owned(), bytes: Vec::new() },
                root_cert: own.clone(),
                ca_cert: own,
            },
            Some(issuer) => {
                let above = self.named(&issuer.certificate())?;
                let chain = issuer.chain.as_ref().map(|input| self.named(input)).transpose()?;
                let root = issuer.root.as_ref().map(|input| self.named(input)).transpose()?;
                let mut path = above.clone();
                path.bytes.extend(chain.into_iter().flat_map(|chain| chain.bytes));
                BundleFiles { cert_chain: path, root_cert: root.unwrap_or(above), ca_cert: own }
            }
        };
        Ok(Arc::clone(judged(files, now.min(end))?.issuer()))
    }

    fn named(&mut self, input: &Input) -> anyhow::Result<bundle::Input> {
        let bytes = self.read(input)?;
        Ok(bundle::Input { name: self.path(&input.file).display().to_string(), bytes })
    }
}

/// notAfter of the first certificate of a file.
fn end_of(text: &[u8]) -> Option<SystemTime> {
    let block = pem::blocks(text).ok()?.into_iter().next()?;
    Some(CertificateFields::parse(&block.der).ok()?.validity.not_after.to_system_time())
}

fn judged(files: BundleFiles, now: SystemTime) -> anyhow::Result<Bundle> {
    Bundle::check(files, now).map_err(|problems| {
        let reasons = problems.iter().map(|problem| chain(problem)).collect();
        Refused { what: "a certificate of the ceremony is refused:".to_owned(), reasons }.into()
    })
}
