//! The roots in every namespace: ConfigMap `istio-ca-root-cert`, key `root-cert.pem`, which every proxy mounts.
//!
//! The content is exactly the bundle's root-cert.pem, because agents treat any difference as a change of roots.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use pki::identity;
use serde::Deserialize;

use super::{
    Controller, Grants, Limits, Mistake, Mistakes,
    corrections::ANOTHER_WRITER,
    in_every_namespace::{Content, Target, Wanted},
};
use crate::{
    issue::CertificateAuthority,
    kubernetes::{Cluster, permissions::Permission},
};

pub use super::in_every_namespace::LABEL;

/// The name in logs, metrics and readiness.
pub const NAME: &str = "root_configmap";
/// The key in the ConfigMap.
pub const KEY: &str = "root-cert.pem";

/// `[kubernetes.cluster.root_configmap]` (ISTIO: pilot/pkg/bootstrap/namespacecontroller.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RootConfigMap {
    /// The ConfigMap's name.
    pub name: String,
    /// A label selector for namespaces; empty means all.
    pub namespace_selector: String,
    /// Namespaces without the ConfigMap; Istio skips the same ones.
    pub ignored_namespaces: Vec<identity::Namespace>,
}

impl Default for RootConfigMap {
    fn default() -> Self {
        let ignored = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
        Self {
            name: "istio-ca-root-cert".to_owned(),
            namespace_selector: String::new(),
            ignored_namespaces: ignored.iter().filter_map(|name| name.parse().ok()).collect(),
        }
    }
}

impl RootConfigMap {
    fn target(&self) -> Target {
        let Self { name, namespace_selector, ignored_namespaces } = self.clone();
        Target { name, key: KEY, namespace_selector, ignored_namespaces, another_writer: ANOTHER_WRITER }
    }
}

impl Controller for RootConfigMap {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, _limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        self.target().check(NAME, &mut mistakes);
        mistakes.0
    }

    fn permissions(&self) -> Vec<Permission> {
        self.target().permissions()
    }

    fn grants(&self) -> Grants {
        Grants::Nothing
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let target = self.target();
        Box::pin(async move { target.run(NAME, &cluster, ca.issuers(), Vec::new(), Roots(ca)).await })
    }
}

struct Roots(Arc<CertificateAuthority>);

impl Content for Roots {
    fn wanted(&mut self, _present: &[Arc<ConfigMap>]) -> Wanted {
        Wanted { text: Some(self.0.issuer().roots_pem().to_owned()), ..Wanted::default() }
    }
}
