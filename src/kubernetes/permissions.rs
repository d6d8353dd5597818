//! What the daemon must be allowed to do in a cluster, for what is configured there and for nothing else.
//!
//! The chart's rules (deploy/helm) say the same; a test holds the two together. Asked by `check`, and by the daemon when
//! a cluster's API server first answers; nothing is ever done or left undone because of the answer.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

use super::settings::{self, Settings};
use pki::identity::Namespace;

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource, `resource/subresource` where it has one.
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

/// Adds one permission for each verb.
struct Needed(Vec<Permission>);

impl Needed {
    fn add(
        &mut self,
        (group, resource): (&'static str, &'static str),
        verbs: &[&'static str],
        namespace: Option<&str>,
        name: Option<&str>,
    ) {
        let (namespace, name) = (namespace.map(str::to_owned), name.map(str::to_owned));
        let one = |verb: &&'static str| Permission {
            group,
            resource,
            verb,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        self.0.extend(verbs.iter().map(one));
    }
}

const CONFIGMAPS: (&str, &str) = ("", "configmaps");
const CSRS: (&str, &str) = ("certificates.k8s.io", "certificatesigningrequests");
const CSR_STATUS: (&str, &str) = ("certificates.k8s.io", "certificatesigningrequests/status");
const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
const SECRETS: (&str, &str) = ("", "secrets");
const SIGNERS: (&str, &str) = ("certificates.k8s.io", "signers");

/// What the daemon needs in one of the configured clusters; `own` is the daemon's namespace.
#[must_use]
pub fn needed(settings: &Settings, cluster: &settings::Cluster, own: Option<&Namespace>) -> Vec<Permission> {
    let mut needed = Needed(Vec::new());
    if cluster.token_review.is_some() {
        needed.add(("authentication.k8s.io", "tokenreviews"), &["create"], None, None);
    }
    if cluster.node_impersonation.is_some() {
        needed.add(("", "pods"), &["get", "list", "watch"], None, None);
    }
    if let Some(configmap) = &cluster.root_configmap {
        needed.add(("", "namespaces"), &["list", "watch"], None, None);
        needed.add(CONFIGMAPS, &["create"], None, None);
        needed.add(CONFIGMAPS, &["list", "watch", "patch"], None, Some(&configmap.name));
    }
    if !cluster.signers.is_empty() {
        needed.add(CSRS, &["list", "watch"], None, None);
        needed.add(CSR_STATUS, &["update"], None, None);
        for signer in &cluster.signers {
            needed.add(SIGNERS, &["sign"], None, Some(&signer.name));
        }
    }
    let istiod = cluster.istiod_certificate.as_ref().map(|one| (one.namespace(), &one.secret));
    let intermediate = cluster.intermediate.as_ref().map(|one| (one.namespace(), &one.secret));
    for (namespace, secret) in [istiod, intermediate].into_iter().flatten() {
        let namespace = Some(namespace.as_str());
        needed.add(SECRETS, &["create"], namespace, None);
        needed.add(SECRETS, &["get", "list", "watch", "patch"], namespace, Some(secret));
    }
    for namespace in cluster.workload_secrets.iter().flat_map(|secrets| &secrets.namespaces) {
        let namespace = Some(namespace.as_str());
        needed.add(("", "serviceaccounts"), &["list", "watch"], namespace, None);
        needed.add(SECRETS, &["get", "list", "watch", "create", "patch", "delete"], namespace, None);
    }
    if settings.clusters.first() == Some(cluster) {
        let own = own.map(Namespace::as_str);
        if settings.needs_leader() {
            needed.add(LEASES, &["create"], own, None);
            needed.add(LEASES, &["get", "update"], own, Some(&settings.lease));
        }
        if let Some(checkpoints) = &settings.checkpoints {
            needed.add(CONFIGMAPS, &["create"], own, None);
            needed.add(CONFIGMAPS, &["patch"], own, Some(&checkpoints.configmap));
        }
    }
    needed.0
}

/// Which of the permissions an API server does not grant.
///
/// # Errors
/// When it does not answer. Every authenticated user may ask, by Kubernetes' default roles.
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
        let question = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = reviews.create(&PostParams::default(), &question).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(permission);
        }
    }
    Ok(missing)
}
