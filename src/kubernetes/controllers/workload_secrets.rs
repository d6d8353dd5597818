//! A Secret `istio.NAME` with key, certificate and roots for each service account of the listed namespaces, as Istio did
//! until 1.5 (ISTIO: security/pkg/pki/ca/controller/secret.go at 1.0): type `istio.io/key-and-cert`, with cert-chain.pem,
//! key.pem and root-cert.pem.
//!
//! A Secret is rewritten when it was deleted or edited, at half its lifetime, and when the CA or the roots change; it
//! is deleted with its service account. Secrets without our label are never modified.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    StreamExt,
    future::{self, BoxFuture},
    stream,
};
use k8s_openapi::{
    api::core::v1::{Secret, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Preconditions},
    core::PartialObjectMeta,
    runtime::{reflector::Store, watcher},
};
use pki::{
    Issuer, Profile,
    identity::{self, Name, SpiffeId},
};
use process::clock;
use serde::Deserialize;

use super::{Controller, DAY, Grants, Limits, Mistake, Mistakes};
use crate::{
    auth::Caller,
    issue::CertificateAuthority,
    kubernetes::{
        Cluster,
        cluster::chain,
        managed_secret::{self, DesiredSecret, Layout, Reconciled, Unwritten},
        permissions::{self, Permission},
        reconcile::{self, Reconcile, ReconcileResult, is_conflict},
        secret,
    },
    policy::{ControllerGrant, ControllerRules},
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "workload_secrets";
/// The annotation that names the service account.
pub const ACCOUNT: &str = "istio.io/service-account.name";
/// The controller as a caller, in policy and the audit log.
const CALLER: &str = "workload-secret";
/// The prefix of the Secrets' names.
const PREFIX: &str = "istio.";
const CONCURRENT_WRITES: usize = 8;

/// `[kubernetes.cluster.workload_secrets]`. Stores private keys in Secrets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSecrets {
    /// The namespaces; a wildcard is not supported.
    pub namespaces: Vec<identity::Namespace>,
    /// The lifetime; renewed at half of it.
    #[serde(default = "default_ttl", with = "humantime_serde")]
    pub ttl: Duration,
}

fn default_ttl() -> Duration {
    DAY
}

impl Controller for WorkloadSecrets {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, _limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        if self.namespaces.is_empty() {
            mistakes.add("workload_secrets.namespaces", "is empty; list the namespaces, or leave the section out");
        }
        mistakes.check_ttl("workload_secrets.ttl", self.ttl);
        mistakes.0
    }

    fn permissions(&self) -> Vec<Permission> {
        let in_namespace = |namespace: &identity::Namespace| {
            let namespace = Some(namespace.as_str());
            let secret_verbs = ["get", "list", "watch", "create", "patch", "delete"];
            [
                permissions::verbs("", "serviceaccounts", &["list", "watch"], namespace, None),
                permissions::verbs("", "secrets", &secret_verbs, namespace, None),
            ]
            .concat()
        };
        self.namespaces.iter().flat_map(in_namespace).collect()
    }

    fn grants(&self) -> Grants {
        let grant = ControllerGrant::Workload { namespaces: self.namespaces.clone() };
        Grants::Controller(ControllerRules { controller: CALLER, grant, ttl: self.ttl })
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let namespaces = self.namespaces.clone().into_iter();
        let all = namespaces.map(move |namespace| run_namespace(Arc::clone(&cluster), Arc::clone(&ca), namespace));
        Box::pin(async move { drop(future::join_all(all).await) })
    }
}

/// Manages the Secrets of one namespace until dropped.
async fn run_namespace(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, namespace: identity::Namespace) {
    let accounts: Api<Meta<ServiceAccount>> = Api::namespaced(cluster.client(), namespace.as_str());
    let secrets: Api<Meta<Secret>> = Api::namespaced(cluster.client(), namespace.as_str());
    let ours = watcher::Config::default().labels(&format!("{}={}", secret::MANAGED_BY.0, secret::MANAGED_BY.1));
    let (accounts, account_signals) =
        reconcile::cached(accounts, watcher::Config::default(), format!("ServiceAccounts in {namespace}"));
    let (secrets, secret_signals) = reconcile::cached(secrets, ours, format!("Secrets in {namespace}"));
    let issuers = ca.issuers();
    let work = Workloads {
        cluster: Arc::clone(&cluster),
        ca,
        namespace,
        accounts,
        secrets,
        current: HashMap::new(),
        unwritten: HashMap::new(),
    };
    reconcile::run(NAME, &cluster, vec![account_signals, secret_signals], issuers, work).await;
}

type Meta<K> = PartialObjectMeta<K>;

struct Workloads {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    namespace: identity::Namespace,
    accounts: Store<Meta<ServiceAccount>>,
    secrets: Store<Meta<Secret>>,
    /// Secrets that were read and are in the desired state, by name.
    current: HashMap<String, Current>,
    /// Certificates that could not be written yet, by the Secret's name.
    unwritten: HashMap<String, Unwritten>,
}

/// State in which a Secret need not be read again.
struct Current {
    resource_version: String,
    issuer: Arc<Issuer>,
    due: SystemTime,
}

impl Reconcile for Workloads {
    async fn reconcile(&mut self) -> ReconcileResult {
        let now = clock::now();
        let issuer = self.ca.issuer();
        let mut result = ReconcileResult::default();
        let actual: HashMap<String, Arc<Meta<Secret>>> = self
            .secrets
            .state()
            .into_iter()
            .filter_map(|secret| Some((secret.metadata.name.clone()?, secret)))
            .collect();
        let version = |name: &str| actual.get(name)?.metadata.resource_version.clone();
        let mut outdated = Vec::new();
        let mut names = HashSet::new();
        for account in self.accounts.state() {
            // A service account whose name does not fit a SPIFFE ID has no identity in the mesh.
            let Some(desired) = self.desired(&account.metadata) else { continue };
            names.insert(desired.name.clone());
            match (self.current.get(&desired.name), version(&desired.name)) {
                (Some(current), Some(version))
                    if current.resource_version == version
                        && Arc::ptr_eq(&current.issuer, &issuer)
                        && current.due > now =>
                {
                    result.due_at(current.due);
                }
                (_, version) => {
                    let unwritten = self.unwritten.remove(&desired.name);
                    outdated.push((desired, version, unwritten));
                }
            }
        }
        self.current.retain(|name, _| names.contains(name));
        self.unwritten.retain(|name, _| names.contains(name));
        let (client, ca) = (self.cluster.client(), &self.ca);
        let mut reconciled = stream::iter(outdated)
            .map(|(desired, version, mut unwritten)| {
                let client = &client;
                async move {
                    let outcome = managed_secret::reconcile_secret(client, ca, &desired, &mut unwritten, now).await;
                    (outcome, desired.name, version, unwritten)
                }
            })
            .buffer_unordered(CONCURRENT_WRITES);
        while let Some((outcome, name, version, unwritten)) = reconciled.next().await {
            if let Some(unwritten) = unwritten {
                self.unwritten.insert(name.clone(), unwritten);
            }
            match outcome {
                Ok(Reconciled { written, due }) => {
                    result.changed += usize::from(written);
                    result.due_at(due);
                    // A written Secret has another version, which the watch reports.
                    if let Some(resource_version) = version.filter(|_| !written) {
                        self.current.insert(name, Current { resource_version, issuer: Arc::clone(&issuer), due });
                    }
                }
                Err(error) if error.is_conflict() => result.due_at(now),
                Err(error) => result.failed(format!("{}/{name}", self.namespace), error.to_string()),
            }
        }
        for secret in actual.values().filter(|secret| is_orphan(&secret.metadata, &names)) {
            let name = secret.metadata.name.clone().unwrap_or_default();
            match remove(&client, self.namespace.as_str(), &secret.metadata).await {
                Ok(()) => {
                    result.changed += 1;
                    tracing::info!(namespace = %self.namespace, name, "removed the Secret of a deleted service account");
                }
                Err(error) if is_conflict(&error) => result.due_at(now),
                Err(error) => result.failed(format!("{}/{name}", self.namespace), chain(&error)),
            }
        }
        result
    }
}

impl Workloads {
    /// The Secret of a service account; `None` if the account is being deleted or has no identity.
    fn desired(&self, account: &ObjectMeta) -> Option<DesiredSecret> {
        let name: identity::ServiceAccount = account.name.as_deref()?.parse().ok()?;
        if account.deletion_timestamp.is_some() {
            return None;
        }
        let id = SpiffeId::new(self.cluster.trust_domain().clone(), self.namespace.clone(), name.clone());
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ServiceAccount".to_owned(),
            name: name.to_string(),
            uid: account.uid.clone()?,
            ..OwnerReference::default()
        };
        Some(DesiredSecret {
            namespace: self.namespace.to_string(),
            name: format!("{PREFIX}{name}"),
            layout: Layout::Workload,
            caller: Caller::controller(self.cluster.name().clone(), CALLER, Some(id.clone())),
            names: vec![Name::Spiffe(id)],
            profile: Profile::Leaf,
            metadata: ObjectMeta {
                annotations: Some([(ACCOUNT.to_owned(), name.to_string())].into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
        })
    }
}

/// Whether this controller created a Secret whose service account is gone.
fn is_orphan(secret: &ObjectMeta, names: &HashSet<String>) -> bool {
    let name = secret.name.as_deref().unwrap_or_default();
    let account = secret.annotations.as_ref().and_then(|annotations| annotations.get(ACCOUNT));
    secret::is_ours(secret)
        && secret.deletion_timestamp.is_none()
        && account.is_some_and(|account| name.strip_prefix(PREFIX) == Some(account))
        && !names.contains(name)
}

async fn remove(client: &Client, namespace: &str, metadata: &ObjectMeta) -> Result<(), kube::Error> {
    let secrets: Api<Meta<Secret>> = Api::namespaced(client.clone(), namespace);
    let preconditions =
        Preconditions { resource_version: metadata.resource_version.clone(), uid: metadata.uid.clone() };
    let guarded = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match secrets.delete(metadata.name.as_deref().unwrap_or_default(), &guarded).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_our_own_secrets_without_a_service_account() {
        let of = |name: &str, account: Option<&str>, ours: bool| ObjectMeta {
            name: Some(name.to_owned()),
            annotations: account.map(|account| [(ACCOUNT.to_owned(), account.to_owned())].into()),
            labels: ours.then(|| [(secret::MANAGED_BY.0.to_owned(), secret::MANAGED_BY.1.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let names = HashSet::from(["istio.there".to_owned()]);
        for (secret, orphan) in [
            (of("istio.gone", Some("gone"), true), true),
            (of("istio.there", Some("there"), true), false),
            (of("istio.gone", Some("gone"), false), false),
            (of("istio.gone", Some("other"), true), false),
            (of("istio.gone", None, true), false),
            (of("istiod-tls", None, true), false),
        ] {
            assert_eq!(is_orphan(&secret, &names), orphan, "{secret:?}");
        }
    }
}
