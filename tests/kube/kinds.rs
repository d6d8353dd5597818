//! The five controllers in tests: their configuration, what makes each perform all its operations, and when all objects
//! are in the desired state.

use std::collections::BTreeMap;

use istio_hsm_ca::kubernetes::{
    controllers::{csr_signer, intermediate, istiod_certificate, root_configmap, workload_secrets},
    secret::MANAGED_BY,
};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
        core::v1::{ConfigMap, Namespace, Secret},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    csrs::{USAGES, pem},
    harness::{Cluster, named},
    rig::certificate,
};

/// A controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Roots,
    Istiod,
    Intermediate,
    Signer,
    Workloads,
}

pub const ALL: [Kind; 5] = [Kind::Roots, Kind::Istiod, Kind::Intermediate, Kind::Signer, Kind::Workloads];

impl Kind {
    /// Its name in logs, metrics and readiness.
    pub fn name(self) -> &'static str {
        match self {
            Self::Roots => root_configmap::NAME,
            Self::Istiod => istiod_certificate::NAME,
            Self::Intermediate => intermediate::NAME,
            Self::Signer => csr_signer::NAME,
            Self::Workloads => workload_secrets::NAME,
        }
    }

    /// Its section in a cluster's configuration.
    pub fn toml(self, cluster: &Cluster) -> String {
        let namespace = &cluster.namespace;
        match self {
            Self::Roots => format!("[kubernetes.cluster.root_configmap]\nnamespace_selector = 'mesh={namespace}'\n"),
            Self::Istiod => format!("[kubernetes.cluster.istiod_certificate]\nnamespace = '{namespace}'\n"),
            Self::Intermediate => format!("[kubernetes.cluster.intermediate]\nnamespace = '{namespace}'\n"),
            Self::Signer => format!(
                "[[kubernetes.cluster.signer]]\nname = '{namespace}.example.com/istio'\n\
                 [[kubernetes.cluster.signer.requester]]\nusername = 'admin'\nmay = {{ dns_names = ['a.{namespace}.svc'] }}\n"
            ),
            Self::Workloads => format!("[kubernetes.cluster.workload_secrets]\nnamespaces = ['{namespace}']\n"),
        }
    }

    /// Prepares all kinds of work: objects to be created, corrected and removed.
    pub async fn prepare(self, cluster: &Cluster) {
        match self {
            Self::Roots => {
                let other = format!("{}-b", cluster.namespace);
                cluster.make_namespace(&other).await;
                let wrong = ConfigMap {
                    metadata: named("istio-ca-root-cert"),
                    data: Some([("root-cert.pem".to_owned(), "wrong".to_owned())].into()),
                    ..ConfigMap::default()
                };
                cluster.api::<ConfigMap>().create(&PostParams::default(), &wrong).await.unwrap();
                let label = Patch::Merge(json!({"metadata": {"labels": {"mesh": cluster.namespace}}}));
                let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
                for name in [&cluster.namespace, &other] {
                    namespaces.patch(name, &PatchParams::default(), &label).await.unwrap();
                }
            }
            Self::Istiod | Self::Intermediate => {}
            Self::Signer => self.ask(cluster, "first").await,
            Self::Workloads => {
                cluster.account("web").await;
                cluster.account("old").await;
                for account in ["old", "gone"] {
                    broken(cluster, &format!("istio.{account}"), "istio.io/key-and-cert", account).await;
                }
            }
        }
    }

    /// For controllers with a single Secret: the Secret exists with wrong content, so that it is corrected rather than
    /// created.
    pub async fn prepare_to_mend(self, cluster: &Cluster) {
        match self {
            Self::Istiod => {
                let secret = json!({"metadata": {"name": "istiod-tls", "labels": {MANAGED_BY.0: MANAGED_BY.1}},
                    "type": "kubernetes.io/tls", "data": {"tls.crt": "eA==", "tls.key": "eA=="}});
                let secret: Secret = serde_json::from_value(secret).unwrap();
                cluster.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
            }
            Self::Intermediate => broken(cluster, "cacerts", "Opaque", "x").await,
            Self::Roots | Self::Signer | Self::Workloads => {}
        }
    }

    /// Creates an approved CertificateSigningRequest.
    pub async fn ask(self, cluster: &Cluster, name: &str) {
        let namespace = &cluster.namespace;
        let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
        let name = format!("{namespace}-{name}");
        let request = CertificateSigningRequest {
            metadata: named(&name),
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem(&[&format!("a.{namespace}.svc")]).into_bytes()),
                signer_name: format!("{namespace}.example.com/istio"),
                usages: Some(USAGES.iter().map(|usage| (*usage).to_owned()).collect()),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        api.create(&PostParams::default(), &request).await.unwrap();
        let approved = Patch::Merge(json!({"status": {"conditions": [
            {"type": "Approved", "status": "True", "reason": "Test", "message": "by the test"}
        ]}}));
        api.patch_subresource("approval", &name, &PatchParams::default(), &approved).await.unwrap();
    }

    /// The certificates' serial numbers by object once all objects are in the desired state; `None` before.
    pub async fn serials(self, cluster: &Cluster) -> Option<BTreeMap<String, String>> {
        let secrets: Api<Secret> = cluster.api();
        let mut serials = BTreeMap::new();
        match self {
            Self::Roots => {
                for namespace in [cluster.namespace.clone(), format!("{}-b", cluster.namespace)] {
                    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
                    let found = api.get_opt("istio-ca-root-cert").await.unwrap()?;
                    let roots = found.data?.remove("root-cert.pem")?;
                    roots.starts_with("-----BEGIN CERTIFICATE").then_some(())?;
                    serials.insert(namespace, certificate(roots.as_bytes()).0);
                }
            }
            Self::Istiod => drop(serials.insert("istiod-tls".into(), serial(&secrets, "istiod-tls", "tls.crt").await?)),
            Self::Intermediate => {
                drop(serials.insert("cacerts".into(), serial(&secrets, "cacerts", "ca-cert.pem").await?))
            }
            Self::Signer => {
                let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
                let own = format!("{}-", cluster.namespace);
                for request in api.list(&Default::default()).await.unwrap() {
                    let name = request.metadata.name.unwrap();
                    if name.starts_with(&own) {
                        let ByteString(pem) = request.status?.certificate?;
                        serials.insert(name, certificate(&pem).0);
                    }
                }
            }
            Self::Workloads => {
                for secret in ["istio.web", "istio.old"] {
                    serials.insert(secret.into(), serial(&secrets, secret, "cert-chain.pem").await?);
                }
                if secrets.get_opt("istio.gone").await.unwrap().is_some() {
                    return None;
                }
            }
        }
        Some(serials)
    }

    /// Number of certificates needed to reach the desired state.
    pub fn certificates(self) -> u64 {
        match self {
            Self::Roots => 0,
            Self::Istiod | Self::Intermediate | Self::Signer => 1,
            // The Secrets of the test's own accounts add to these.
            Self::Workloads => 2,
        }
    }
}

/// A Secret with our label but without usable content.
async fn broken(cluster: &Cluster, name: &str, kind: &str, account: &str) {
    let secret = json!({
        "metadata": {
            "name": name,
            "labels": {MANAGED_BY.0: MANAGED_BY.1},
            "annotations": {workload_secrets::ACCOUNT: account},
        },
        "type": kind,
        "data": {"ca-cert.pem": "eA==", "cert-chain.pem": "eA=="},
    });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    cluster.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
}

async fn serial(secrets: &Api<Secret>, name: &str, key: &str) -> Option<String> {
    let ByteString(pem) = secrets.get_opt(name).await.unwrap()?.data?.remove(key)?;
    pem.starts_with(b"-----BEGIN CERTIFICATE").then(|| certificate(&pem).0)
}
