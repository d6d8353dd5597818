//! The plugged-in CA's public files: ca-cert.pem, cert-chain.pem, root-cert.pem, checked as a whole.
//!
//! What a conforming plug-in CA for Istio is, is accepted: any order, the CA or the root repeated in the chain, several
//! roots. What would make a leaf under it fail at Envoy, Go or ztunnel is refused here, with every reason at once. It
//! reads no file and no clock (`crate::bundle_files` reads the files). Called by `import`, `install`, `check`, and by
//! the daemon at start and at each reload.

mod certificate;
mod path;
mod rules;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{
    certificate::Certificate,
    path::{DeadEnd, Path},
};
use super::{KeyAlgorithm, PublicKey, pem};

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
    issuer: Arc<Issuer>,
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

impl Problem {
    /// One reason against one file.
    #[must_use]
    pub fn new(file: &str, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Bundle {
    /// Checks the files as a whole at a time.
    ///
    /// # Errors
    /// Every reason to refuse them, not only the first.
    pub fn check(files: BundleFiles, now: SystemTime) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut ca_certs = certificates(&files.ca_cert, &mut problems);
        let chain = certificates(&files.cert_chain, &mut problems);
        let roots = certificates(&files.root_cert, &mut problems);
        for (input, found) in [(&files.ca_cert, &ca_certs), (&files.root_cert, &roots)] {
            // Where a certificate is malformed, that is the reason, and not that there is none.
            if found.is_empty() && !problems.iter().any(|problem| problem.file == input.name) {
                problems.push(Problem::new(&input.name, "holds no certificate; put it there as PEM"));
            }
        }
        let roots_pem = match String::from_utf8(files.root_cert.bytes.clone()) {
            Ok(text) => text,
            Err(_) => {
                let reason = "is not UTF-8 text, as the reply to Istio's agents must be; remove the remarks in it";
                problems.push(Problem::new(&files.root_cert.name, reason));
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
        let path = choose(&ca, &others, &roots, now).map_err(|found| problems.extend(found)).ok();
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
        let ours = self.issuer.public_key();
        if key == ours {
            return Ok(());
        }
        let reason = format!(
            "is not the key of {} ({} with SHA-256 {}; the certificate has {} with {}); give the two that belong \
             together",
            self.files.ca_cert.name,
            key.algorithm(),
            short(key),
            ours.algorithm(),
            short(ours)
        );
        Err(Problem::new(key_name, reason))
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

impl Issuer {
    /// The issuer of a self-signed root that is about to be made (`generate --self-signed`): it has no certificate, no
    /// path and no roots yet. `subject` is a DER Name.
    #[must_use]
    pub fn self_signed(subject: Vec<u8>, public_key: PublicKey, not_before: SystemTime, not_after: SystemTime) -> Self {
        Self {
            certificate: Vec::new(),
            subject,
            subject_key_id: Some(public_key.key_id().to_vec()),
            public_key,
            path_len: None,
            not_before,
            not_after,
            path_pem: Vec::new(),
            roots_pem: String::new(),
            roots: Vec::new(),
        }
    }

    fn of_path(
        ca: &Certificate,
        path: &Path<'_>,
        public_key: PublicKey,
        roots_pem: String,
        roots: &[Certificate],
    ) -> Self {
        let ends = path.below_root.iter().map(|certificate| certificate.not_after);
        Self {
            certificate: ca.der.clone(),
            subject: ca.subject.clone(),
            public_key,
            subject_key_id: ca.subject_key_id.clone(),
            path_len: ca.basic_constraints.as_ref().and_then(|constraints| constraints.path_len_constraint),
            not_before: ca.not_before,
            not_after: ends.fold(path.root.not_after, SystemTime::min),
            path_pem: path.below_root.iter().map(|certificate| pem::encode(LABEL, &certificate.der)).collect(),
            roots_pem,
            roots: roots.iter().map(|root| root.der.clone()).collect(),
        }
    }

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
            let advice = if block.label.ends_with("PRIVATE KEY") { "this file is public: " } else { "" };
            let reason = format!("line {}: holds a `{}`; {advice}remove it", block.line, block.label);
            problems.push(Problem::new(&input.name, reason));
            continue;
        }
        match Certificate::parse(&input.name, block.line, &block.der) {
            Ok(certificate) => found.push(certificate),
            Err(reason) => {
                let reason = format!("line {}: the certificate is malformed: {reason}; take it afresh", block.line);
                problems.push(Problem::new(&input.name, reason));
            }
        }
    }
    found
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
    now: SystemTime,
) -> Result<Path<'a>, Vec<Problem>> {
    let paths = path::find(ca, others, roots).map_err(|DeadEnd { at, reason }| {
        let mut problems = rules::problems_of(ca, 0, now);
        problems.push(Problem::new(&at.file, format!("{} {reason}", at.label())));
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
