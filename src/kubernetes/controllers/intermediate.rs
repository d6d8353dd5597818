//! An intermediate CA for istiod, with a key that lives for days: the Secret `cacerts` in Istio's layout.
//!
//! The key is generated in memory and certified with path length 0. Anyone who can read the Secret can issue for the
//! whole trust domain until the certificate expires. It is renewed at half its lifetime, in time for istiod's own
//! reload. A `cacerts` Secret without our label is never overwritten, because it may hold the only copy of a key.
//!
//! There is no name constraint in the certificate: rustls-webpki rejects every URI name below one, which breaks ztunnel.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use kube::api::ObjectMeta;
use pki::{Issuer, Profile, identity::Namespace, profile::ORGANIZATION_MAX};
use serde::Deserialize;

use super::{Controller, DAY, Grants, IssuerProblem, Limits, Mistake, Mistakes, istio_system};
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
pub const NAME: &str = "intermediate";
/// The controller as a caller, in policy and the audit log.
const CALLER: &str = "intermediate";

/// `[kubernetes.cluster.intermediate]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Intermediate {
    /// istiod's namespace.
    pub namespace: Namespace,
    /// The Secret: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem.
    pub secret: String,
    /// The organization in the subject.
    pub organization: String,
    /// The lifetime; renewed at half of it.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for Intermediate {
    /// The organization is not the trust domain, which names the root that Istio and `generate --self-signed` make: a
    /// CA cannot have its issuer's name.
    fn default() -> Self {
        Self {
            namespace: istio_system(),
            secret: "cacerts".to_owned(),
            organization: "istiod".to_owned(),
            ttl: 7 * DAY,
        }
    }
}

impl Controller for Intermediate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        if !limits.allow_intermediate {
            mistakes.add(
                "intermediate",
                "needs [token_host] allow_intermediate = true, without which the token host signs no CA certificate; \
                 set it in the token host's own configuration if it is not started by the daemon",
            );
        }
        mistakes.check_object_name("intermediate.secret", &self.secret);
        let length = self.organization.chars().count();
        if length == 0 || length > ORGANIZATION_MAX || self.organization.chars().any(char::is_control) {
            mistakes.add("intermediate.organization", "must have 1 to 64 characters, none of them a control character");
        }
        if self.ttl < DAY {
            mistakes.add("intermediate.ttl", "is shorter than a day; istiod needs time to reload it");
        }
        mistakes.0
    }

    fn issuer_problem(&self, issuer: &Issuer) -> Option<IssuerProblem> {
        (!issuer.has_room_for_intermediate()).then_some(IssuerProblem::PATH_LENGTH)
    }

    fn permissions(&self) -> Vec<Permission> {
        managed_secret_permissions(&self.namespace, &self.secret)
    }

    fn grants(&self) -> Grants {
        let grant = ControllerGrant::Intermediate { organization: self.organization.clone() };
        Grants::Controller(ControllerRules { controller: CALLER, grant, ttl: self.ttl })
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let desired = DesiredSecret {
            namespace: self.namespace.to_string(),
            name: self.secret.clone(),
            layout: Layout::Ca,
            caller: Caller::controller(cluster.name().clone(), CALLER, None),
            names: Vec::new(),
            profile: Profile::Intermediate { organization: self.organization.clone() },
            metadata: ObjectMeta::default(),
        };
        Box::pin(async move { managed_secret::run(NAME, &cluster, ca, desired).await })
    }
}
