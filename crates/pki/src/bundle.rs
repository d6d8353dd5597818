//! The plugged-in CA's public files: ca-cert.pem, cert-chain.pem, root-cert.pem, checked as a whole.
//!
//! What a conforming plug-in CA for Istio is, is accepted: any order, the CA or the root repeated in the chain, several
//! roots. What would make a leaf under it fail at Envoy, Go or ztunnel is refused here, with every reason at once. It
//! reads no file and no clock (`istio_hsm_ca::bundle_files` reads the files).

mod certificate;
mod issuer;
mod path;
mod root;
mod rules;

use std::{sync::Arc, time::SystemTime};

use self::{
    certificate::Certificate,
    path::{DeadEnd, Path},
};
use super::{PublicKey, pem};

pub use self::issuer::Issuer;

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

/// A reason to refuse a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}{}", .remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default())]
pub struct Problem {
    /// The file as the operator named it.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
    /// What the operator can do.
    pub remedy: Option<String>,
}

/// What deserves the operator's attention but is no reason to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

/// A plug-in CA that was checked as a whole, with its files byte for byte as given.
#[derive(Clone, Debug)]
pub struct Bundle {
    files: BundleFiles,
    issuer: Arc<Issuer>,
    warnings: Vec<Warning>,
}

impl Problem {
    /// A problem whose remedy is obvious from the reason.
    #[must_use]
    pub fn new(file: &str, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into(), remedy: None }
    }

    /// A problem with its remedy.
    #[must_use]
    pub fn with_remedy(file: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(file, reason) }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl BundleFiles {
    /// The key in the CA's certificate, if that can be read and is of a kind that we sign with; also where the files
    /// as a whole are refused.
    #[must_use]
    pub fn ca_key(&self) -> Option<PublicKey> {
        let ca = certificates(&self.ca_cert, &mut Vec::new()).into_iter().next()?;
        ca_key(&ca, &mut Vec::new())
    }

    /// [`Bundle::check_key`] for files that are refused as a whole: where the certificate cannot be read, there is
    /// nothing to compare.
    ///
    /// # Errors
    /// When the key is another than the certificate's.
    pub fn check_key(&self, key_name: &str, key: &PublicKey) -> Result<(), Problem> {
        self.ca_key().map_or(Ok(()), |ours| same_key(self, &ours, key_name, key))
    }
}

impl Bundle {
    /// Checks the files as a whole at a time.
    ///
    /// # Errors
    /// Every reason to refuse them, not only the first.
    pub fn check(files: BundleFiles, now: SystemTime) -> Result<Self, Vec<Problem>> {
        Self::check_read(files, Vec::new(), now)
    }

    /// The same for files of which some could not be read, and are empty here: the problems of the others are reported
    /// along with the `problems` that reading them had, and not what only follows from those.
    ///
    /// # Errors
    /// As [`Bundle::check`]; always when there are problems already.
    pub fn check_read(files: BundleFiles, mut problems: Vec<Problem>, now: SystemTime) -> Result<Self, Vec<Problem>> {
        let mut ca_certs = certificates(&files.ca_cert, &mut problems);
        let chain = certificates(&files.cert_chain, &mut problems);
        // What is missing on the path may stand in the chain that could not be read.
        let whole_chain = !problems.iter().any(|problem| problem.file == files.cert_chain.name);
        let roots = certificates(&files.root_cert, &mut problems);
        for (input, found) in [(&files.ca_cert, &ca_certs), (&files.root_cert, &roots)] {
            // Where a certificate is malformed, that is the reason, and not that there is none.
            if found.is_empty() && !problems.iter().any(|problem| problem.file == input.name) {
                problems.push(Problem::with_remedy(&input.name, "holds no certificate", "put it there as PEM"));
            }
        }
        let roots_pem = match String::from_utf8(files.root_cert.bytes.clone()) {
            Ok(text) => text,
            Err(_) => {
                let reason = "is not UTF-8 text, as the reply to Istio's agents must be";
                problems.push(Problem::with_remedy(&files.root_cert.name, reason, "remove the comments in it"));
                String::new()
            }
        };
        if ca_certs.is_empty() {
            return Err(problems);
        }
        let others = [ca_certs.split_off(1), chain].concat();
        let Some(ca) = ca_certs.pop() else { return Err(problems) };
        let public_key = ca_key(&ca, &mut problems);
        if roots.is_empty() {
            problems.extend(rules::problems_of(&ca, 0, now));
            return Err(problems);
        }
        let path = choose(&ca, &others, &roots, whole_chain, now).map_err(|found| problems.extend(found)).ok();
        let (Some(path), Some(public_key), true) = (path, public_key, problems.is_empty()) else {
            return Err(problems);
        };
        let mut warnings = rules::path_warnings(&path, now);
        warnings.extend(beside(&path, &others, &roots, now));
        let issuer = Issuer::of_path(&ca, &path, public_key, roots_pem, &roots);
        let warnings = warnings.into_iter().map(Warning).collect();
        Ok(Self { files, issuer: Arc::new(issuer), warnings })
    }

    /// Checks that a key, from a file or a token, is the one in the CA's certificate.
    ///
    /// # Errors
    /// When it is another; `key_name` says in the message whose it is.
    pub fn check_key(&self, key_name: &str, key: &PublicKey) -> Result<(), Problem> {
        same_key(&self.files, self.issuer.public_key(), key_name, key)
    }

    /// The files, byte for byte as given.
    #[must_use]
    pub fn files(&self) -> &BundleFiles {
        &self.files
    }

    /// What signing needs of the bundle.
    #[must_use]
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// Expiry within 90 days, SHA-1 in the chain, and the like.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

const LABEL: &str = "CERTIFICATE";

/// The certificates of a file, in its order; what is wrong with it is added to the problems.
fn certificates(input: &Input, problems: &mut Vec<Problem>) -> Vec<Certificate> {
    let blocks = match pem::blocks(&input.bytes) {
        Ok(blocks) => blocks,
        Err(error) => {
            problems.push(Problem::new(&input.name, error.to_string()));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for block in blocks {
        if block.label != LABEL {
            // These files are public and go out byte for byte; ztunnel refuses roots with other blocks in them.
            let is_key = block.label.ends_with("PRIVATE KEY");
            let remedy = if is_key { "this file is public: remove it" } else { "remove it" };
            let reason = format!("line {}: holds a `{}`", block.line, block.label);
            problems.push(Problem::with_remedy(&input.name, reason, remedy));
            continue;
        }
        match Certificate::parse(&input.name, block.line, &block.der) {
            Ok(certificate) => found.push(certificate),
            Err(reason) => {
                let reason = format!("line {}: the certificate is malformed: {reason}", block.line);
                problems.push(Problem::with_remedy(&input.name, reason, "copy it again"));
            }
        }
    }
    found
}

fn same_key(files: &BundleFiles, ours: &PublicKey, key_name: &str, key: &PublicKey) -> Result<(), Problem> {
    if key == ours {
        return Ok(());
    }
    let reason = format!(
        "is not the key of {} ({} with SHA-256 {}; the certificate has {} with {})",
        files.ca_cert.name,
        key.algorithm(),
        short(key),
        ours.algorithm(),
        short(ours)
    );
    Err(Problem::with_remedy(key_name, reason, "give the two that belong together"))
}

/// The CA's key, which unlike a root's must be one that we sign with.
fn ca_key(ca: &Certificate, problems: &mut Vec<Problem>) -> Option<PublicKey> {
    let reason = match PublicKey::from_spki_der(&ca.spki) {
        Ok(key) if key.has_usual_exponent() => return Some(key),
        Ok(_) => "the RSA key's public exponent is not 65537, which a CA's key must have".to_owned(),
        Err(error) => error.to_string(),
    };
    problems.push(Problem::new(&ca.file, format!("{}: {reason}", ca.label())));
    None
}

/// The first path that keeps every rule; else the reasons against the one that breaks the fewest.
fn choose<'a>(
    ca: &'a Certificate,
    others: &'a [Certificate],
    roots: &'a [Certificate],
    whole_chain: bool,
    now: SystemTime,
) -> Result<Path<'a>, Vec<Problem>> {
    let paths = path::find(ca, others, roots).map_err(|DeadEnd { at, reason, remedy }| {
        let mut problems = rules::problems_of(ca, 0, now);
        if whole_chain {
            problems.push(Problem::with_remedy(&at.file, format!("{} {reason}", at.label()), remedy));
        }
        problems
    })?;
    let judged = paths.into_iter().map(|path| (rules::path_problems(&path, now), path));
    match judged.min_by_key(|(problems, path)| (problems.len(), path.below_root.len())) {
        Some((problems, path)) if problems.is_empty() => Ok(path),
        Some((problems, _)) => Err(problems),
        None => Err(rules::problems_of(ca, 0, now)),
    }
}

/// Warnings about what stands in the files beside the path.
fn beside(path: &Path<'_>, others: &[Certificate], roots: &[Certificate], now: SystemTime) -> Vec<String> {
    let on_path = |der: &[u8]| path.root.der == der || path.below_root.iter().any(|it| it.der == der);
    let stray = others
        .iter()
        .filter(|other| !on_path(&other.der) && roots.iter().all(|root| root.der != other.der))
        .map(|other| format!("{}: {} is not on the CA's path to a root; remove it", other.file, other.label()));
    let unusable = roots
        .iter()
        .filter(|root| !on_path(&root.der))
        .flat_map(|root| rules::problems_of(root, 1, now))
        .map(|problem| problem.to_string());
    stray.chain(unusable).collect()
}

/// The beginning of a key's fingerprint, enough to compare by eye.
fn short(key: &PublicKey) -> String {
    key.fingerprint().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
