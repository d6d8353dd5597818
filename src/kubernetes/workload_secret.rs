//! A Secret with key and certificate for each service account of the namespaces chosen, as Istio did it until 1.5
//! (ISTIO: security/pkg/pki/ca/controller/secret.go at 1.0). Puts private keys into Secrets; off by default.
//!
//! `istio.NAME`, type `istio.io/key-and-cert`, with cert-chain.pem, key.pem and root-cert.pem. Made anew when it is
//! deleted or edited, when half its life is over, and when CA or roots change; removed with its service account.
//! Secrets without our label are not touched, whatever their names. Called by `daemon` while this replica leads.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use futures_util::{StreamExt, stream};
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

use super::{
    Cluster,
    cluster::chain,
    controller::{self, Look, Reconcile, is_conflict},
    kept::{self, Form, Kept, KeptError, Unwritten, Wanted},
    secret,
    settings::WorkloadSecrets,
};
use crate::{
    auth::{Caller, Controller},
    issue::CertificateAuthority,
};
use pki::{
    Profile,
    identity::{self, Name, SpiffeId},
};
use process::clock;

/// The controller's name in logs and metrics.
pub const NAME: &str = "workload_secrets";
/// The annotation that names the service account.
pub const ACCOUNT: &str = "istio.io/service-account.name";
/// What a Secret's name begins with.
const PREFIX: &str = "istio.";
/// How many Secrets are made at once.
const AT_ONCE: usize = 8;

type Meta<K> = PartialObjectMeta<K>;

/// Keeps the Secrets of one namespace until dropped.
async fn keep_namespace(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, namespace: identity::Namespace) {
    let accounts: Api<Meta<ServiceAccount>> = Api::namespaced(cluster.client(), namespace.as_str());
    let secrets: Api<Meta<Secret>> = Api::namespaced(cluster.client(), namespace.as_str());
    let ours = watcher::Config::default().labels(&format!("{}={}", secret::MANAGED_BY.0, secret::MANAGED_BY.1));
    let (accounts, seen) =
        controller::cached(accounts, watcher::Config::default(), format!("ServiceAccounts in {namespace}"));
    let (secrets, changed) = controller::cached(secrets, ours, format!("Secrets in {namespace}"));
    let replaced = ca.replacements();
    let work = Workloads {
        cluster: Arc::clone(&cluster),
        ca,
        namespace,
        accounts,
        secrets,
        judged: HashMap::new(),
        unwritten: HashMap::new(),
    };
    controller::run(NAME, &cluster, vec![seen, changed], replaced, work).await;
}

/// Keeps the Secrets until dropped.
pub async fn run(cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>, settings: WorkloadSecrets) {
    let namespaces = settings.namespaces.iter().cloned();
    let all = namespaces.map(|namespace| keep_namespace(Arc::clone(&cluster), Arc::clone(&ca), namespace));
    futures_util::future::join_all(all).await;
}

struct Workloads {
    cluster: Arc<Cluster>,
    ca: Arc<CertificateAuthority>,
    namespace: identity::Namespace,
    accounts: Store<Meta<ServiceAccount>>,
    secrets: Store<Meta<Secret>>,
    /// Secrets that were looked at: by name the resourceVersion, the issuer's number, and when they are due.
    judged: HashMap<String, (String, u64, SystemTime)>,
    /// What was issued and not yet written, by the Secret's name.
    unwritten: HashMap<String, Unwritten>,
}

impl Reconcile for Workloads {
    async fn look(&mut self) -> Look {
        let now = clock::now();
        let issuer = *self.ca.replacements().borrow();
        let mut look = Look::default();
        let there: HashMap<String, Arc<Meta<Secret>>> = self
            .secrets
            .state()
            .into_iter()
            .filter_map(|secret| Some((secret.metadata.name.clone()?, secret)))
            .collect();
        let version = |name: &str| there.get(name)?.metadata.resource_version.clone();
        let mut wanted = Vec::new();
        let mut names = HashSet::new();
        for account in self.accounts.state() {
            // What has no name that a certificate can carry has no identity in the mesh.
            let Some(one) = self.wanted(&account.metadata) else { continue };
            names.insert(one.name.clone());
            match (self.judged.get(&one.name), version(&one.name)) {
                (Some((seen, by, due)), Some(version)) if *seen == version && *by == issuer && *due > now => {
                    look.at(*due);
                }
                (_, version) => wanted.push((one, version)),
            }
        }
        self.judged.retain(|name, _| names.contains(name));
        self.unwritten.retain(|name, _| names.contains(name));
        let wanted: Vec<_> = wanted
            .into_iter()
            .map(|(one, version)| {
                let unwritten = self.unwritten.remove(&one.name);
                (one, version, unwritten)
            })
            .collect();
        let (client, ca) = (self.cluster.client(), &self.ca);
        let mut kept = stream::iter(wanted)
            .map(|(one, version, mut unwritten)| {
                let client = &client;
                async move {
                    let result = kept::keep(client, ca, &one, &mut unwritten, now).await;
                    (result, one.name, version, unwritten)
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some((result, name, version, unwritten)) = kept.next().await {
            if let Some(unwritten) = unwritten {
                self.unwritten.insert(name.clone(), unwritten);
            }
            match result {
                Ok(Kept { written, due }) => {
                    look.changed += usize::from(written);
                    look.at(due);
                    // What was written has another version, which the watch shows.
                    if let Some(version) = version.filter(|_| !written) {
                        self.judged.insert(name, (version, issuer, due));
                    }
                }
                Err(KeptError::Secret(error)) if error.is_conflict() => look.at(now),
                Err(error) => look.failed(format!("{}/{name}", self.namespace), error.to_string()),
            }
        }
        for secret in there.values().filter(|secret| is_orphan(&secret.metadata, &names)) {
            let name = secret.metadata.name.clone().unwrap_or_default();
            match remove(&client, self.namespace.as_str(), &secret.metadata).await {
                Ok(()) => {
                    look.changed += 1;
                    tracing::info!(namespace = %self.namespace, name, "removed a Secret whose service account is gone");
                }
                Err(error) if is_conflict(&error) => look.at(now),
                Err(error) => look.failed(format!("{}/{name}", self.namespace), chain(&error)),
            }
        }
        look
    }
}

impl Workloads {
    /// The Secret of a service account; none where it is about to go.
    fn wanted(&self, account: &ObjectMeta) -> Option<Wanted> {
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
        Some(Wanted {
            namespace: self.namespace.to_string(),
            name: format!("{PREFIX}{name}"),
            form: Form::Workload,
            caller: Caller::controller(self.cluster.name().clone(), Controller::WorkloadSecret(id.clone())),
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

/// Whether a Secret is one of this controller's, and its service account is gone.
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
    fn only_our_own_are_orphans() {
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
