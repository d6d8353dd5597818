//! What `[kubernetes]` may not say, by itself and beside the other sections.

use std::time::Duration;

use super::{HostLimits, document::Document};
use crate::{
    auth,
    kubernetes::{
        Settings,
        settings::{Cluster, CsrSigner, Intermediate, TokenReview},
    },
};

const HOUR: Duration = Duration::from_secs(3600);

/// Notes every mistake of the section.
pub(super) fn check(settings: &Settings, auth: &auth::Settings, hosts: &HostLimits, document: &mut Document<'_>) {
    if settings.clusters.is_empty() {
        document.refuse("[kubernetes]", "names no cluster; add [[kubernetes.cluster]], or leave the section out");
    }
    for (index, cluster) in settings.clusters.iter().enumerate() {
        let place = format!("[[kubernetes.cluster]] {}", index + 1);
        let before = settings.clusters.get(..index).unwrap_or_default();
        if before.iter().any(|other| other.name == cluster.name) {
            document.refuse(&format!("{place} name"), "is that of another cluster; give each its own");
        }
        if cluster.kubeconfig.is_none() && before.iter().any(|other| other.kubeconfig.is_none()) {
            document.refuse(&format!("{place} kubeconfig"), "is missing; only one cluster can be the daemon's own");
        }
        if let Some(review) = &cluster.token_review {
            check_token_review(review, before, auth, &place, document);
        }
        if cluster.node_impersonation.as_ref().is_some_and(|node| node.trusted_accounts.is_empty()) {
            document.refuse(
                &format!("{place} node_impersonation"),
                "trusts no account; name one, or leave the section out",
            );
        }
        for signer in &cluster.signers {
            check_signer(signer, &place, document);
        }
        if let Some(intermediate) = &cluster.intermediate {
            check_intermediate(intermediate, hosts, &place, document);
        }
        if cluster.istiod_certificate.as_ref().is_some_and(|istiod| istiod.ttl < HOUR) {
            document.refuse(
                &format!("{place} istiod_certificate.ttl"),
                "is shorter than an hour; it is renewed at half of it",
            );
        }
        if cluster.workload_secrets.as_ref().is_some_and(|secrets| secrets.ttl < HOUR) {
            document.refuse(
                &format!("{place} workload_secrets.ttl"),
                "is shorter than an hour; it is renewed at half of it",
            );
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
        document.refuse(&format!("{place}.issuers"), "is empty; name the API server's --service-account-issuer");
    }
    if review.audiences.is_empty() {
        document.refuse(&format!("{place}.audiences"), "is empty; write for example [\"istio-ca\"]");
    }
    for issuer in &review.issuers {
        // An issuer's name alone may stand for several clusters: then the cluster that the caller names decides, and
        // nothing else could keep a token from the wrong API server.
        let elsewhere = before.iter().filter_map(|other| other.token_review.as_ref());
        if elsewhere.into_iter().any(|other| other.issuers.contains(issuer)) {
            document.refuse(
                &format!("{place}.issuers"),
                format!(
                    "{issuer} is another cluster's too; give each API server an issuer of its own \
                     (--service-account-issuer), or check its tokens by [[auth.jwt]]"
                ),
            );
        }
        if auth.jwt.iter().any(|jwt| jwt.issuer == *issuer) {
            document.refuse(
                &format!("{place}.issuers"),
                format!("{issuer} stands in [[auth.jwt]] too; have its tokens checked in one way"),
            );
        }
    }
}

fn check_signer(signer: &CsrSigner, place: &str, document: &mut Document<'_>) {
    let well_formed =
        signer.name.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty());
    if !well_formed || signer.name.starts_with("kubernetes.io/") {
        document.refuse(
            &format!("{place} signer"),
            format!(
                "{:?} is no signer's name of ours; write domain/path, for example hsm.example.com/istio",
                signer.name
            ),
        );
    }
    if signer.requesters.iter().any(|requester| requester.username.is_empty()) {
        document.refuse(&format!("{place} signer {}", signer.name), "has a requester without username");
    }
}

fn check_intermediate(intermediate: &Intermediate, hosts: &HostLimits, place: &str, document: &mut Document<'_>) {
    if !hosts.allow_intermediate {
        document.refuse(
            &format!("{place} intermediate"),
            "needs [token_host] allow_intermediate = true, since the token host signs no CA else; a host that others \
             run has that in its own configuration",
        );
    }
    if intermediate.ttl < 24 * HOUR {
        document.refuse(&format!("{place} intermediate.ttl"), "is shorter than a day; istiod needs time to reload it");
    }
}
