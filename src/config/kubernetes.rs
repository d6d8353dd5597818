//! What `[kubernetes]` may not say, by itself and beside the other sections.

use std::time::Duration;

use super::{Ca, HostLimits, document::Document};
use crate::{
    auth,
    kubernetes::{
        Settings,
        settings::{Cluster, CsrSigner, Intermediate, IstiodCertificate, RootConfigMap, TokenReview, WorkloadSecrets},
    },
    policy::Scope,
};
use pki::{
    identity::{Namespace, ServiceAccount, TrustDomain},
    profile::{NAMES_MAX, ORGANIZATION_MAX},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Notes every mistake of the section.
pub(super) fn check(
    settings: &Settings,
    ca: &Ca,
    auth: &auth::Settings,
    hosts: &HostLimits,
    document: &mut Document<'_>,
) {
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
        let foreign = |domain: &TrustDomain| !ca.trust_domains.contains(domain);
        if let Some(domain) = cluster.trust_domain.as_ref().filter(|domain| foreign(domain)) {
            document.refuse(&format!("{place} trust_domain"), not_ours(domain));
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
        for (index, signer) in cluster.signers.iter().enumerate() {
            check_signer(signer, ca, &place, document);
            if cluster.signers.iter().take(index).any(|other| other.name == signer.name) {
                document.refuse(&format!("{place} signer {}", signer.name), "stands there twice; join its requesters");
            }
        }
        if let Some(intermediate) = &cluster.intermediate {
            check_intermediate(intermediate, hosts, &place, document);
        }
        if let Some(istiod) = &cluster.istiod_certificate {
            check_istiod(istiod, &place, document);
        }
        if let Some(configmap) = &cluster.root_configmap {
            check_root_configmap(configmap, &place, document);
        }
        if let Some(secrets) = &cluster.workload_secrets {
            check_workload_secrets(secrets, &place, document);
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

fn not_ours(domain: &TrustDomain) -> String {
    format!("{domain} is not in [ca] trust_domains; add it there, since this CA issues in no other")
}

fn check_istiod(istiod: &IstiodCertificate, place: &str, document: &mut Document<'_>) {
    let place = format!("{place} istiod_certificate");
    if istiod.ttl < HOUR {
        document.refuse(&format!("{place}.ttl"), "is shorter than an hour; it is renewed at half of it");
    }
    for revision in istiod.revisions.iter().filter(|revision| revision.parse::<Namespace>().is_err()) {
        document
            .refuse(&format!("{place}.revisions"), format!("{revision:?} is no revision; write it as istioctl does"));
    }
    let count = istiod.names().len();
    if count > NAMES_MAX {
        document.refuse(&place, format!("has {count} names; a certificate carries {NAMES_MAX} at most"));
    }
    check_object(&istiod.secret, &format!("{place}.secret"), document);
}

fn check_root_configmap(configmap: &RootConfigMap, place: &str, document: &mut Document<'_>) {
    let place = format!("{place} root_configmap");
    check_object(&configmap.name, &format!("{place}.name"), document);
    if !configmap.namespace_selector.is_ascii() || configmap.namespace_selector.chars().any(char::is_control) {
        document.refuse(&format!("{place}.namespace_selector"), "is no label selector; write it as for kubectl -l");
    }
}

fn check_workload_secrets(secrets: &WorkloadSecrets, place: &str, document: &mut Document<'_>) {
    let place = format!("{place} workload_secrets");
    if secrets.namespaces.is_empty() {
        document.refuse(&format!("{place}.namespaces"), "is empty; name the namespaces, or leave the section out");
    }
    if secrets.ttl < HOUR {
        document.refuse(&format!("{place}.ttl"), "is shorter than an hour; it is renewed at half of it");
    }
}

/// The name of a Secret or a ConfigMap: an RFC 1123 subdomain, as a service account's is.
fn check_object(name: &str, place: &str, document: &mut Document<'_>) {
    if name.parse::<ServiceAccount>().is_err() {
        document.refuse(place, format!("{name:?} is no object's name"));
    }
}

fn check_signer(signer: &CsrSigner, ca: &Ca, place: &str, document: &mut Document<'_>) {
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
    let place = format!("{place} signer {}", signer.name);
    for requester in &signer.requesters {
        if requester.username.is_empty() {
            document.refuse(&place, "has a requester without username");
        }
        match &requester.may {
            Scope::AnyWorkload { trust_domain } if !ca.trust_domains.contains(trust_domain) => {
                document.refuse(&format!("{place} requester {}", requester.username), not_ours(trust_domain));
            }
            Scope::DnsNames(names) if names.is_empty() => {
                document.refuse(&format!("{place} requester {}", requester.username), "may ask for no name; list some");
            }
            Scope::AnyWorkload { .. } | Scope::DnsNames(_) | Scope::Itself => {}
        }
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
    check_object(&intermediate.secret, &format!("{place} intermediate.secret"), document);
    if intermediate.organization.is_empty() || intermediate.organization.chars().count() > ORGANIZATION_MAX {
        document.refuse(&format!("{place} intermediate.organization"), "must have 1 to 64 characters");
    }
    if intermediate.ttl < 24 * HOUR {
        document.refuse(&format!("{place} intermediate.ttl"), "is shorter than a day; istiod needs time to reload it");
    }
}
