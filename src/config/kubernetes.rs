//! Checks of `[kubernetes]`, also against other sections. Each controller checks its own section.

use super::{Ca, HostLimits, document::Document, sections::mistake_in_audiences};
use crate::{
    auth,
    kubernetes::{
        Settings,
        controllers::{Limits, foreign_trust_domain},
        settings::{Cluster, TokenReview},
    },
};

/// Reports all mistakes in the section.
pub(super) fn check(
    settings: &Settings,
    ca: &Ca,
    auth: &auth::Settings,
    hosts: &HostLimits,
    document: &mut Document<'_>,
) {
    if settings.clusters.is_empty() {
        document.refuse("[kubernetes]", "has no cluster; add [[kubernetes.cluster]], or leave the section out");
    }
    for (index, cluster) in settings.clusters.iter().enumerate() {
        let place = format!("[[kubernetes.cluster]] {}", index + 1);
        let before = settings.clusters.get(..index).unwrap_or_default();
        if before.iter().any(|other| other.name == cluster.name) {
            document.refuse(&format!("{place} name"), "is used by another cluster; cluster names must be unique");
        }
        if cluster.kubeconfig.is_none() && before.iter().any(|other| other.kubeconfig.is_none()) {
            document.refuse(
                &format!("{place} kubeconfig"),
                "is missing; only one cluster can be the one that the daemon runs in",
            );
        }
        if let Some(domain) = cluster.trust_domain.as_ref().filter(|domain| !ca.trust_domains.contains(domain)) {
            document.refuse(&format!("{place} trust_domain"), foreign_trust_domain(domain));
        }
        if let Some(review) = &cluster.token_review {
            check_token_review(review, before, auth, &place, document);
        }
        if cluster.node_impersonation.as_ref().is_some_and(|node| node.trusted_accounts.is_empty()) {
            document.refuse(
                &format!("{place} node_impersonation"),
                "has no trusted account; list one, or leave the section out",
            );
        }
        let limits = Limits {
            trust_domains: &ca.trust_domains,
            max_ttl: ca.max_ttl,
            allow_intermediate: hosts.allow_intermediate,
        };
        for mistake in cluster.controllers().iter().flat_map(|controller| controller.check(&limits)) {
            document.refuse(&format!("{place} {}", mistake.place), mistake.problem);
        }
    }
}

fn check_token_review(
    review: &TokenReview,
    before: &[Cluster],
    auth: &auth::Settings,
    place: &str,
    document: &mut Document<'_>,
) {
    let place = format!("{place} token_review");
    if review.issuers.is_empty() {
        document.refuse(&format!("{place}.issuers"), "is empty; set it to the API server's --service-account-issuer");
    }
    if let Some(mistake) = mistake_in_audiences(&review.audiences) {
        document.refuse(&format!("{place}.audiences"), mistake);
    }
    for issuer in &review.issuers {
        // With one issuer in two clusters, the cluster sent by the client would decide which API server receives its
        // JWT.
        let elsewhere = before.iter().filter_map(|other| other.token_review.as_ref());
        if elsewhere.into_iter().any(|other| other.issuers.contains(issuer)) {
            document.refuse(
                &format!("{place}.issuers"),
                format!(
                    "{issuer} is also used by another cluster; give each API server its own issuer \
                     (--service-account-issuer), or validate the JWTs by [[auth.jwt]]"
                ),
            );
        }
        if auth.jwt.iter().any(|jwt| jwt.issuer == *issuer) {
            document.refuse(
                &format!("{place}.issuers"),
                format!("{issuer} is also in [[auth.jwt]]; configure it in one of the two"),
            );
        }
    }
}
