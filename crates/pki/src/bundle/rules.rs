//! What each certificate of a path must be, so that Istio's clients (Envoy, Go, rustls-webpki) take leaves under it.
//! docs/BUNDLES.md lists the rules with their origins.

use std::{borrow::Cow, time::SystemTime};

use const_oid::{ObjectIdentifier, db::rfc5280};
use der::DateTime;

use super::{
    Problem,
    certificate::Certificate,
    path::{Path, is_sha1},
};

/// Below this a warning is due: a renewal through the root's owner takes weeks.
const EXPIRES_SOON: std::time::Duration = std::time::Duration::from_secs(90 * 86_400);
/// rustls-webpki reads no certificate whose content is longer.
const CONTENT_MAX: usize = 0xffff;
/// rustls-webpki's MAX_SUB_CA_COUNT: certificates between a leaf and its trust anchor.
const BELOW_ROOT_MAX: usize = 6;
/// rustls-webpki reads a pathLenConstraint of one byte; that of a trust anchor it does not read.
const PATH_LENGTH_MAX: u64 = 255;

/// What Go, BoringSSL and rustls-webpki take when it is critical.
const KNOWN_CRITICAL: [ObjectIdentifier; 5] = [
    rfc5280::ID_CE_BASIC_CONSTRAINTS,
    rfc5280::ID_CE_EXT_KEY_USAGE,
    rfc5280::ID_CE_KEY_USAGE,
    rfc5280::ID_CE_NAME_CONSTRAINTS,
    rfc5280::ID_CE_SUBJECT_ALT_NAME,
];
/// What Go and BoringSSL take, too; of a trust anchor rustls-webpki ignores what it does not know.
const KNOWN_CRITICAL_AT_ROOT: [ObjectIdentifier; 5] = [
    rfc5280::ID_CE_CERTIFICATE_POLICIES,
    rfc5280::ID_CE_CRL_DISTRIBUTION_POINTS,
    rfc5280::ID_CE_INHIBIT_ANY_POLICY,
    rfc5280::ID_CE_POLICY_CONSTRAINTS,
    rfc5280::ID_CE_POLICY_MAPPINGS,
];

/// Where a certificate stands on its path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// CA certificates below it.
    pub(super) below: usize,
    pub(super) is_root: bool,
    /// Whether it is the certificate that leaves are issued under.
    pub(super) is_ca: bool,
}

impl Place {
    /// The CA's, below a root.
    pub(super) const CA: Self = Self { below: 0, is_root: false, is_ca: true };
    /// A root that the CA's path does not lead to: what is wrong with it under any path.
    pub(super) const OTHER_ROOT: Self = Self { below: 0, is_root: true, is_ca: false };
}

/// What is wrong with a certificate, as a predicate, and the remedy.
type Violation = (String, Cow<'static, str>);

/// Every rule that a path breaks; the CA's certificate first.
pub(super) fn path_problems(path: &Path<'_>, now: SystemTime) -> Vec<Problem> {
    let certificates: Vec<&Certificate> = path.below_root.iter().copied().chain([path.root]).collect();
    let mut problems = Vec::new();
    for (below, certificate) in certificates.iter().enumerate() {
        let place = Place { below, is_root: below == path.below_root.len(), is_ca: below == 0 };
        problems.extend(problems_of(certificate, place, now));
        let under = certificates.get(..below).unwrap_or_default();
        problems.extend(constrained(certificate, under).map(|violation| problem(certificate, violation)));
    }
    if path.below_root.len() > BELOW_ROOT_MAX {
        let count = path.below_root.len();
        let reason = format!(
            "is {count} certificates below its root ({}): rustls-webpki (ztunnel) verifies {BELOW_ROOT_MAX} at most",
            path.root.label()
        );
        let remedy =
            "have it issued by a CA further up, or make an intermediate a root by putting it into root-cert.pem";
        problems.extend(path.below_root.first().map(|ca| problem(ca, (reason, remedy.into()))));
    }
    problems.extend(explicit_policy(path));
    problems
}

/// Every rule that a certificate breaks in its place.
pub(super) fn problems_of(certificate: &Certificate, place: Place, now: SystemTime) -> Vec<Problem> {
    let reasons = [
        authority(certificate, place),
        validity(certificate, now),
        extended_key_usage(certificate),
        name_constraints(certificate),
        unknown_critical(certificate, place, true),
        signature(certificate, place),
        exponent(certificate),
        form(certificate),
    ];
    reasons.into_iter().flatten().map(|violation| problem(certificate, violation)).collect()
}

/// The rules of OpenSSL and BoringSSL that the root of a path breaks.
pub(super) fn problem_of_root(path: &Path<'_>, now: SystemTime) -> Option<Problem> {
    let root = path.root;
    let place = Place { below: path.below_root.len(), is_root: true, is_ca: path.below_root.is_empty() };
    // Of a root that may sign, neither wants basicConstraints.
    let is_signer = root.version == 3 && root.basic_constraints.is_none() && root.may_sign == Some(true);
    let reasons = [
        authority(root, place).filter(|_| !is_signer),
        validity(root, now),
        extended_key_usage(root),
        unknown_critical(root, place, false),
        names_constrained(root, &path.below_root),
    ];
    reasons.into_iter().flatten().chain(constrained(root, &path.below_root)).next().map(|found| problem(root, found))
}

/// Warnings about a valid path.
pub(super) fn path_warnings(path: &Path<'_>, now: SystemTime) -> Vec<String> {
    let mut warnings = Vec::new();
    let roots = || [path.root].into_iter().chain(path.instead.iter().copied());
    for certificate in path.below_root.iter().copied().chain(roots()) {
        let of = format!("{}: {}", certificate.file, certificate.label());
        let is_root = roots().any(|root| std::ptr::eq(certificate, root));
        warnings.extend(expires_soon(certificate, now).map(|warning| format!("{warning}; renew it")));
        if is_sha1(certificate) {
            warnings.push(format!("{of} is signed with SHA-1; nobody verifies a root's own signature, but renew it"));
        }
        if certificate.has_long_serial() {
            warnings.push(format!(
                "{of} has a serial number longer than the 20 octets of RFC 5280; Istio's clients do not mind, others may"
            ));
        }
        if certificate.constraints.is_some() {
            warnings.push(format!("{of} has name constraints; they may forbid DNS names and IP addresses of leaves"));
        }
        if is_root && !certificate.is_self_issued() {
            warnings.push(format!("{of} is not self-signed; OpenSSL does not take it as a root by default"));
        }
    }
    warnings.extend(path.instead.iter().map(|other| {
        format!(
            "{}: OpenSSL and Envoy (BoringSSL) verify by {}, to which an authorityKeyIdentifier points, Go and rustls-webpki \
             (ztunnel) by {}: leave both there",
            other.file,
            other.label(),
            path.root.label()
        )
    }));
    warnings
}

/// That a certificate expires within 90 days, if it does.
pub(super) fn expires_soon(certificate: &Certificate, now: SystemTime) -> Option<String> {
    let left = certificate.not_after.duration_since(now).ok().filter(|left| *left < EXPIRES_SOON)?;
    let (of, days) = (format!("{}: {}", certificate.file, certificate.label()), left.as_secs() / 86_400);
    Some(format!("{of} expires in {days} days, at {}", date(certificate.not_after)))
}

fn problem(certificate: &Certificate, (reason, remedy): Violation) -> Problem {
    Problem::with_remedy(&certificate.file, format!("{} {reason}", certificate.label()), remedy)
}

/// RFC 5280, sections 4.2.1.3 and 4.2.1.9. Criticality does not matter: Istio's own samples are not critical.
fn authority(certificate: &Certificate, place: Place) -> Option<Violation> {
    let Place { below, is_root, is_ca: signs_leaves } = place;
    let Some((is_ca, path_length)) = certificate.basic_constraints else {
        // Roots older than version 3 have no extensions; Go, OpenSSL and webpki take them as trust anchors.
        return match (certificate.version, certificate.is_self_issued()) {
            (1, true) if is_root && !signs_leaves => None,
            (1, true) => Some(reissue_as_v3(certificate)),
            (2, _) => Some((
                "is of version 2, which has no basicConstraints and which rustls-webpki (ztunnel) cannot read"
                    .to_owned(),
                "have it issued again as version 3 with basicConstraints CA:TRUE, for the same key".into(),
            )),
            (1, false) => Some((
                "is of version 1, which cannot be a CA's below a root".to_owned(),
                "have it issued again as version 3 with basicConstraints CA:TRUE, for the same key".into(),
            )),
            (_, _) => Some(("is not a CA's (it has no basicConstraints)".to_owned(), "take a CA's certificate".into())),
        };
    };
    if !is_ca {
        return Some(("is not a CA's (basicConstraints say CA:FALSE)".to_owned(), "take a CA's certificate".into()));
    }
    if certificate.may_sign == Some(false) {
        return Some((
            "may not sign certificates (keyUsage lacks keyCertSign)".to_owned(),
            "have it issued again with it".into(),
        ));
    }
    // Self-issued certificates count too: Go and rustls-webpki make no exception for them.
    match path_length {
        Some(allowed) if usize::try_from(allowed).is_ok_and(|allowed| allowed < below) => Some((
            format!("allows {allowed} CA certificates below it (pathLenConstraint), but there are {below}"),
            "have it issued again, or the CA's certificate by a CA further up".into(),
        )),
        Some(allowed) if allowed > PATH_LENGTH_MAX && !is_root => Some((
            format!("has a pathLenConstraint of {allowed}; rustls-webpki (ztunnel) reads at most {PATH_LENGTH_MAX}"),
            "have it issued again with a smaller one or without".into(),
        )),
        _ => None,
    }
}

/// A root of version 1 can be a trust anchor, and Istio's own code takes it for no CA.
fn reissue_as_v3(certificate: &Certificate) -> Violation {
    let command = format!(
        "openssl x509 -in {} -signkey ca-key.pem -days 3650 -extfile <(printf \
         'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,cRLSign\\nsubjectKeyIdentifier=hash\\n') -out \
         ca-cert-v3.pem",
        certificate.file
    );
    (
        "is self-signed and of version 1, which has no basicConstraints: Istio takes it for no CA's".to_owned(),
        format!(
            "issue it again as version 3 with CA:TRUE, for the same name and key, so that what it signed stays valid: \
             {command}; use the result as ca-cert.pem, and put it into root-cert.pem before the old one"
        )
        .into(),
    )
}

/// RFC 5280, section 4.1.2.5: both ends belong to the validity.
fn validity(certificate: &Certificate, now: SystemTime) -> Option<Violation> {
    if now < certificate.not_before {
        return Some((
            format!("is not yet valid: it begins at {}", date(certificate.not_before)),
            "wait, or set the clock right".into(),
        ));
    }
    (now > certificate.not_after).then(|| (format!("expired at {}", date(certificate.not_after)), "renew it".into()))
}

/// Istio's leaves are used for serverAuth and clientAuth. rustls-webpki does not support anyExtendedKeyUsage.
fn extended_key_usage(certificate: &Certificate) -> Option<Violation> {
    let usages = certificate.extended_key_usage.as_ref()?;
    let missing: Vec<_> = [("serverAuth", rfc5280::ID_KP_SERVER_AUTH), ("clientAuth", rfc5280::ID_KP_CLIENT_AUTH)]
        .into_iter()
        .filter(|(_, oid)| !usages.contains(oid))
        .map(|(name, _)| name)
        .collect();
    (!missing.is_empty()).then(|| {
        let reason = format!("forbids {} below it (extendedKeyUsage), which workloads need", missing.join(" and "));
        (reason, "have it issued again without extendedKeyUsage".into())
    })
}

/// RFC 5280, section 4.2.1.10: constraints that no leaf can meet.
fn name_constraints(certificate: &Certificate) -> Option<Violation> {
    let reason = certificate.constraints.as_ref()?.forbids_leaves()?;
    Some((reason.to_owned(), "have it issued again without that constraint".into()))
}

/// The same of a root that OpenSSL or BoringSSL takes: unlike rustls-webpki they compare the names. Which trust domains
/// the CA will serve is not known here.
fn names_constrained(root: &Certificate, below: &[&Certificate]) -> Option<Violation> {
    let subjects: Vec<&[u8]> = below.iter().map(|ca| ca.subject.as_slice()).collect();
    let reason = root.constraints.as_ref()?.may_forbid_leaves(&subjects)?;
    Some((reason.to_owned(), "have it issued again without that constraint".into()))
}

/// RFC 5280, section 4.2.1.10: they apply to the names of every certificate below, CAs among them.
fn constrained(certificate: &Certificate, below: &[&Certificate]) -> Option<Violation> {
    let constraints = certificate.constraints.as_ref()?;
    below.iter().find_map(|ca| {
        let name = constraints.forbidden(&ca.alternative_names)?;
        let reason =
            format!("has name constraints that forbid {name}, a subjectAltName of {} in {}", ca.label(), ca.file);
        Some((reason, "have the lower one issued again without that name".into()))
    })
}

/// `in_full`: whether an extension has to be understood in full, as Go wants it.
fn unknown_critical(certificate: &Certificate, place: Place, in_full: bool) -> Option<Violation> {
    let is_known = |(oid, is_understood): &&(ObjectIdentifier, bool)| {
        (*is_understood || !in_full)
            && (KNOWN_CRITICAL.contains(oid) || place.is_root && KNOWN_CRITICAL_AT_ROOT.contains(oid))
    };
    let unknown = certificate.critical.iter().filter(|critical| !is_known(critical));
    let oids: Vec<_> = unknown.map(|(oid, _)| oid.to_string()).collect();
    (!oids.is_empty()).then(|| {
        let reason = format!("has critical extensions that Istio's clients do not know ({})", oids.join(", "));
        (reason, "have it issued again without, or with those not critical".into())
    })
}

/// Go and rustls-webpki verify no SHA-1. A root's own signature is not verified by anybody.
fn signature(certificate: &Certificate, place: Place) -> Option<Violation> {
    (is_sha1(certificate) && !place.is_root).then(|| {
        let reason = "is signed with SHA-1, which Go and rustls-webpki (ztunnel) refuse".to_owned();
        (reason, "have it issued again, signed with SHA-256".into())
    })
}

/// What rustls-webpki cannot read.
fn form(certificate: &Certificate) -> Option<Violation> {
    let reason = if certificate.has_unique_id {
        "has a unique identifier, which rustls-webpki (ztunnel) cannot read"
    } else if certificate.der.len() > CONTENT_MAX {
        "has more than 64 KiB, which rustls-webpki (ztunnel) cannot read"
    } else {
        return None;
    };
    Some((reason.to_owned(), "have it issued again, as version 3 without that".into()))
}

/// Go's crypto/rsa verifies with no larger one.
fn exponent(certificate: &Certificate) -> Option<Violation> {
    certificate.key.has_huge_exponent.then(|| {
        let reason = "has an RSA key with a public exponent above 2^31, which Go refuses".to_owned();
        (reason, "take a CA with another key".into())
    })
}

/// RFC 5280, section 6.1, as Go and BoringSSL do it: leaves have no certificatePolicies, so that a chain is refused as
/// soon as some policy is required. That of the root does not count.
fn explicit_policy(path: &Path<'_>) -> Option<Problem> {
    let mut left = u32::MAX;
    let mut demanding = None;
    for certificate in path.below_root.iter().rev() {
        if !certificate.is_self_issued() {
            left = left.saturating_sub(1);
        }
        if let Some(required) = certificate.require_explicit_policy.filter(|required| *required < left) {
            left = required;
            demanding = Some(*certificate);
        }
    }
    let reason = "requires certificate policies (policyConstraints, requireExplicitPolicy), which workloads' certificates \
                  do not have: Go and Envoy (BoringSSL) refuse them";
    demanding.filter(|_| left <= 1).map(|certificate| {
        problem(certificate, (reason.to_owned(), "have it issued again without policyConstraints".into()))
    })
}

/// RFC 3339, in UTC.
pub(crate) fn date(time: SystemTime) -> String {
    DateTime::from_system_time(time).map_or_else(|_error| "an impossible time".to_owned(), |date| date.to_string())
}
