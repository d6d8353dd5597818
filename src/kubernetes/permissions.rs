//! The permissions that the daemon needs in a cluster, for the configured features only.
//!
//! The chart's rules (deploy/helm) are the same; a test compares the two. `check` and the daemon report what is missing.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

use super::{
    revocations,
    settings::{self, Settings},
};
use pki::identity::Namespace;

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource, or `resource/subresource`.
    pub resource: &'static str,
    /// The verb.
    pub verb: &'static str,
    /// The namespace; `None` for the whole cluster.
    pub namespace: Option<String>,
    /// The object's name; `None` for all.
    pub name: Option<String>,
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in all namespaces"),
        }
    }
}

/// One permission for each verb.
pub(super) fn verbs(
    group: &'static str,
    resource: &'static str,
    verbs: &[&'static str],
    namespace: Option<&str>,
    name: Option<&str>,
) -> Vec<Permission> {
    let (namespace, name) = (namespace.map(str::to_owned), name.map(str::to_owned));
    let permission =
        |verb: &&'static str| Permission { group, resource, verb, namespace: namespace.clone(), name: name.clone() };
    verbs.iter().map(permission).collect()
}

/// The permissions to manage one Secret.
pub(super) fn managed_secret_permissions(namespace: &Namespace, secret: &str) -> Vec<Permission> {
    let namespace = Some(namespace.as_str());
    [
        verbs("", "secrets", &["create"], namespace, None),
        verbs("", "secrets", &["get", "list", "watch", "patch"], namespace, Some(secret)),
    ]
    .concat()
}

/// The permissions needed in one of the configured clusters; `own` is the daemon's namespace.
#[must_use]
pub fn needed(settings: &Settings, cluster: &settings::Cluster, own: Option<&Namespace>) -> Vec<Permission> {
    let mut needed = Vec::new();
    if cluster.token_review.is_some() {
        needed.extend(verbs("authentication.k8s.io", "tokenreviews", &["create"], None, None));
    }
    if cluster.node_impersonation.is_some() {
        needed.extend(verbs("", "pods", &["get", "list", "watch"], None, None));
    }
    needed.extend(cluster.controllers().iter().flat_map(|controller| controller.permissions()));
    if settings.clusters.first() == Some(cluster) {
        let own = own.map(Namespace::as_str);
        if settings.needs_leader() {
            needed.extend(verbs("coordination.k8s.io", "leases", &["create"], own, None));
            needed.extend(verbs("coordination.k8s.io", "leases", &["get", "update"], own, Some(&settings.lease)));
        }
        if let Some(checkpoints) = &settings.checkpoints {
            needed.extend(checkpoints.permissions(own));
        }
        if let Some(configmap) = &settings.revocations {
            needed.extend(revocations::permissions(own, configmap));
        }
    }
    // Several features need the same ones.
    needed.sort();
    needed.dedup();
    needed
}

/// The permissions that the API server does not grant.
///
/// # Errors
/// If the API server does not respond. By Kubernetes' default roles, every authenticated user may send this request.
pub async fn missing(client: Client, needed: Vec<Permission>) -> Result<Vec<Permission>, kube::Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    let mut missing = Vec::new();
    for permission in needed {
        let (resource, subresource) = match permission.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (permission.resource, None),
        };
        let attributes = ResourceAttributes {
            group: Some(permission.group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            verb: Some(permission.verb.to_owned()),
            namespace: permission.namespace.clone(),
            name: permission.name.clone(),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let review = reviews.create(&PostParams::default(), &review).await?;
        if !review.status.is_some_and(|status| status.allowed) {
            missing.push(permission);
        }
    }
    Ok(missing)
}
