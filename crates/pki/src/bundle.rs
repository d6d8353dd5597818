//! The plug-in CA's public files, checked as a whole: ca-cert.pem, cert-chain.pem, root-cert.pem.
//!
//! Every valid plug-in CA of Istio is accepted: certificates in any order, the CA or the root repeated in the chain,
//! several roots. A bundle whose leaves Envoy, Go or ztunnel would reject is rejected here, with all reasons at once.
//! Reads no file and no clock (`istio_hsm_ca::bundle_files` reads the files).

pub(crate) mod certificate;
mod constraints;
mod issuer;
mod key;
mod passed_on;
pub(crate) mod path;
mod root;
pub(crate) mod rules;

use std::{sync::Arc, time::SystemTime};

use self::{
    certificate::{Certificate, Unreadable},
    passed_on::passed_on,
    path::{DeadEnd, Path},
    rules::Place,
};
use super::{
    PublicKey,
    found::{self, Wanted},
    name, pem,
};

pub use self::issuer::Issuer;

/// A file's content, and its name for messages.
#[derive(Clone, Debug)]
pub struct Input {
    /// The path, or another name that the operator knows.
    pub name: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// The public files of a plug-in CA, unchecked.
#[derive(Clone, Debug)]
pub struct BundleFiles {
    /// The CA certificate: ca-cert.pem or tls.crt (its first certificate is the CA's).
    pub ca_cert: Input,
    /// The intermediate certificates: cert-chain.pem; may be empty.
    pub cert_chain: Input,
    /// The roots: root-cert.pem or ca.crt.
    pub root_cert: Input,
}

/// A problem of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}{}", .remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default())]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
    /// How to fix it.
    pub remedy: Option<String>,
}

/// A warning that does not make the bundle invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

/// A valid plug-in CA, with its files unchanged.
#[derive(Clone, Debug)]
pub struct Bundle {
    files: BundleFiles,
    issuer: Arc<Issuer>,
    warnings: Vec<Warning>,
}

impl Problem {
    /// A problem whose reason makes the remedy obvious.
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
    /// The key in the CA certificate, if it can be read and is of a type that we sign with, even if the files as a
    /// whole are invalid.
    #[must_use]
    pub fn ca_key(&self) -> Option<PublicKey> {
        let read = certificates(&self.ca_cert, &mut Vec::new());
        ca_key(read.found.first().filter(|_| read.has_first)?, &mut Vec::new())
    }

    /// The keys in all certificates that can be read and are of a kind that we sign with, each with how messages call
    /// its certificate.
    #[must_use]
    pub fn keys(&self) -> Vec<(String, PublicKey)> {
        let files = [&self.ca_cert, &self.root_cert, &self.cert_chain];
        let found = files.into_iter().flat_map(|input| certificates(input, &mut Vec::new()).found);
        let named = found.map(|it| (format!("{} in {}", it.label(), it.file), PublicKey::from_spki_der(&it.spki)));
        named.filter_map(|(name, key)| Some((name, key.ok()?))).collect()
    }
}

impl Bundle {
    /// Checks the files as a whole, at a given time.
    ///
    /// # Errors
    /// All problems, not only the first.
    pub fn check(files: BundleFiles, now: SystemTime) -> Result<Self, Vec<Problem>> {
        Self::check_read(files, Vec::new(), None, now)
    }

    /// The same for files of which some could not be read, and are empty here: the problems of the others are reported
    /// along with the `problems` that reading them had, and not what only follows from those. The CA's key, with the name
    /// by which messages call it, must be the certificate's.
    ///
    /// # Errors
    /// As [`Bundle::check`]; always when there are problems already.
    pub fn check_read(
        files: BundleFiles,
        mut problems: Vec<Problem>,
        key: Option<(&str, &PublicKey)>,
        now: SystemTime,
    ) -> Result<Self, Vec<Problem>> {
        let ca_file = certificates(&files.ca_cert, &mut problems);
        let chain = certificates(&files.cert_chain, &mut problems).found;
        let roots = certificates(&files.root_cert, &mut problems).found;
        // What is missing on the path may stand in a file that could not be read.
        let is_unread = |input: &Input| problems.iter().any(|problem| problem.file == input.name);
        let is_whole = !is_unread(&files.cert_chain) && !is_unread(&files.root_cert);
        let missing: Vec<_> = [(&files.ca_cert, ca_file.found.is_empty()), (&files.root_cert, roots.is_empty())]
            .into_iter()
            // Where a certificate is malformed, that is the reason, and not that there is none.
            .filter(|(input, is_empty)| *is_empty && !is_unread(input))
            .map(|(input, _)| Problem::with_remedy(&input.name, "holds no certificate", "put it there as PEM"))
            .collect();
        problems.extend(missing);
        let roots_pem = passed_on(&files.root_cert, &mut problems);
        let Some((ca, below)) = ca_file.found.split_first().filter(|_| ca_file.has_first) else { return Err(problems) };
        if let Some((name, key)) = key.filter(|(_, key)| key.spki_der() != ca.spki) {
            let (problem, is_elsewhere) = other_key((name, key), ca, &[below, &roots, &chain], &files.root_cert.name);
            problems.push(problem);
            // The rest would be about the wrong certificate.
            if is_elsewhere {
                return Err(problems);
            }
        }
        let others = [below, &chain].concat();
        let public_key = ca_key(ca, &mut problems);
        if roots.is_empty() {
            problems.extend(rules::problems_of(ca, Place::CA, now));
            return Err(problems);
        }
        let path = choose(ca, &others, &roots, is_whole, now).map_err(|found| problems.extend(found)).ok();
        let (Some(path), Some(public_key), true) = (path, public_key, problems.is_empty()) else {
            return Err(problems);
        };
        let mut warnings = rules::path_warnings(&path, now);
        warnings.extend(outside_path(ca, &path, &others, &roots, now));
        let issuer = Issuer::of_path(ca, &path, public_key, roots_pem, &roots);
        let warnings = warnings.into_iter().map(Warning).collect();
        Ok(Self { files, issuer: Arc::new(issuer), warnings })
    }

    /// The files, byte for byte as given.
    #[must_use]
    pub fn files(&self) -> &BundleFiles {
        &self.files
    }

    /// The issuer, for signing.
    #[must_use]
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// Expiry within 90 days, a root signed with SHA-1, and the like.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

const LABEL: &str = "CERTIFICATE";

/// What a file of certificates holds.
struct Read {
    /// In the file's order.
    found: Vec<Certificate>,
    /// Whether the first certificate of the file is the first that was found, and was not left out as unreadable.
    has_first: bool,
}

/// The certificates of a file; what is wrong with it is added to the problems.
fn certificates(input: &Input, problems: &mut Vec<Problem>) -> Read {
    let mut read = Read { found: Vec::new(), has_first: true };
    let blocks = pem::blocks(&input.bytes);
    if !matches!(&blocks, Ok(blocks) if !blocks.is_empty())
        && let Some(found) = found::file(&input.bytes, &input.name, Wanted::Certificates)
    {
        problems.push(Problem::with_remedy(&input.name, found.what, found.remedy));
        return read;
    }
    let blocks = match blocks {
        Ok(blocks) => blocks,
        Err(error) => {
            let remedy = "correct that line, or copy the file again";
            problems.push(Problem::with_remedy(&input.name, error.to_string(), remedy));
            return read;
        }
    };
    let is_comment = |line: &[u8]| line.is_empty() || line.starts_with(b"#");
    if blocks.is_empty() && !input.bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).all(is_comment) {
        let reason = "has content, but no PEM block (a line `-----BEGIN CERTIFICATE-----`)";
        let remedy = "give the certificates in PEM; a cert-chain.pem may also be empty";
        problems.push(Problem::with_remedy(&input.name, reason, remedy));
    }
    let all = found::Blocks::new(&input.name, &blocks);
    for block in &blocks {
        // These files are public and go out byte for byte; ztunnel refuses roots with other blocks in them.
        if let Some(found) = all.foreign(block) {
            read.has_first &= block.label != LABEL || !read.found.is_empty();
            problems.push(Problem::with_remedy(
                &input.name,
                format!("line {}: {}", block.line, found.what),
                found.remedy,
            ));
            continue;
        }
        match Certificate::parse(&input.name, block.line, &block.der) {
            Ok(certificate) => read.found.push(certificate),
            Err(Unreadable { reason, remedy }) => {
                read.has_first &= !read.found.is_empty();
                let reason = format!("line {}: the certificate {reason}", block.line);
                problems.push(Problem::with_remedy(&input.name, reason, remedy));
            }
        }
    }
    read
}

/// Why a key is not the CA's, and whether it is that of another certificate in the files.
fn other_key(
    (name, key): (&str, &PublicKey),
    ca: &Certificate,
    elsewhere: &[&[Certificate]],
    root_file: &str,
) -> (Problem, bool) {
    let Some(own) = elsewhere.iter().copied().flatten().find(|other| other.spki == key.spki_der()) else {
        let of_certificate = PublicKey::from_spki_der(&ca.spki);
        let reason = format!(
            "is not the key of {} ({} with SHA-256 {}; the certificate has {})",
            ca.file,
            key.algorithm(),
            short(key),
            of_certificate
                .map_or_else(|_| ca.key.kind.clone(), |ours| format!("{} with {}", ours.algorithm(), short(&ours))),
        );
        return (Problem::with_remedy(name, reason, "give the two that belong together"), false);
    };
    let reason = format!(
        "is the key of {} in {}, and not of the first certificate in {} ({})",
        own.label(),
        own.file,
        ca.file,
        name::shown(&ca.subject)
    );
    let remedy = if own.file == ca.file {
        format!("put that certificate first in {}", ca.file)
    } else if own.file == root_file && path::is_signed_by(own, ca) && !own.is_self_issued() {
        format!("the two files are swapped: put the CA's certificate into {}, and its root into {}", ca.file, own.file)
    } else if own.file == root_file && path::is_signed_by(ca, own) {
        format!(
            "give the key of {} in {}, and leave the root's key where it is kept; if the root itself is to issue \
             certificates, put its certificate into {}",
            name::shown(&ca.subject),
            ca.file,
            ca.file
        )
    } else {
        format!("put that certificate into {}, as its first", ca.file)
    };
    (Problem::with_remedy(name, reason, remedy), true)
}

/// The CA's key; unlike a root's key, it must be of a type that we sign with.
fn ca_key(ca: &Certificate, problems: &mut Vec<Problem>) -> Option<PublicKey> {
    let reason = match PublicKey::from_spki_der(&ca.spki) {
        Ok(key) if key.has_usual_exponent() => return Some(key),
        Ok(_) => "the RSA key's public exponent is not 65537, which a CA's key must have".to_owned(),
        Err(error) => error.to_string(),
    };
    let remedy = "make a CA key of a supported type, and have a certificate issued for it";
    problems.push(Problem::with_remedy(&ca.file, format!("{}: {reason}", ca.label()), remedy));
    None
}

/// The first path that violates no rule; otherwise the problems of the one with the fewest violations.
fn choose<'a>(
    ca: &'a Certificate,
    others: &'a [Certificate],
    roots: &'a [Certificate],
    is_whole: bool,
    now: SystemTime,
) -> Result<Path<'a>, Vec<Problem>> {
    let dead_end = |DeadEnd { at, reason, remedy }: DeadEnd<'_>| {
        Problem::with_remedy(&at.file, format!("{} {reason}", at.label()), remedy)
    };
    let mut paths = path::find(ca, others, roots).map_err(|found| {
        let mut problems = rules::problems_of(ca, Place::CA, now);
        problems.extend(Some(dead_end(found)).filter(|_| is_whole));
        problems
    })?;
    for path in paths.iter_mut().filter(|path| !path.is_pointed_to) {
        let taken = path::as_openssl(ca, &path.below_root, roots, now).into_iter().flatten();
        path.instead = taken.map(|taken| taken.root).collect();
    }
    paths.retain(|path| path.is_pointed_to || !path.instead.is_empty());
    let judge = |path: &Path<'a>| {
        let problems = rules::path_problems(path, now);
        if !problems.is_empty() {
            return problems;
        }
        let rivals = path::as_openssl(ca, &path.below_root, roots, now).into_iter();
        let judged = rivals.map(|rival| match rival {
            Ok(rival) => rules::problem_of_root(&rival, now).map(|problem| unlike(&problem, &rival, path)),
            Err(found) => Some(dead_end(found)),
        });
        judged.flatten().collect()
    };
    // A path with the CA's own certificate also serves workloads that trust only a part of the roots. Of as many problems,
    // those of a root that may be taken instead are easier to solve.
    let judged = paths.into_iter().map(|path| (judge(&path), path));
    let rank = |(problems, path): &(Vec<Problem>, Path<'a>)| {
        let is_faulty = !rules::path_problems(path, now).is_empty();
        let is_bad = !problems.is_empty();
        (is_bad, !path.is_pointed_to, problems.len(), is_faulty, path.below_root.is_empty(), path.below_root.len())
    };
    match judged.min_by_key(rank) {
        Some((problems, path)) if problems.is_empty() => Ok(path),
        Some((problems, _)) => Err(problems),
        None => Err(rules::problems_of(ca, Place::CA, now)),
    }
}

/// The problem of a path that OpenSSL or BoringSSL may take in place of one that keeps every rule.
fn unlike(problem: &Problem, rival: &Path<'_>, path: &Path<'_>) -> Problem {
    let reason = format!(
        "{}; OpenSSL and Envoy (BoringSSL) may take {} for the issuer in place of {}, which has the same name",
        problem.reason,
        rival.root.label(),
        path.root.label()
    );
    Problem::with_remedy(
        &problem.file,
        reason,
        format!("remove {} if no workload needs it, or have it issued again", rival.root.label()),
    )
}

/// Warnings about certificates in the files that are not on the path.
fn outside_path(
    ca: &Certificate,
    path: &Path<'_>,
    others: &[Certificate],
    roots: &[Certificate],
    now: SystemTime,
) -> Vec<String> {
    let on_path = |der: &[u8]| {
        [path.root].iter().chain(&path.below_root).chain(&path.instead).any(|certificate| certificate.der == der)
    };
    let is_stray = |other: &&Certificate| {
        !on_path(&other.der) && other.der != ca.der && roots.iter().all(|root| root.der != other.der)
    };
    let stray = others.iter().filter(is_stray).map(|other| {
        let found = format!("{}: {} is not on the CA's path to a root", other.file, other.label());
        if other.file == ca.file && path::is_signed_by(other, ca) {
            return format!("{found}, but issued by the CA in {}; if it is the CA's own, put it first there", ca.file);
        }
        format!("{found}; it is sent to nobody and may be removed")
    });
    let rivals = path::as_openssl(ca, &path.below_root, roots, now).into_iter().flatten();
    let rivals: Vec<_> = rivals.filter(|rival| !on_path(&rival.root.der)).collect();
    let soon = rivals.iter().flat_map(|rival| rules::expires_soon(rival.root, now));
    let soon = soon.map(|warning| format!("{warning}; remove it before: Envoy (BoringSSL) may take it for the issuer"));
    let unusable = roots.iter().filter(|root| !on_path(&root.der)).flat_map(|root| {
        rules::problems_of(root, Place::OTHER_ROOT, now).into_iter().map(|problem| {
            let Problem { file, reason, .. } = problem;
            format!("{file}: {reason}; the CA's path does not need it: remove it")
        })
    });
    stray.chain(unusable).chain(soon).collect()
}

/// The beginning of a key's fingerprint, for comparison by users.
fn short(key: &PublicKey) -> String {
    const_hex::encode(key.fingerprint().get(..8).unwrap_or_default())
}

#[cfg(test)]
mod tests;
