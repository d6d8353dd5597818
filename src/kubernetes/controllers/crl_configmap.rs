//! The CRLs in every namespace: ConfigMap `istio-ca-crl`, key `ca-crl.pem`, which Istio's proxies mount.
//!
//! Istio's agents pass the file on to Envoy if it exists when the roots are requested (ISTIO: security/pkg/nodeagent/sds/
//! sdsservice.go), and Envoy and ztunnel follow its changes. An empty file is the same as none for them, and is what
//! istiod writes if it has no CRLs. It is therefore the first step both of enabling and of disabling: a ConfigMap that is
//! deleted instead leaves Envoy with the last CRLs, until they expire and every certificate is rejected.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use pki::{Issuer, identity};
use process::clock;
use serde::Deserialize;

use super::{
    Controller, Grants, Limits, Mistake, Mistakes,
    in_every_namespace::{Content, Target, Wanted},
};
use crate::{
    issue::CertificateAuthority,
    kubernetes::{Cluster, permissions::Permission, reconcile},
    publication::{Earlier, Publication},
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "crl_configmap";
/// The key in the ConfigMap (ISTIO: pkg/config/constants, CACRLNamespaceConfigMapDataName).
pub const KEY: &str = "ca-crl.pem";
/// How often it is decided again whether the published CRLs expire.
const RECHECK: Duration = Duration::from_secs(600);
const ANOTHER_WRITER: &str = "another writer keeps changing it; stop that one (istiod writes it while it is a CA: set \
                              PILOT_ENABLE_CA_CRL=false there, pilot.env.PILOT_ENABLE_CA_CRL in its chart)";

/// `[kubernetes.cluster.crl_configmap]` (ISTIO: pilot/pkg/serviceregistry/kube/controller/namespacecontroller.go). The
/// ConfigMaps have the CRLs if `[revocation] enabled` is set. Otherwise they are empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrlConfigMap {
    /// The ConfigMap's name. Istio: PILOT_CRL_CONFIGMAP, `istio-ca-crl`.
    pub name: String,
    /// What to do if CRLs cannot be renewed before nextUpdate, when proxies begin to reject every certificate.
    pub at_expiry: AtExpiry,
    /// A label selector for namespaces; empty means all.
    pub namespace_selector: String,
    /// Namespaces without the ConfigMap; Istio skips the same ones. ztunnel may run in kube-system.
    pub ignored_namespaces: Vec<identity::Namespace>,
}

/// What happens an hour before a published CRL expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtExpiry {
    /// The ConfigMaps are emptied: revoked certificates that have not expired are accepted again.
    #[default]
    Withdraw,
    /// The ConfigMaps stay: every certificate is rejected until there are current CRLs.
    Keep,
}

impl Default for CrlConfigMap {
    fn default() -> Self {
        let ignored = ["kube-public", "kube-node-lease", "local-path-storage"];
        Self {
            name: "istio-ca-crl".to_owned(),
            at_expiry: AtExpiry::default(),
            namespace_selector: String::new(),
            ignored_namespaces: ignored.iter().filter_map(|name| name.parse().ok()).collect(),
        }
    }
}

impl CrlConfigMap {
    fn target(&self) -> Target {
        let Self { name, namespace_selector, ignored_namespaces, .. } = self.clone();
        Target { name, key: KEY, namespace_selector, ignored_namespaces, another_writer: ANOTHER_WRITER }
    }
}

impl Controller for CrlConfigMap {
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
        let (target, at_expiry) = (self.target(), self.at_expiry);
        Box::pin(async move {
            let changes = vec![reconcile::changes(ca.publications(), "the CRLs")];
            target.run(NAME, &cluster, ca.issuers(), changes, Crls { ca: Arc::clone(&ca), at_expiry }).await;
        })
    }
}

struct Crls {
    ca: Arc<CertificateAuthority>,
    at_expiry: AtExpiry,
}

impl Content for Crls {
    fn wanted(&mut self, present: &[Arc<ConfigMap>]) -> Wanted {
        let texts: Vec<&str> = present
            .iter()
            .filter_map(|configmap| configmap.data.as_ref()?.get(KEY).map(String::as_str))
            .filter(|text| !text.is_empty())
            .collect();
        decide(self.at_expiry, &self.ca.publication(), &self.ca.issuer(), &texts, clock::now())
    }
}

/// What every ConfigMap is to hold, given the texts of those that are not empty.
fn decide(
    at_expiry: AtExpiry,
    publication: &Publication,
    issuer: &Issuer,
    present: &[&str],
    now: SystemTime,
) -> Wanted {
    let empty = Wanted { text: Some(String::new()), ..Wanted::default() };
    if !publication.enabled {
        return empty;
    }
    let due = Some(now + RECHECK);
    let earlier: Vec<Earlier> = present.iter().filter_map(|text| Earlier::read(text)).collect();
    let failure = |what: &str| {
        let trouble = publication.trouble().unwrap_or_default();
        Some(format!("{what}: {trouble}"))
    };
    match (publication.is_complete(), earlier.is_empty()) {
        (true, true) if !publication.premature.is_empty() => {
            Wanted { failure: failure("the CRLs are not published"), due, ..empty }
        }
        (true, _) if earlier.iter().any(|earlier| earlier.is_newer(issuer, publication)) => Wanted {
            text: None,
            failure: Some(
                "a CRL with a higher number is published already; this replica's state of revocation is old: see the line \
                 `revocation store` at /readyz"
                    .to_owned(),
            ),
            due,
        },
        (true, _) => Wanted { text: Some(publication.text.clone()), failure: None, due },
        (false, is_first) => {
            let withdraw = at_expiry == AtExpiry::Withdraw && earlier.iter().any(|earlier| earlier.expires_soon(now));
            if withdraw {
                let what = "ALARM: the published CRLs expire and were withdrawn, so that revoked certificates are accepted";
                return Wanted { failure: failure(what), due, ..empty };
            }
            // Only until a token has signed the CA's; the line `CRL signing` at /readyz says so if that takes longer.
            let is_pending = publication.blocked.is_empty();
            let what = if is_first { "the CRLs are not published" } else { "the published CRLs are not replaced" };
            let failure = failure(what).filter(|_| !is_pending);
            if is_first { Wanted { failure, due, ..empty } } else { Wanted { text: None, failure, due } }
        }
    }
}

#[cfg(test)]
mod tests {
    use pki::{
        bundle::Problem,
        testing::{DAY, P256, SoftCa, crl, now},
    };

    use super::*;

    #[test]
    fn only_complete_and_current_crls_are_published_and_none_is_replaced_by_less() {
        let ca = SoftCa::new(&P256);
        let judged = |enabled: bool, pem: Option<&str>| Publication {
            enabled,
            ..Publication::new(&ca.issuer, pem, &[], now(), 6 * DAY)
        };
        let (good, soon) = (crl(&ca, 5, now() + 30 * DAY), crl(&ca, 5, now() + 3 * DAY));
        let (older, newer) = (crl(&ca, 4, now() + 30 * DAY), crl(&ca, 6, now() + 30 * DAY));
        let ending = crl(&ca, 4, now() + DAY / 48);
        let text = Publication::new(&ca.issuer, Some(&good), &[], now(), 6 * DAY).text;
        let soon_text = judged(true, Some(&soon)).text;
        let (on, off, empty) = (true, false, Some(""));
        // Whether it is enabled, the CA's CRL, what is published, what is to be published, and the failure.
        let cases: [(bool, Option<&str>, &[&str], Option<&str>, &str); 11] = [
            (off, Some(&good), &[], empty, ""),
            (off, Some(&good), &[&good], empty, ""),
            (on, Some(&good), &[], Some(&text), ""),
            (on, Some(&good), &[&older], Some(&text), ""),
            (on, Some(&good), &[&newer], None, "a CRL with a higher number is published already"),
            (on, Some(&good), &["rubbish"], Some(&text), ""),
            (on, Some(&soon), &[], empty, "the CRLs are not published: the CA's own CRL line 1"),
            (on, Some(&soon), &[&older], Some(&soon_text), ""),
            // The token has not signed yet.
            (on, None, &[], empty, ""),
            (on, None, &[&older], None, ""),
            (on, None, &[&ending], empty, "ALARM: the published CRLs expire and were withdrawn"),
        ];
        for (at, (enabled, own, present, text, failure)) in cases.into_iter().enumerate() {
            let wanted = decide(AtExpiry::Withdraw, &judged(enabled, own), &ca.issuer, present, now());
            assert_eq!(wanted.text.as_deref(), text, "case {at}: {wanted:?}");
            let found = wanted.failure.unwrap_or_default();
            assert!(found.starts_with(failure) && found.is_empty() == failure.is_empty(), "case {at}: {found}");
        }
        let kept = decide(AtExpiry::Keep, &judged(on, None), &ca.issuer, &[&ending], now());
        assert_eq!(kept.text, None);
        let blocked = Publication { blocked: vec![Problem::new("root.crl", "is missing")], ..judged(on, Some(&good)) };
        let cases: [(&[&str], Option<&str>, &str); 2] = [
            (&[], empty, "the CRLs are not published: root.crl: is missing"),
            (&[&older], None, "the published CRLs are not replaced: root.crl: is missing"),
        ];
        for (present, text, failure) in cases {
            let wanted = decide(AtExpiry::Withdraw, &blocked, &ca.issuer, present, now());
            assert_eq!((wanted.text.as_deref(), wanted.failure.as_deref()), (text, Some(failure)));
        }
    }
}
