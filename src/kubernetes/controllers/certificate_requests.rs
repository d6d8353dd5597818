//! An external issuer of cert-manager: its settings, and the Ready condition of its issuers, HsmIssuers and
//! HsmClusterIssuers. `certificate_signer` answers the CertificateRequests.
//!
//! An issuer selects a profile of the configuration and holds no secret. The profile's rules decide by a
//! CertificateRequest's namespace and requester.

use std::{sync::Arc, time::Duration};

use futures_util::future::{self, BoxFuture};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{reflector::Store, watcher},
};
use pki::{
    Issuer,
    identity::{Namespace, SpiffeId, TrustDomain},
    profile::ORGANIZATION_MAX,
};
use process::clock;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    Controller, Grants, IssuerProblem, Limits, Mistake, Mistakes,
    certificate_signer::{self, Signer},
    request_loop::{self, RETRY_DELAY},
};
use crate::{
    issue::CertificateAuthority,
    kubernetes::{
        Cluster,
        cert_manager::{
            AnyIssuer, CERT_MANAGER, Condition, GROUP, HsmClusterIssuer, HsmIssuer, IssuerSpec, condition,
            set_condition,
        },
        cluster::chain,
        permissions::{self, Permission},
        reconcile::{self, Reconcile, ReconcileResult, is_conflict},
    },
    policy::{CertificateRules, CertificateScope, ProfileRules},
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "certificate_requests";
const HOUR: Duration = Duration::from_secs(3600);

/// `[kubernetes.cluster.cert_manager]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertManager {
    /// Only issuers with this `spec.class` are served. CAs in one cluster need different ones.
    #[serde(default)]
    pub class: String,
    /// What issuers can select.
    #[serde(default, rename = "profile")]
    pub profiles: Vec<Profile>,
}

/// `[[kubernetes.cluster.cert_manager.profile]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The name that issuers select by `spec.profile`.
    pub name: String,
    /// Who may obtain what; nobody by default.
    #[serde(default, rename = "rule")]
    pub rules: Vec<CertificateRules>,
}

impl Controller for CertManager {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        if self.profiles.is_empty() {
            mistakes.add("cert_manager", "has no profile; add [[kubernetes.cluster.cert_manager.profile]]");
        }
        for (index, profile) in self.profiles.iter().enumerate() {
            let place = format!("cert_manager.profile {}", profile.name);
            if profile.name.parse::<Namespace>().is_err() {
                let problem = format!("{:?} is not a valid name; use lower-case letters, digits and '-'", profile.name);
                mistakes.add("cert_manager.profile", problem);
            }
            if self.profiles.iter().take(index).any(|other| other.name == profile.name) {
                mistakes.add(&place, "is configured twice; merge the rules");
            }
            for (index, rule) in profile.rules.iter().enumerate() {
                check_rule(rule, &format!("{place} rule {}", index + 1), limits, &mut mistakes);
            }
        }
        mistakes.0
    }

    fn issuer_problem(&self, issuer: &Issuer) -> Option<IssuerProblem> {
        let needs_room = self.profiles.iter().flat_map(|profile| &profile.rules).any(|rule| rule.may.is_ca());
        (needs_room && !issuer.has_room_for_intermediate()).then_some(IssuerProblem::PATH_LENGTH)
    }

    fn permissions(&self) -> Vec<Permission> {
        [
            permissions::verbs(CERT_MANAGER, "certificaterequests", &["list", "watch"], None, None),
            permissions::verbs(CERT_MANAGER, "certificaterequests/status", &["patch"], None, None),
            permissions::verbs(GROUP, "hsmissuers", &["list", "watch"], None, None),
            permissions::verbs(GROUP, "hsmissuers/status", &["patch"], None, None),
            permissions::verbs(GROUP, "hsmclusterissuers", &["list", "watch"], None, None),
            permissions::verbs(GROUP, "hsmclusterissuers/status", &["patch"], None, None),
        ]
        .concat()
    }

    fn grants(&self) -> Grants {
        let rules = |profile: &Profile| ProfileRules { name: profile.name.clone(), rules: profile.rules.clone() };
        Grants::Profiles(self.profiles.iter().map(rules).collect())
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let served = Served {
            class: self.class.as_str().into(),
            profiles: self.profiles.iter().map(|profile| profile.name.clone()).collect(),
        };
        Box::pin(async move {
            let client = cluster.client();
            let (all, of_cluster) = (Api::all(client.clone()), Api::all(client.clone()));
            let (issuers, issuer_signals) = reconcile::cached(all, watcher::Config::default(), "HsmIssuers");
            let (cluster_issuers, cluster_issuer_signals) =
                reconcile::cached(of_cluster, watcher::Config::default(), "HsmClusterIssuers");
            let (changed, signals) = (ca.issuers(), vec![issuer_signals, cluster_issuer_signals]);
            let work = Issuers {
                client,
                served: served.clone(),
                issuers: issuers.clone(),
                cluster_issuers: cluster_issuers.clone(),
            };
            let signer = Signer::new(Arc::clone(&cluster), ca, served, issuers, cluster_issuers);
            let conditions = reconcile::run(NAME, &cluster, signals, changed, work);
            future::join(conditions, certificate_signer::run(signer)).await;
        })
    }
}

fn check_rule(rule: &CertificateRules, place: &str, limits: &Limits<'_>, mistakes: &mut Mistakes) {
    if rule.namespaces.is_empty() {
        mistakes.add(place, "has no namespace; list some, or [\"*\"] for all");
    }
    for namespace in rule.namespaces.iter().filter(|name| *name != "*" && name.parse::<Namespace>().is_err()) {
        mistakes.add(place, format!("{namespace:?} is not a valid namespace"));
    }
    let anyone = rule.username.is_none() && rule.group.is_none();
    if anyone && rule.namespaces.iter().any(|namespace| namespace == "*") {
        mistakes.add(place, "is for everyone in every namespace; give a username or a group, or list the namespaces");
    }
    if rule.username.as_deref() == Some("") || rule.group.as_deref() == Some("") {
        mistakes.add(place, "has an empty username or group; leave it out if it should not matter");
    }
    if rule.max_ttl.is_some_and(|ttl| ttl < HOUR) {
        mistakes.add(place, "has a max_ttl shorter than an hour, the least that cert-manager requests");
    }
    match &rule.may {
        CertificateScope::AnyWorkload { trust_domain } if !limits.trust_domains.contains(trust_domain) => {
            mistakes.add(place, super::foreign_trust_domain(trust_domain));
        }
        CertificateScope::DnsNames(names) if names.is_empty() => {
            mistakes.add(place, "has an empty list of DNS names; list some");
        }
        CertificateScope::Ca { organization, dns_names: _, ignored_uris } => {
            if !limits.allow_intermediate {
                mistakes.add(
                    place,
                    "needs [token_host] allow_intermediate = true, without which the token host signs no CA \
                     certificate; set it in the token host's own configuration if it is not started by the daemon",
                );
            }
            if organization.is_empty() || organization.chars().count() > ORGANIZATION_MAX {
                mistakes.add(place, "has an organization that does not have 1 to 64 characters");
            }
            if rule.max_ttl.is_none() {
                mistakes.add(place, "is for CA certificates and needs a max_ttl, their maximum lifetime");
            }
            for uri in ignored_uris.iter().filter(|uri| !is_spiffe_uri(uri)) {
                mistakes.add(place, format!("{uri:?} is not a SPIFFE ID; write it as in the request, spiffe://DOMAIN"));
            }
        }
        CertificateScope::AnyWorkload { .. }
        | CertificateScope::DnsNames(_)
        | CertificateScope::Itself
        | CertificateScope::NamespaceWorkloads => {}
    }
}

/// The issuers that are served.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) class: Arc<str>,
    pub(super) profiles: Arc<[String]>,
}

impl Served {
    /// Why an issuer of this class is not ready; `None` if it is.
    pub(super) fn problem(&self, spec: &IssuerSpec) -> Option<String> {
        if self.profiles.contains(&spec.profile) {
            return None;
        }
        let profile: String = spec.profile.chars().take(64).collect();
        Some(format!("the CA's configuration has no profile {profile:?}; it has {}", self.profiles.join(", ")))
    }
}

/// The issuers of both kinds, which get a Ready condition.
struct Issuers {
    client: Client,
    served: Served,
    issuers: Store<HsmIssuer>,
    cluster_issuers: Store<HsmClusterIssuer>,
}

impl Reconcile for Issuers {
    async fn reconcile(&mut self) -> ReconcileResult {
        let mut result = ReconcileResult::default();
        for issuer in self.issuers.state() {
            let namespace = issuer.metadata.namespace.as_deref().unwrap_or_default();
            let api = Api::namespaced(self.client.clone(), namespace);
            self.one(&api, &*issuer, &mut result).await;
        }
        for issuer in self.cluster_issuers.state() {
            self.one(&Api::all(self.client.clone()), &*issuer, &mut result).await;
        }
        result
    }
}

impl Issuers {
    async fn one<K>(&self, api: &Api<K>, issuer: &K, result: &mut ReconcileResult)
    where
        K: AnyIssuer + Clone + std::fmt::Debug + DeserializeOwned,
    {
        if *self.served.class != *issuer.spec().class {
            return;
        }
        let metadata = issuer.metadata();
        let name = metadata.name.as_deref().unwrap_or_default();
        let ready = self.ready(issuer);
        let known = condition(&issuer.status().conditions, "Ready");
        let same = |known: &Condition| Condition { last_transition_time: None, ..known.clone() } == ready;
        if metadata.deletion_timestamp.is_some() || known.is_some_and(same) {
            return;
        }
        let mut conditions = issuer.status().conditions.clone();
        set_condition(&mut conditions, Condition { last_transition_time: now(), ..ready });
        let patch = json!({
            "metadata": {"resourceVersion": metadata.resource_version},
            "status": {"conditions": conditions},
        });
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => result.changed = result.changed.saturating_add(1),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            // The watch reports the change; this covers a missed event.
            Err(error) if is_conflict(&error) => result.due_at(clock::now() + RETRY_DELAY),
            Err(error) => result.failed(format!("{} {}", K::KIND, request_loop::name_of(issuer)), chain(&error)),
        }
    }

    /// The condition that it should have, without the time.
    fn ready(&self, issuer: &impl AnyIssuer) -> Condition {
        let profile = &issuer.spec().profile;
        let (status, reason, message) = match self.served.problem(issuer.spec()) {
            None => ("True", "ProfileFound", format!("certificates are issued by the rules of the profile {profile}")),
            Some(problem) => ("False", "ProfileNotFound", problem),
        };
        Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            last_transition_time: None,
            reason: reason.to_owned(),
            message,
            observed_generation: issuer.metadata().generation,
        }
    }
}

/// The time for a status.
pub(super) fn now() -> Option<String> {
    let now = Timestamp::try_from(clock::now()).ok().map(Time)?;
    serde_json::to_value(now).ok()?.as_str().map(str::to_owned)
}

/// Whether a text can be the URI of a trust domain or of a workload, such as `spiffe://example.org`.
fn is_spiffe_uri(uri: &str) -> bool {
    let id = uri.strip_prefix("spiffe://");
    uri.parse::<SpiffeId>().is_ok() || id.is_some_and(|domain| domain.parse::<TrustDomain>().is_ok())
}
