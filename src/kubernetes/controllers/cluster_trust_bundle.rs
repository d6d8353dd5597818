//! The roots as ClusterTrustBundles (certificates.k8s.io/v1, or v1beta1 before Kubernetes 1.37), one per signer name,
//! which pods mount by a projected volume.
//!
//! The bundle of the signer `istio.io/istiod-ca` is the one that istiod writes while it is the CA (ISTIO:
//! pilot/pkg/config/kube/clustertrustbundle/controller.go), and that sidecars mount under ENABLE_CLUSTER_TRUST_BUNDLE_API. The content
//! is exactly the bundle's root-cert.pem. Bundles of signers that are no longer configured are not deleted.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
    runtime::{reflector::Store, watcher},
};
use process::clock;
use serde::Deserialize;
use serde_json::json;

use super::{
    Controller, Grants, Limits, Mistake, Mistakes,
    corrections::{ANOTHER_WRITER, CONFLICT_PAUSE, Corrections},
    request_signer::check_signer_name,
};
use crate::{
    issue::CertificateAuthority,
    kubernetes::{
        Cluster,
        cluster::chain,
        permissions::{self, Permission},
        reconcile::{self, Reconcile, ReconcileResult, is_conflict},
        served::{GROUP, Interface},
    },
};

/// The name in logs, metrics and readiness.
pub const NAME: &str = "cluster_trust_bundle";
const INTERFACE: Interface = Interface { kind: "ClusterTrustBundle", plural: "clustertrustbundles" };

/// `[kubernetes.cluster.cluster_trust_bundle]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterTrustBundle {
    /// The signer names under which the roots are published.
    pub signers: Vec<String>,
    /// The last part of the objects' names. Istio: `root-cert`.
    #[serde(default = "default_name")]
    pub name: String,
}

fn default_name() -> String {
    "root-cert".to_owned()
}

impl ClusterTrustBundle {
    /// The name of a signer's object, which Kubernetes requires to begin with the signer's name (Kubernetes:
    /// pkg/apis/core/validation, ValidateClusterTrustBundleName).
    fn object_name(&self, signer: &str) -> String {
        format!("{}:{}", signer.replace('/', ":"), self.name)
    }
}

impl Controller for ClusterTrustBundle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, _limits: &Limits<'_>) -> Vec<Mistake> {
        let mut mistakes = Mistakes::new();
        let place = "cluster_trust_bundle";
        mistakes.check_object_name("cluster_trust_bundle.name", &self.name);
        if self.signers.is_empty() {
            mistakes.add(place, "has no signer name; list some, or leave the section out");
        }
        for (index, signer) in self.signers.iter().enumerate() {
            check_signer_name(place, signer, &mut mistakes);
            if self.signers.iter().take(index).any(|other| other == signer) {
                mistakes.add(place, format!("lists {signer} twice"));
            }
        }
        mistakes.0
    }

    fn interface(&self) -> Option<Interface> {
        Some(INTERFACE)
    }

    fn permissions(&self) -> Vec<Permission> {
        let mut needed = permissions::verbs(GROUP, INTERFACE.plural, &["create"], None, None);
        for signer in &self.signers {
            let name = self.object_name(signer);
            needed.extend(permissions::verbs(GROUP, INTERFACE.plural, &["list", "watch", "patch"], None, Some(&name)));
            needed.extend(permissions::verbs(GROUP, "signers", &["attest"], None, Some(signer)));
        }
        needed
    }

    fn grants(&self) -> Grants {
        Grants::Nothing
    }

    fn run(&self, cluster: Arc<Cluster>, ca: Arc<CertificateAuthority>) -> BoxFuture<'static, ()> {
        let settings = self.clone();
        Box::pin(async move {
            let run = |resource: ApiResource| {
                let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
                let (mut bundles, mut signals) = (Vec::new(), Vec::new());
                for signer in &settings.signers {
                    let name = settings.object_name(signer);
                    let named = watcher::Config::default().fields(&format!("metadata.name={name}"));
                    let watched = format!("the ClusterTrustBundle {name}");
                    let (store, watch) = reconcile::cached_as(api.clone(), named, watched, resource.clone());
                    bundles.push(Bundle { name, signer: signer.clone(), store });
                    signals.push(watch);
                }
                let issuers = ca.issuers();
                let work = Bundles { ca: Arc::clone(&ca), api, resource, bundles, corrections: Corrections::default() };
                let cluster = Arc::clone(&cluster);
                async move { reconcile::run(NAME, &cluster, signals, issuers, work).await }
            };
            INTERFACE.run(NAME, &cluster, run).await;
        })
    }
}

/// One object.
struct Bundle {
    name: String,
    signer: String,
    store: Store<DynamicObject>,
}

struct Bundles {
    ca: Arc<CertificateAuthority>,
    api: Api<DynamicObject>,
    resource: ApiResource,
    bundles: Vec<Bundle>,
    corrections: Corrections,
}

impl Reconcile for Bundles {
    async fn reconcile(&mut self) -> ReconcileResult {
        let issuer = self.ca.issuer();
        let roots = issuer.roots_pem();
        let mut result = ReconcileResult::default();
        for bundle in &self.bundles {
            let name = &bundle.name;
            let found = bundle.store.state().into_iter().next();
            let written = match found {
                None => self.create(bundle, roots).await,
                Some(found) if found.data["spec"]["trustBundle"] == roots => continue,
                Some(found) if self.corrections.may_correct(name) => self.correct(&found, name, roots).await,
                Some(_) => {
                    result.failed(name, ANOTHER_WRITER);
                    result.due_at(clock::now() + CONFLICT_PAUSE);
                    continue;
                }
            };
            match written {
                Ok(()) => result.changed += 1,
                // It was changed or created meanwhile; the watch reports it.
                Err(error) if is_conflict(&error) => result.due_at(clock::now() + Duration::from_secs(5)),
                Err(error) => result.failed(name, chain(&error)),
            }
        }
        result
    }
}

impl Bundles {
    async fn create(&self, bundle: &Bundle, roots: &str) -> Result<(), kube::Error> {
        let spec = json!({"spec": {"signerName": bundle.signer, "trustBundle": roots}});
        let object = DynamicObject::new(&bundle.name, &self.resource).data(spec);
        self.api.create(&PostParams::default(), &object).await.map(drop)
    }

    async fn correct(&self, found: &DynamicObject, name: &str, roots: &str) -> Result<(), kube::Error> {
        let patch = json!({
            "metadata": {"resourceVersion": found.metadata.resource_version},
            "spec": {"trustBundle": roots},
        });
        self.api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        tracing::info!(bundle = name, "corrected the ClusterTrustBundle");
        Ok(())
    }
}
