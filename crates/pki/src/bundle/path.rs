//! The ways from the CA's certificate to a root: names chained byte for byte, signatures verified, effort bounded.
//!
//! A bundle may hold several certificates of one name (a renewed root, a cross-signed intermediate), in any order, so
//! that this is a search. It says nothing about validity or constraints: the rules judge each path found.

use rustls_pki_types::SignatureVerificationAlgorithm;

use super::certificate::{Certificate, Identified, shown};
use crate::PublicKey;

/// Certificates between the CA's and the root, both included; real hierarchies have two to four.
const DEPTH_MAX: usize = 8;
/// Signatures verified in one search: as many as rustls-webpki allows itself.
const VERIFICATIONS_MAX: usize = 100;
/// Complete paths that are kept for the rules to choose from.
const PATHS_MAX: usize = 16;

/// sha1WithRSAEncryption, without and with its NULL, and ecdsa-with-SHA1: contents of AlgorithmIdentifiers.
const SHA1: [&[u8]; 3] = [
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05],
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05, 0x05, 0x00],
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01],
];

/// A way to a root.
#[derive(Clone, Debug)]
pub(super) struct Path<'a> {
    /// From the CA's certificate up to, not including, the root; empty when the CA is itself the root.
    pub(super) below_root: Vec<&'a Certificate>,
    /// The root, from root-cert.pem.
    pub(super) root: &'a Certificate,
}

/// Why no path was found: the last certificate that was reached, and the problem with its issuer.
#[derive(Clone, Debug)]
pub(super) struct DeadEnd<'a> {
    pub(super) at: &'a Certificate,
    pub(super) reason: String,
    pub(super) remedy: String,
}

/// Whether a certificate is signed with SHA-1.
pub(super) fn is_sha1(certificate: &Certificate) -> bool {
    SHA1.contains(&certificate.signature.algorithm.as_slice())
}

/// Whether the child's signature was made by the issuer's key.
pub(super) fn is_signed_by(child: &Certificate, issuer: &Certificate) -> bool {
    let (Identified { algorithm, bits }, key) = (&child.signature, &issuer.key);
    if is_sha1(child) {
        return PublicKey::from_spki_der(&issuer.spki)
            .is_ok_and(|key| key.verify_legacy_sha1(&child.tbs, bits).is_ok());
    }
    // The algorithms of rustls-webpki, which ztunnel verifies with: wider than those of our own keys (P-521, RSA up
    // to 8192 bits, PSS), since a root's key never gets near a token of ours.
    let fits = |candidate: &&&dyn SignatureVerificationAlgorithm| {
        candidate.signature_alg_id().as_ref() == algorithm.as_slice()
            && candidate.public_key_alg_id().as_ref() == key.algorithm.as_slice()
    };
    webpki::ALL_VERIFICATION_ALGS
        .iter()
        .filter(fits)
        .any(|candidate| candidate.verify_signature(&key.bits, &child.tbs, bits).is_ok())
}

/// Every way from the CA's certificate to a root, within the bounds.
pub(super) fn find<'a>(
    ca: &'a Certificate,
    others: &'a [Certificate],
    roots: &'a [Certificate],
) -> Result<Vec<Path<'a>>, DeadEnd<'a>> {
    if let Some(root) = roots.iter().find(|root| root.der == ca.der) {
        return Ok(vec![Path { below_root: Vec::new(), root }]);
    }
    let mut search = Search {
        // A root that cert-chain.pem repeats is a root all the same.
        others: others.iter().filter(|other| roots.iter().all(|root| root.der != other.der)).collect(),
        roots,
        verifications: 0,
        was_limited: false,
        found: Vec::new(),
        dead_end: DeadEnd { at: ca, reason: String::new(), remedy: String::new() },
        deepest: 0,
    };
    search.climb(&mut vec![ca]);
    if !search.found.is_empty() {
        return Ok(search.found);
    }
    if search.was_limited {
        return Err(DeadEnd {
            at: ca,
            reason: "has too many possible issuers".to_owned(),
            remedy: "leave only the certificates of its own path".to_owned(),
        });
    }
    Err(search.dead_end)
}

struct Search<'a> {
    others: Vec<&'a Certificate>,
    roots: &'a [Certificate],
    verifications: usize,
    was_limited: bool,
    found: Vec<Path<'a>>,
    dead_end: DeadEnd<'a>,
    deepest: usize,
}

impl<'a> Search<'a> {
    /// Goes up from the last certificate of the path; the depth bounds the recursion.
    fn climb(&mut self, path: &mut Vec<&'a Certificate>) {
        let Some(child) = path.last().copied() else { return };
        let mut same_name = None;
        let mut signed = false;
        for root in self.roots.iter().filter(|root| root.subject == child.issuer) {
            same_name = Some(root);
            if self.verifies(child, root) {
                signed = true;
                if self.found.len() < PATHS_MAX {
                    self.found.push(Path { below_root: path.clone(), root });
                }
            }
        }
        let candidates: Vec<_> = self.others.iter().copied().filter(|other| other.subject == child.issuer).collect();
        for other in candidates {
            if path.iter().any(|earlier| earlier.der == other.der) {
                continue;
            }
            same_name = Some(other);
            if path.len() + 1 >= DEPTH_MAX {
                self.was_limited = true;
            } else if self.verifies(child, other) {
                signed = true;
                path.push(other);
                self.climb(path);
                path.pop();
            }
        }
        if !signed && path.len() > self.deepest {
            self.deepest = path.len();
            let (reason, remedy) = self.why(child, same_name);
            self.dead_end = DeadEnd { at: child, reason, remedy };
        }
    }

    fn verifies(&mut self, child: &Certificate, issuer: &Certificate) -> bool {
        self.verifications += 1;
        self.was_limited |= self.verifications > VERIFICATIONS_MAX;
        self.verifications <= VERIFICATIONS_MAX && is_signed_by(child, issuer)
    }

    fn why(&self, child: &Certificate, same_name: Option<&Certificate>) -> (String, String) {
        let (root_file, issuer) = (self.roots.first().map_or("", |root| root.file.as_str()), shown(&child.issuer));
        match same_name {
            Some(other) => (
                format!(
                    "does not verify with the key of {} in {}, which has its issuer's name",
                    other.label(),
                    other.file
                ),
                "put the issuer's own certificate there".to_owned(),
            ),
            None if child.is_self_issued() => {
                (format!("is self-issued, but not in {root_file}"), "put it there".to_owned())
            }
            None => (
                format!("leads to no root in {root_file}: the certificate of its issuer ({issuer}) is missing"),
                format!("put it into the chain, or into {root_file} if it is a root"),
            ),
        }
    }
}
