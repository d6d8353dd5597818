//! istiod's serving certificate: the Secret `istiod-tls` (tls.crt, tls.key, ca.crt), which istiod mounts when it is not
//! the CA (ISTIO: manifests/charts/istio-control/istio-discovery/templates/deployment.yaml).

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use kube::api::ObjectMeta;
use pki::{
    Profile,
    identity::{DnsName, Name, Namespace},
    profile::NAMES_MAX,
};
use serde::Deserialize;

use super::{Controller, DAY, Grants, Limits, Mistake, Mistakes, istio_system};
use crate::{
    auth::Caller,
    issue::CertificateAuthority,
    kubernetes::{
        Cluster,
        managed_secret::{self, DesiredSecret, Layout},
        permissions::{Permission, managed_secret_permissions},
    },
    policy::{ControllerGrant, ControllerRules},
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "istiod_certificate";
/// The controller as a caller, in policy and the audit log.
const CALLER: &str = "istiod-certificate";

/// `[kubernetes.cluster.istiod_certificate]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IstiodCertificate {
    /// The Secret: tls.crt, tls.key, ca.crt.
    pub secret: String,
    /// istiod's namespace.
    pub namespace: Namespace,
    /// istiod's revisions; `default` is the one without a name.
    pub revisions: Vec<String>,
    /// Additional DNS names.
    pub dns_names: Vec<DnsName>,
    /// Additional addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// The lifetime; renewed at half of it.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for IstiodCertificate {
    fn default() -> Self {
        Self {
            secret: "istiod-tls".to_owned(),
            namespace: istio_system(),
            revisions: vec!["default".to_owned()],
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            ttl: DAY,
        }
    }
}

impl IstiodCertificate {
    /// The names by which proxies, webhooks and other clusters call istiod (ISTIO: pilot/pkg/bootstrap/server.go,
    /// getDNSNames), each once.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        let namespace = &self.namespace;
        let services = self.revisions.iter().map(|revision| match revision.as_str() {
            "" | "default" => "istiod".to_owned(),
            revision => format!("istiod-{revision}"),
        });
        let services = services.chain(["istiod-remote".to_owned(), "istio-pilot".to_owned()]);
        let dns = services.filter_map(|service| format!("{service}.{namespace}.svc").parse().ok());
        let all = dns.chain(self.dns_names.iter().cloned()).map(Name::Dns);
        let mut names = Vec::new();
        for name in all.chain(self.ip_addresses.iter().copied().map(Name::Ip)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl Controller for IstiodCertificate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, _limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        mistakes.check_ttl("istiod_certificate.ttl", self.ttl);
        for revision in self.revisions.iter().filter(|revision| revision.parse::<Namespace>().is_err()) {
            mistakes.add(
                "istiod_certificate.revisions",
                format!("{revision:?} is not a valid revision; write it as for istioctl"),
            );
        }
        let count = self.names().len();
        if count > NAMES_MAX {
            mistakes.add("istiod_certificate", format!("has {count} names; a certificate carries at most {NAMES_MAX}"));
        }
        mistakes.check_object_name("istiod_certificate.secret", &self.secret);
        mistakes.0
    }

    fn permissions(&self) -> Vec<Permission> {
        managed_secret_permissions(&self.namespace, &self.secret)
    }

    fn grants(&self) -> Grants {
        let grant = ControllerGrant::Server { names: self.names() };
        Grants::Controller(ControllerRules { controller: CALLER, grant, ttl: self.ttl })
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let desired = DesiredSecret {
            namespace: self.namespace.to_string(),
            name: self.secret.clone(),
            layout: Layout::Server,
            caller: Caller::controller(cluster.name().clone(), CALLER, None),
            names: self.names(),
            profile: Profile::Leaf,
            metadata: ObjectMeta::default(),
        };
        Box::pin(async move { managed_secret::run(NAME, &cluster, ca, desired).await })
    }
}
