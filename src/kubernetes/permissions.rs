//! What each feature may do in a cluster: the one list, from which `check` asks, and which the chart's roles match.
//!
//! Nothing is needed that is not configured. Called by `cli::check`, and by the tests that hold the chart against it.

use crate::identity::Namespace;

use super::settings::{Cluster, Settings};

/// Some verbs on one kind of object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// The section of the configuration that needs it.
    pub feature: &'static str,
    /// The API group; the core's is empty.
    pub group: &'static str,
    /// The plural, with a subresource behind a slash.
    pub resource: &'static str,
    /// The one object, where it is known. A creation cannot be restricted by name.
    pub name: Option<String>,
    /// The one namespace; none means the whole cluster.
    pub namespace: Option<String>,
    /// The verbs.
    pub verbs: &'static [&'static str],
}

const WATCH: &[&str] = &["list", "watch"];
const KEEP: &[&str] = &["get", "list", "watch", "patch"];

/// What is needed in one cluster, for what is configured there.
#[must_use]
pub fn of_cluster(cluster: &Cluster) -> Vec<Permission> {
    let mut needed = Needed(Vec::new());
    if cluster.token_review.is_some() {
        needed.everywhere("token_review", "authentication.k8s.io", "tokenreviews", None, &["create"]);
    }
    if cluster.node_impersonation.is_some() {
        needed.everywhere("node_impersonation", "", "pods", None, &["get", "list", "watch"]);
    }
    if let Some(roots) = &cluster.root_configmap {
        needed.everywhere("root_configmap", "", "namespaces", None, WATCH);
        needed.everywhere("root_configmap", "", "configmaps", None, &["create"]);
        needed.everywhere("root_configmap", "", "configmaps", Some(&roots.name), &["list", "watch", "patch"]);
    }
    if !cluster.signers.is_empty() {
        let group = "certificates.k8s.io";
        needed.everywhere("signer", group, "certificatesigningrequests", None, WATCH);
        needed.everywhere("signer", group, "certificatesigningrequests/status", None, &["update"]);
        for signer in &cluster.signers {
            needed.everywhere("signer", group, "signers", Some(&signer.name), &["sign"]);
        }
    }
    if let Some(istiod) = &cluster.istiod_certificate {
        needed.secret("istiod_certificate", &istiod.namespace(), &istiod.secret);
    }
    if let Some(intermediate) = &cluster.intermediate {
        needed.secret("intermediate", &intermediate.namespace(), &intermediate.secret);
    }
    for namespace in cluster.workload_secrets.iter().flat_map(|secrets| &secrets.namespaces) {
        let verbs = &["get", "list", "watch", "create", "patch", "delete"];
        needed.inside("workload_secrets", namespace, "", "serviceaccounts", None, WATCH);
        needed.inside("workload_secrets", namespace, "", "secrets", None, verbs);
    }
    needed.0
}

/// What is needed besides in the first cluster, in the daemon's own namespace.
#[must_use]
pub fn of_daemon(settings: &Settings, namespace: &Namespace) -> Vec<Permission> {
    let mut needed = Needed(Vec::new());
    if settings.needs_leader() {
        let group = "coordination.k8s.io";
        needed.inside("lease", namespace, group, "leases", None, &["create"]);
        needed.inside("lease", namespace, group, "leases", Some(&settings.lease), &["get", "update"]);
    }
    if let Some(checkpoints) = &settings.checkpoints {
        needed.inside("checkpoints", namespace, "", "configmaps", None, &["create"]);
        needed.inside("checkpoints", namespace, "", "configmaps", Some(&checkpoints.configmap), &["patch"]);
    }
    needed.0
}

struct Needed(Vec<Permission>);

impl Needed {
    fn everywhere(
        &mut self,
        feature: &'static str,
        group: &'static str,
        resource: &'static str,
        name: Option<&str>,
        verbs: &'static [&'static str],
    ) {
        let name = name.map(str::to_owned);
        self.0.push(Permission { feature, group, resource, name, namespace: None, verbs });
    }

    fn inside(
        &mut self,
        feature: &'static str,
        namespace: &Namespace,
        group: &'static str,
        resource: &'static str,
        name: Option<&str>,
        verbs: &'static [&'static str],
    ) {
        let (name, namespace) = (name.map(str::to_owned), Some(namespace.to_string()));
        self.0.push(Permission { feature, group, resource, name, namespace, verbs });
    }

    /// One Secret that is kept.
    fn secret(&mut self, feature: &'static str, namespace: &Namespace, name: &str) {
        self.inside(feature, namespace, "", "secrets", None, &["create"]);
        self.inside(feature, namespace, "", "secrets", Some(name), KEEP);
    }
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verbs.join(", "), self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = &self.name {
            write!(f, " {name:?}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in the whole cluster"),
        }
    }
}
