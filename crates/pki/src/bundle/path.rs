//! The ways from the CA's certificate to a root: names chained byte for byte, key identifiers matched, signatures
//! verified, effort bounded.
//!
//! A bundle may hold several certificates of one name (a renewed root, a cross-signed intermediate), in any order, so
//! that this is a search. It says nothing about validity or constraints: the rules judge each path found. Go and
//! rustls-webpki search as it does. OpenSSL and BoringSSL take one certificate that fits and never go back, so that
//! [`as_openssl`] looks at what they may take.

use std::time::SystemTime;

use rustls_pki_types::SignatureVerificationAlgorithm;

use super::certificate::{Authority, Certificate, Signature, hex};
use crate::{
    PublicKey, algorithm,
    name::{is_same_text, shown, string_types},
};

/// Certificates below the root in one search; real hierarchies have one to three, rustls-webpki verifies six.
const DEPTH_MAX: usize = 32;
/// Signatures verified in one search: as many as rustls-webpki and Go allow themselves.
const VERIFICATIONS_MAX: usize = 100;
/// Maximum number of complete paths for the rules to choose from.
const PATHS_MAX: usize = 16;

/// sha1WithRSAEncryption, without and with its NULL, and ecdsa-with-SHA1: contents of AlgorithmIdentifiers.
const SHA1: [&[u8]; 3] = [
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05],
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05, 0x05, 0x00],
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01],
];

/// A path to a root.
#[derive(Clone, Debug)]
pub(super) struct Path<'a> {
    /// From the CA's certificate up to, not including, the root; empty when a root has the CA's name and key.
    pub(super) below_root: Vec<&'a Certificate>,
    /// The root, from root-cert.pem.
    pub(super) root: &'a Certificate,
    /// Whether the key identifiers below lead to the root, as OpenSSL and BoringSSL want it. Go and rustls-webpki do not.
    pub(super) is_pointed_to: bool,
    /// The roots that OpenSSL and BoringSSL take where they are not led to this one.
    pub(super) instead: Vec<&'a Certificate>,
}

impl<'a> Path<'a> {
    fn to(root: &'a Certificate, below_root: Vec<&'a Certificate>, is_pointed_to: bool) -> Self {
        Self { below_root, root, is_pointed_to, instead: Vec::new() }
    }
}

/// Why no path was found: the last certificate reached, and the problem with its issuer.
#[derive(Clone, Debug)]
pub(super) struct DeadEnd<'a> {
    pub(super) at: &'a Certificate,
    pub(super) reason: String,
    pub(super) remedy: String,
}

/// Why a certificate is not the issuer of another although it has the issuer's name.
enum Misfit<'a> {
    /// The key identifiers differ.
    KeyId { wanted: &'a [u8], found: &'a [u8] },
    /// The serial number of the issuer's certificate, or the name of that one's issuer, differs.
    Serial { wanted: String, found: String },
    /// The signature is not by its key.
    Signature,
}

/// Whether a certificate is signed with SHA-1.
pub(super) fn is_sha1(certificate: &Certificate) -> bool {
    SHA1.contains(&certificate.signature.algorithm.as_slice())
}

/// Whether the child's signature verifies with the issuer's key.
pub(super) fn is_signed_by(child: &Certificate, issuer: &Certificate) -> bool {
    if is_sha1(child) {
        return PublicKey::from_spki_der(&issuer.spki)
            .is_ok_and(|key| key.verify_legacy_sha1(&child.tbs, &child.signature.bits).is_ok());
    }
    is_signature_of(&child.signature, &child.tbs, issuer)
}

/// Whether a signature over some content, other than one with SHA-1, verifies with the issuer's key.
pub(crate) fn is_signature_of(signature: &Signature, content: &[u8], issuer: &Certificate) -> bool {
    verifiers(signature, issuer)
        .any(|candidate| candidate.verify_signature(&issuer.key.bits, content, &signature.bits).is_ok())
}

/// The algorithms of rustls-webpki, which ztunnel verifies with, for a signature: wider than those of our own keys
/// (P-521, RSA up to 8192 bits, PSS), since a root's key never gets near a token of ours.
fn verifiers(
    signature: &Signature,
    issuer: &Certificate,
) -> impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm> {
    webpki::ALL_VERIFICATION_ALGS.iter().copied().filter(move |candidate| {
        candidate.signature_alg_id().as_ref() == signature.algorithm.as_slice()
            && candidate.public_key_alg_id().as_ref() == issuer.key.algorithm.as_slice()
    })
}

/// Whether there are verifiers for the child's signature and for the issuer's key, be it not for the two together.
fn is_supported(child: &Certificate, issuer: &Certificate) -> bool {
    let known = || webpki::ALL_VERIFICATION_ALGS.iter();
    known().any(|it| it.signature_alg_id().as_ref() == child.signature.algorithm.as_slice())
        && known().any(|it| it.public_key_alg_id().as_ref() == issuer.key.algorithm.as_slice())
}

/// Whether an authorityKeyIdentifier points to a certificate, or at least to no other.
pub(crate) fn may_point_to(authority: &Authority, issuer: &Certificate) -> bool {
    points_to(authority, issuer).is_ok()
}

/// OpenSSL's X509_check_akid: whether an authorityKeyIdentifier points to a certificate.
fn points_to<'a>(authority: &'a Authority, issuer: &'a Certificate) -> Result<(), Misfit<'a>> {
    if let (Some(wanted), Some(found)) = (&authority.key_id, &issuer.subject_key_id)
        && wanted != found
    {
        return Err(Misfit::KeyId { wanted, found });
    }
    if let Some(wanted) = authority.serial.as_ref().filter(|wanted| **wanted != issuer.serial) {
        return Err(Misfit::Serial {
            wanted: format!("the serial number {}", hex(wanted)),
            found: hex(&issuer.serial),
        });
    }
    if let Some(wanted) = authority.issuer.as_ref().filter(|wanted| !is_same_text(wanted, &issuer.issuer)) {
        return Err(Misfit::Serial { wanted: format!("the issuer {}", shown(wanted)), found: shown(&issuer.issuer) });
    }
    Ok(())
}

/// All paths from the CA certificate to a root, within the bounds; those that the key identifiers do not lead along only
/// where there are others.
pub(super) fn find<'a>(
    ca: &'a Certificate,
    others: &'a [Certificate],
    roots: &'a [Certificate],
) -> Result<Vec<Path<'a>>, DeadEnd<'a>> {
    // A leaf may be verified with a root of the CA's name and key in place of the CA's own certificate.
    let leaf = leaf_authority(ca);
    let same = roots.iter().filter(|root| root.is_same_ca(ca)).map(|root| {
        let is_pointed_to = root.der == ca.der || points_to(&leaf, root).is_ok();
        Path::to(root, Vec::new(), is_pointed_to)
    });
    if roots.iter().any(|root| root.der == ca.der) {
        return Ok(same.collect());
    }
    let mut search = Search {
        // A root that is repeated in cert-chain.pem is still a root.
        others: others.iter().filter(|other| roots.iter().all(|root| root.der != other.der)).collect(),
        roots,
        verifications: 0,
        was_limited: false,
        found: Vec::new(),
        dead_end: DeadEnd { at: ca, reason: String::new(), remedy: String::new() },
        deepest: 0,
    };
    search.climb(&mut vec![ca]);
    search.found.extend(same);
    if search.found.iter().any(|path| path.is_pointed_to) {
        return Ok(search.found);
    }
    if search.was_limited {
        return Err(DeadEnd {
            at: ca,
            reason: "has too many possible issuers: not all were tried".to_owned(),
            remedy: "keep the certificates of the CA's own path only".to_owned(),
        });
    }
    Err(search.dead_end)
}

/// What the leaves of a CA say about their issuer's certificate.
fn leaf_authority(ca: &Certificate) -> Authority {
    Authority { key_id: ca.subject_key_id.clone(), ..Authority::default() }
}

/// The paths that OpenSSL and BoringSSL may take for a leaf, given the certificates that are sent with it. At each step
/// they take a root, else the first of the sent certificates, that has the issuer's name and is the one pointed to, and
/// they never go back. Which of several roots it is depends on the order and number of all of them, and with BoringSSL
/// not on their validity, so that each has to do. A root with another key is an error.
pub(super) fn as_openssl<'a>(
    ca: &'a Certificate,
    sent: &[&'a Certificate],
    roots: &'a [Certificate],
    now: SystemTime,
) -> Vec<Result<Path<'a>, DeadEnd<'a>>> {
    let leaf = leaf_authority(ca);
    let (mut issuer, mut authority) = (&ca.subject, &leaf);
    let mut below_root: Vec<&Certificate> = Vec::new();
    loop {
        let fits = |candidate: &&'a Certificate| {
            // BoringSSL passes over one that may not sign, OpenSSL over one that is not valid now.
            let is_taken =
                candidate.may_sign != Some(false) || (candidate.not_before..=candidate.not_after).contains(&now);
            is_same_text(&candidate.subject, issuer) && points_to(authority, candidate).is_ok() && is_taken
        };
        let child = below_root.last().copied();
        let candidates: Vec<_> = roots.iter().filter(fits).collect();
        if !candidates.is_empty() {
            let judge = |root: &'a Certificate| {
                let is_issuer = child.map_or(root.spki == ca.spki, |child| is_signed_by(child, root));
                let path = Path::to(root, below_root.clone(), true);
                if is_issuer { Ok(path) } else { Err(impostor(root, child)) }
            };
            return candidates.into_iter().map(judge).collect();
        }
        let next = sent.iter().copied().filter(fits).find(|it| below_root.iter().all(|below| below.der != it.der));
        let Some(next) = next else { return Vec::new() };
        below_root.push(next);
        (issuer, authority) = (&next.issuer, &next.authority);
    }
}

fn impostor<'a>(root: &'a Certificate, child: Option<&Certificate>) -> DeadEnd<'a> {
    let of = child.map_or_else(|| "workloads' certificates".to_owned(), Certificate::label);
    DeadEnd {
        at: root,
        reason: format!(
            "has the name of the issuer of {of} and another key, and no key identifier tells the two apart: OpenSSL and \
             Envoy (BoringSSL) take either for the issuer"
        ),
        remedy: "remove it if no workload needs it; else have the certificates issued again with subjectKeyIdentifier \
                 and authorityKeyIdentifier"
            .to_owned(),
    }
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
    /// Extends the path from its last certificate; the depth bounds the recursion.
    fn climb(&mut self, path: &mut Vec<&'a Certificate>) {
        let Some(child) = path.last().copied() else { return };
        let mut misfit = None;
        let mut has_issuer = false;
        let roots = self.roots.iter().map(|root| (root, true));
        let others: Vec<_> = self.others.iter().map(|other| (*other, false)).collect();
        for (candidate, is_root) in roots.chain(others) {
            if candidate.subject != child.issuer || path.iter().any(|earlier| earlier.is_same_ca(candidate)) {
                continue;
            }
            if !is_root && path.len() >= DEPTH_MAX {
                self.was_limited = true;
                continue;
            }
            let issued = self.is_issued(child, candidate);
            let is_pointed_to = issued.is_ok();
            let is_signed = !matches!(issued, Err(Misfit::Signature));
            if is_root
                && is_signed
                && self.found.iter().filter(|it| it.is_pointed_to == is_pointed_to).count() < PATHS_MAX
            {
                self.found.push(Path::to(candidate, path.clone(), is_pointed_to));
            }
            if let Err(found) = issued {
                misfit = Some((candidate, found));
                continue;
            }
            has_issuer = true;
            if !is_root {
                path.push(candidate);
                self.climb(path);
                path.pop();
            }
        }
        if !has_issuer && path.len() > self.deepest {
            self.deepest = path.len();
            let (reason, remedy) = self.why(child, misfit);
            self.dead_end = DeadEnd { at: child, reason, remedy };
        }
    }

    fn is_issued(&mut self, child: &'a Certificate, issuer: &'a Certificate) -> Result<(), Misfit<'a>> {
        self.verifications += 1;
        self.was_limited |= self.verifications > VERIFICATIONS_MAX;
        // First the signature: where the key is another, that is what matters.
        if self.verifications > VERIFICATIONS_MAX || !is_signed_by(child, issuer) {
            return Err(Misfit::Signature);
        }
        points_to(&child.authority, issuer)
    }

    fn why(&self, child: &Certificate, misfit: Option<(&Certificate, Misfit<'_>)>) -> (String, String) {
        let (root_file, issuer) = (self.roots.first().map_or("", |root| root.file.as_str()), shown(&child.issuer));
        if let Some((other, misfit)) = misfit {
            return misfit.explain(child, other);
        }
        // A CA that is in the roots' file, and a root in its place.
        if let Some(below) = self.roots.iter().find(|root| !root.is_self_issued() && is_signed_by(root, child)) {
            return (
                format!("is the issuer of {} in {root_file}: the two files are swapped", below.label()),
                format!("put the root's certificate into {root_file}, and the CA's first into {}", child.file),
            );
        }
        let same_text =
            self.roots.iter().chain(self.others.iter().copied()).find(|it| is_same_text(&it.subject, &child.issuer));
        match same_text {
            Some(other) if other.subject != child.issuer => (
                format!(
                    "names its issuer ({issuer}) in another encoding than {} in {} names itself ({} there, {} here): Go \
                     and ztunnel compare names byte for byte",
                    other.label(),
                    other.file,
                    string_types(&other.subject),
                    string_types(&child.issuer),
                ),
                "have it issued again by a CA that copies its own subject byte for byte, as `openssl x509 -req -CA` does"
                    .to_owned(),
            ),
            _ if child.is_self_issued() => {
                (format!("is self-issued, but not in {root_file}"), format!("put it into {root_file}, too"))
            }
            _ => (
                format!("leads to no root in {root_file}: the certificate of its issuer ({issuer}) is missing"),
                format!("put it into the chain, or into {root_file} if it is a root"),
            ),
        }
    }
}

impl Misfit<'_> {
    fn explain(&self, child: &Certificate, other: &Certificate) -> (String, String) {
        let (label, file) = (other.label(), &other.file);
        let named = format!("{label} in {file}, which has its issuer's name");
        let again = "have it issued again by its present issuer";
        match self {
            Self::KeyId { wanted, found } => (
                format!(
                    "does not point to {named}: its authorityKeyIdentifier is {}, and the subjectKeyIdentifier there is \
                     {}. Envoy (BoringSSL) and OpenSSL refuse such a pair",
                    hex(wanted),
                    hex(found)
                ),
                format!("put the issuer's certificate with that key identifier in its place, or {again}"),
            ),
            Self::Serial { wanted, found } => (
                format!(
                    "does not point to {named}: its authorityKeyIdentifier has {wanted}, and it is {found} there. Envoy \
                     (BoringSSL) and OpenSSL refuse such a pair"
                ),
                format!(
                    "put the issuer's certificate that it was issued under in its place; or {again}, with \
                     `authorityKeyIdentifier=keyid` in OpenSSL's configuration, which survives a renewal of the issuer"
                ),
            ),
            Self::Signature if !is_supported(child, other) => (
                format!(
                    "is signed with {} by a key that is {} ({named}): Istio's clients do not verify such signatures",
                    algorithm::name_of(&child.signature.algorithm),
                    other.key.kind,
                ),
                "have it issued again, with SHA-256, by a CA whose key is RSA (2048 to 8192), P-256, P-384 or Ed25519"
                    .to_owned(),
            ),
            Self::Signature => (
                format!("does not verify with the key of {named}"),
                "put the issuer's own certificate there".to_owned(),
            ),
        }
    }
}
