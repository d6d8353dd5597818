//! The controllers in tests: their configuration, what makes each perform all its operations, and when all objects
//! are in the desired state.

use std::collections::BTreeMap;

use istio_hsm_ca::kubernetes::{
    cert_manager::{CertificateRequest, HsmClusterIssuer, condition},
    controllers::{
        certificate_requests, cluster_trust_bundle, crl_configmap, csr_signer, intermediate, istiod_certificate,
        pod_certificates, root_configmap, workload_secrets,
    },
    secret::MANAGED_BY,
};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
        core::v1::{ConfigMap, Namespace, Secret, Service},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    cert_manager,
    csrs::{USAGES, pem},
    harness::{Cluster, named},
    kubelet::Kubelet,
    rig::certificate,
    trust_bundles,
};
use testkit::plug_in::PlugIn;

/// A controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Roots,
    Crls,
    Istiod,
    Intermediate,
    Signer,
    Workloads,
    Pods,
    TrustBundles,
    CertManager,
}

/// Their preparations run in this order: `Pods` uses an account of `Workloads`.
pub const ALL: [Kind; 9] = [
    Kind::Roots,
    Kind::Crls,
    Kind::Istiod,
    Kind::Intermediate,
    Kind::Signer,
    Kind::Workloads,
    Kind::Pods,
    Kind::TrustBundles,
    Kind::CertManager,
];

impl Kind {
    /// Its name in logs, metrics and readiness.
    pub fn name(self) -> &'static str {
        match self {
            Self::Roots => root_configmap::NAME,
            Self::Crls => crl_configmap::NAME,
            Self::Istiod => istiod_certificate::NAME,
            Self::Intermediate => intermediate::NAME,
            Self::Signer => csr_signer::NAME,
            Self::Workloads => workload_secrets::NAME,
            Self::Pods => pod_certificates::NAME,
            Self::TrustBundles => cluster_trust_bundle::NAME,
            Self::CertManager => certificate_requests::NAME,
        }
    }

    /// Its section in a cluster's configuration.
    pub fn toml(self, cluster: &Cluster) -> String {
        let namespace = &cluster.namespace;
        match self {
            Self::Roots => format!("[kubernetes.cluster.root_configmap]\nnamespace_selector = 'mesh={namespace}'\n"),
            Self::Crls => format!(
                "[kubernetes.cluster.crl_configmap]\n\
                 namespace_selector = 'kubernetes.io/metadata.name in ({namespace},{namespace}-c)'\n"
            ),
            Self::Istiod => format!("[kubernetes.cluster.istiod_certificate]\nnamespace = '{namespace}'\n"),
            Self::Intermediate => format!("[kubernetes.cluster.intermediate]\nnamespace = '{namespace}'\n"),
            Self::Signer => format!(
                "[[kubernetes.cluster.signer]]\nname = '{namespace}.example.com/istio'\n\
                 [[kubernetes.cluster.signer.requester]]\nusername = 'admin'\nmay = {{ dns_names = ['a.{namespace}.svc'] }}\n"
            ),
            Self::Workloads => format!("[kubernetes.cluster.workload_secrets]\nnamespaces = ['{namespace}']\n"),
            Self::Pods => format!(
                "[[kubernetes.cluster.pod_signer]]\nname = '{namespace}.example.com/pods'\n\
                 [[kubernetes.cluster.pod_signer]]\nname = '{namespace}.example.com/services'\n\
                 [[kubernetes.cluster.pod_signer.service]]\naccount = '{namespace}/web'\nnames = ['web']\n"
            ),
            Self::TrustBundles => {
                format!("[kubernetes.cluster.cluster_trust_bundle]\nsigners = ['{namespace}.example.com/pods']\n")
            }
            Self::CertManager => format!(
                "[kubernetes.cluster.cert_manager]\nclass = '{namespace}'\n\
                 [[kubernetes.cluster.cert_manager.profile]]\nname = 'web'\n\
                 [[kubernetes.cluster.cert_manager.profile.rule]]\nnamespaces = ['{namespace}']\n\
                 may = {{ dns_names = ['a.{namespace}.svc'] }}\n"
            ),
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
            Self::Crls => {
                cluster.make_namespace(&format!("{}-c", cluster.namespace)).await;
                let wrong = ConfigMap {
                    metadata: named("istio-ca-crl"),
                    data: Some([("ca-crl.pem".to_owned(), "wrong".to_owned())].into()),
                    ..ConfigMap::default()
                };
                cluster.api::<ConfigMap>().create(&PostParams::default(), &wrong).await.unwrap();
            }
            Self::Istiod | Self::Intermediate | Self::TrustBundles => {}
            Self::Pods => {
                let service = json!({"metadata": {"name": "web"},
                    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
                let service: Service = serde_json::from_value(service).unwrap();
                cluster.api::<Service>().create(&PostParams::default(), &service).await.unwrap();
                self.ask(cluster, "first").await;
                Self::request(cluster, "second", "services").await;
            }
            Self::Signer => self.ask(cluster, "first").await,
            Self::CertManager => {
                cert_manager::install_all(cluster).await;
                cert_manager::make_issuer(cluster, "web", "web").await;
                cert_manager::make_cluster_issuer(cluster, "web").await;
                self.ask(cluster, "first").await;
            }
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
            Self::TrustBundles => {
                let name = format!("{}.example.com:pods:root-cert", cluster.namespace);
                let signer = format!("{}.example.com/pods", cluster.namespace);
                trust_bundles::create(cluster, &name, &signer, &PlugIn::intermediate().root_cert).await;
            }
            Self::Roots | Self::Crls | Self::Signer | Self::Workloads | Self::Pods | Self::CertManager => {}
        }
    }

    /// Creates a pod with a PodCertificateRequest.
    async fn request(cluster: &Cluster, name: &str, signer: &str) {
        let kubelet = Kubelet::start(cluster).await;
        let signer = format!("{}.example.com/{signer}", cluster.namespace);
        let pod = kubelet.pod(name, "web", &signer, json!({"app": "web"})).await;
        kubelet.request(&pod, json!({"metadata": {"name": format!("{name}-{}", cluster.namespace)}})).await.unwrap();
    }

    /// Creates an approved CertificateSigningRequest or CertificateRequest, or a PodCertificateRequest.
    pub async fn ask(self, cluster: &Cluster, name: &str) {
        if self == Self::Pods {
            return Self::request(cluster, name, "pods").await;
        }
        let namespace = &cluster.namespace;
        if self == Self::CertManager {
            let api = cluster.api::<CertificateRequest>();
            let request = cert_manager::request(name, "web", &pem(&[&format!("a.{namespace}.svc")]));
            cert_manager::create(&cluster.client, Some(namespace), &request).await.unwrap();
            return cert_manager::set(&api, name, "Approved").await;
        }
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
            // Nothing is published without a section [revocation].
            Self::Crls => {
                for namespace in [cluster.namespace.clone(), format!("{}-c", cluster.namespace)] {
                    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
                    let crls = api.get_opt("istio-ca-crl").await.unwrap()?.data?.remove("ca-crl.pem")?;
                    crls.is_empty().then_some(())?;
                    serials.insert(format!("{namespace} CRLs"), crls);
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
            Self::CertManager => {
                for request in cluster.api::<CertificateRequest>().list(&Default::default()).await.unwrap() {
                    let pem =
                        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, request.status.certificate?)
                            .unwrap();
                    serials.insert(format!("request {}", request.metadata.name.unwrap()), certificate(&pem).0);
                }
                cert_manager::issuer_ready(cluster, "web").await?;
                let issuers: Api<HsmClusterIssuer> = Api::all(cluster.client.clone());
                condition(&issuers.get(&cluster.namespace).await.unwrap().status.conditions, "Ready")?;
            }
            Self::Workloads => {
                for secret in ["istio.web", "istio.old"] {
                    serials.insert(secret.into(), serial(&secrets, secret, "cert-chain.pem").await?);
                }
                if secrets.get_opt("istio.gone").await.unwrap().is_some() {
                    return None;
                }
            }
            Self::Pods => {
                for request in Kubelet::requests(cluster).list(&Default::default()).await.unwrap() {
                    let chain = request.data["status"]["certificateChain"].as_str()?.to_owned();
                    serials.insert(request.metadata.name.unwrap(), certificate(chain.as_bytes()).0);
                }
            }
            Self::TrustBundles => {
                let name = format!("{}.example.com:pods:root-cert", cluster.namespace);
                let roots = trust_bundles::read(cluster, &name).await?;
                let certificate = certificate(roots.as_bytes()).0;
                serials.insert(name, certificate);
            }
        }
        Some(serials)
    }

    /// Number of certificates needed to reach the desired state.
    pub fn certificates(self) -> u64 {
        match self {
            Self::Roots | Self::Crls | Self::TrustBundles => 0,
            Self::Istiod | Self::Intermediate | Self::Signer | Self::CertManager => 1,
            // The Secrets of the test's own accounts add to these.
            Self::Workloads => 2,
            Self::Pods => 2,
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
