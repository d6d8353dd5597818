//! What each certificate of a path must be, so that Istio's clients (Envoy, Go, rustls-webpki) take leaves under it.

use std::time::SystemTime;

use const_oid::db::rfc5280;
use der::DateTime;
use x509_cert::ext::pkix::name::GeneralName;

use super::{
    Problem,
    certificate::Certificate,
    path::{Path, is_sha1},
};

/// Every rule that a path breaks; the CA's certificate first.
pub(super) fn path_problems(path: &Path<'_>, now: SystemTime) -> Vec<Problem> {
    let certificates = path.below_root.iter().copied().chain([path.root]);
    let mut problems = Vec::new();
    for (below, certificate) in certificates.enumerate() {
        problems.extend(problems_of(certificate, below, now));
    }
    problems
}

/// Every rule that a certificate breaks with that many CA certificates below it; none below it: it signs leaves.
pub(super) fn problems_of(certificate: &Certificate, below: usize, now: SystemTime) -> Vec<Problem> {
    let reasons = [
        authority(certificate, below),
        validity(certificate, now),
        extended_key_usage(certificate),
        name_constraints(certificate),
        unknown_critical(certificate),
    ];
    let problem = |(reason, remedy): Violation| {
        Problem::with_remedy(&certificate.file, format!("{} {reason}", certificate.label()), remedy)
    };
    reasons.into_iter().flatten().map(problem).collect()
}

/// What an operator should know about a path that is in order.
pub(super) fn path_warnings(path: &Path<'_>, now: SystemTime) -> Vec<String> {
    let mut warnings = Vec::new();
    for certificate in path.below_root.iter().copied().chain([path.root]) {
        let of = format!("{}: {}", certificate.file, certificate.label());
        let is_root = std::ptr::eq(certificate, path.root);
        if let Ok(left) = certificate.not_after.duration_since(now)
            && left < EXPIRES_SOON
        {
            warnings.push(format!(
                "{of} expires in {} days, at {}; renew it",
                left.as_secs() / 86_400,
                date(certificate.not_after)
            ));
        }
        if is_sha1(certificate) && is_root {
            warnings.push(format!("{of} is signed with SHA-1; nobody verifies a root's own signature, but renew it"));
        } else if is_sha1(certificate) {
            warnings.push(format!("{of} is signed with SHA-1, which Go and ztunnel refuse; have it issued again"));
        }
        if certificate.name_constraints.is_some() {
            warnings.push(format!("{of} has name constraints; they may forbid DNS names and IP addresses of leaves"));
        }
        if is_root && !certificate.is_self_issued() {
            warnings.push(format!("{of} is not self-signed; OpenSSL does not take it as a root by default"));
        }
    }
    warnings
}

/// Below this a warning is due: a renewal through the root's owner takes weeks.
const EXPIRES_SOON: std::time::Duration = std::time::Duration::from_secs(90 * 86_400);

/// What is wrong with a certificate, as a predicate, and the remedy.
type Violation = (String, &'static str);

/// RFC 5280, sections 4.2.1.3 and 4.2.1.9. Criticality does not matter: Istio's own samples are not critical.
fn authority(certificate: &Certificate, below: usize) -> Option<Violation> {
    let Some(constraints) = &certificate.basic_constraints else {
        // Roots older than version 3 have no extensions; Go, OpenSSL and webpki take them as trust anchors.
        let is_old_root = certificate.is_v1 && below > 0 && certificate.is_self_issued();
        return (!is_old_root)
            .then(|| ("is not a CA's (it has no basicConstraints)".to_owned(), "take a CA's certificate"));
    };
    if !constraints.ca {
        return Some(("is not a CA's (basicConstraints say CA:FALSE)".to_owned(), "take a CA's certificate"));
    }
    if certificate.may_sign == Some(false) {
        return Some((
            "may not sign certificates (keyUsage lacks keyCertSign)".to_owned(),
            "have it issued again with it",
        ));
    }
    // Self-issued certificates count too: Go and rustls-webpki make no exception for them.
    match constraints.path_len_constraint {
        Some(allowed) if usize::from(allowed) < below => Some((
            format!("allows {allowed} CA certificates below it (pathLenConstraint), but there are {below}"),
            "have it issued again, or the CA's certificate by a CA further up",
        )),
        _ => None,
    }
}

/// RFC 5280, section 4.1.2.5: both ends belong to the validity.
fn validity(certificate: &Certificate, now: SystemTime) -> Option<Violation> {
    if now < certificate.not_before {
        return Some((
            format!("is not yet valid: it begins at {}", date(certificate.not_before)),
            "wait, or set the clock right",
        ));
    }
    (now > certificate.not_after).then(|| (format!("expired at {}", date(certificate.not_after)), "renew it"))
}

/// Istio's leaves are used for serverAuth and clientAuth. rustls-webpki does not know anyExtendedKeyUsage.
fn extended_key_usage(certificate: &Certificate) -> Option<Violation> {
    let usages = certificate.extended_key_usage.as_ref()?;
    let missing: Vec<_> = [("serverAuth", rfc5280::ID_KP_SERVER_AUTH), ("clientAuth", rfc5280::ID_KP_CLIENT_AUTH)]
        .into_iter()
        .filter(|(_, oid)| !usages.contains(oid))
        .map(|(name, _)| name)
        .collect();
    (!missing.is_empty()).then(|| {
        let reason = format!("forbids {} below it (extendedKeyUsage), which workloads need", missing.join(" and "));
        (reason, "have it issued again without")
    })
}

/// RFC 5280, section 4.2.1.10.
fn name_constraints(certificate: &Certificate) -> Option<Violation> {
    let (critical, constraints) = certificate.name_constraints.as_ref()?;
    let subtrees = || [&constraints.permitted_subtrees, &constraints.excluded_subtrees].into_iter().flatten().flatten();
    if subtrees().any(|subtree| matches!(subtree.base, GeneralName::UniformResourceIdentifier(_))) {
        return Some((
            "constrains URI names, and rustls-webpki (ztunnel) refuses every SPIFFE ID below such a constraint"
                .to_owned(),
            "have it issued again without",
        ));
    }
    let known_to_go = |base: &GeneralName| {
        matches!(base, GeneralName::DnsName(_) | GeneralName::IpAddress(_) | GeneralName::Rfc822Name(_))
    };
    (*critical && subtrees().any(|subtree| !known_to_go(&subtree.base)))
        .then(|| ("has critical name constraints of a kind that Go refuses".to_owned(), "have it issued again without"))
}

fn unknown_critical(certificate: &Certificate) -> Option<Violation> {
    let oids: Vec<_> = certificate.unknown_critical.iter().map(ToString::to_string).collect();
    (!oids.is_empty()).then(|| {
        let reason = format!("has critical extensions that Istio's clients do not know ({})", oids.join(", "));
        (reason, "have it issued again without")
    })
}

/// RFC 3339, in UTC.
fn date(time: SystemTime) -> String {
    DateTime::from_system_time(time).map_or_else(|_error| "an impossible time".to_owned(), |date| date.to_string())
}
