//! `[kubernetes]`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::controllers::{
    Controller, Grants, certificate_requests::CertManager, checkpoints::Checkpoints,
    cluster_trust_bundle::ClusterTrustBundle, crl_configmap::CrlConfigMap, csr_signer::CsrSigner,
    intermediate::Intermediate, istiod_certificate::IstiodCertificate, pod_certificates::PodSigner,
    root_configmap::RootConfigMap, workload_secrets::WorkloadSecrets,
};
use crate::{
    auth::{ClusterName, jwt::settings::IssuerName},
    policy::ClusterRules,
};
use pki::identity::{Namespace, ServiceAccount, TrustDomain};

/// `[kubernetes]`. Without it the daemon connects to no API server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The daemon's namespace, which has its Lease. Default: that of the pod's service account.
    #[serde(default)]
    pub namespace: Option<Namespace>,
    /// The name under which this replica holds the Lease. Default: the host name, i.e. the pod's name.
    #[serde(default)]
    pub identity: Option<String>,
    /// The Lease for leader election, in the first cluster.
    #[serde(default = "Settings::default_lease")]
    pub lease: String,
    /// `[[kubernetes.cluster]]`.
    #[serde(default, rename = "cluster")]
    pub clusters: Vec<Cluster>,
    /// The ConfigMap with the state of revocation, from `[revocation] store`.
    #[serde(skip)]
    pub(crate) revocations: Option<String>,
    /// `[kubernetes.checkpoints]`: copies of the issuance log's checkpoints, in the first cluster.
    #[serde(default)]
    pub checkpoints: Option<Checkpoints>,
}

/// `[[kubernetes.cluster]]`: one API server, and the features that use it. A feature without section is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster ID: the `clusterid` that clients send.
    #[serde(default)]
    pub name: ClusterName,
    /// Default: the pod's service account.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The trust domain of its workloads. Default: the first of `[ca] trust_domains`.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// Authenticates workloads with the API server.
    #[serde(default)]
    pub token_review: Option<TokenReview>,
    /// Lets ztunnel request certificates for workloads on its node.
    #[serde(default)]
    pub node_impersonation: Option<NodeImpersonation>,
    /// Publishes the roots in every namespace.
    #[serde(default)]
    pub root_configmap: Option<RootConfigMap>,
    /// Publishes the CRLs in every namespace.
    #[serde(default)]
    pub crl_configmap: Option<CrlConfigMap>,
    /// Writes istiod's serving certificate as a Secret.
    #[serde(default)]
    pub istiod_certificate: Option<IstiodCertificate>,
    /// `[[kubernetes.cluster.signer]]`: signs CertificateSigningRequests.
    #[serde(default, rename = "signer")]
    pub signers: Vec<CsrSigner>,
    /// `[[kubernetes.cluster.pod_signer]]`: signs PodCertificateRequests.
    #[serde(default, rename = "pod_signer")]
    pub pod_signers: Vec<PodSigner>,
    /// Publishes the roots as ClusterTrustBundles.
    #[serde(default)]
    pub cluster_trust_bundle: Option<ClusterTrustBundle>,
    /// Issues a short-lived intermediate CA for istiod.
    #[serde(default)]
    pub intermediate: Option<Intermediate>,
    /// Writes a Secret with key and certificate for each service account.
    #[serde(default)]
    pub workload_secrets: Option<WorkloadSecrets>,
    /// Signs cert-manager's CertificateRequests.
    #[serde(default)]
    pub cert_manager: Option<CertManager>,
}

/// `[kubernetes.cluster.token_review]` (ISTIO: security/pkg/k8s/tokenreview/k8sauthn.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReview {
    /// The issuers (`iss`) whose JWTs this API server validates. No other API server receives them.
    pub issuers: Vec<IssuerName>,
    /// A JWT must be for one of these audiences. Istio: TOKEN_AUDIENCES, `istio-ca`.
    #[serde(default = "TokenReview::default_audiences")]
    pub audiences: Vec<String>,
    /// Namespaces whose workloads may obtain certificates; empty means all.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// How long a result is cached, never past the JWT's expiry.
    #[serde(default = "TokenReview::default_cache", with = "humantime_serde")]
    pub cache: Duration,
    /// The timeout of a TokenReview.
    #[serde(default = "TokenReview::default_timeout", with = "humantime_serde")]
    pub timeout: Duration,
}

/// `[kubernetes.cluster.node_impersonation]` (ISTIO: security/pkg/server/ca/node_auth.go).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeImpersonation {
    /// The trusted accounts, as `namespace/service-account`. Istio: CA_TRUSTED_NODE_ACCOUNTS, `istio-system/ztunnel`.
    #[serde(default = "NodeImpersonation::default_trusted_accounts")]
    pub trusted_accounts: Vec<Account>,
}

/// A service account with its namespace, written `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Account {
    /// The namespace.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ServiceAccount,
}

impl Settings {
    fn default_lease() -> String {
        "istio-hsm-ca".to_owned()
    }

    /// Whether a controller is configured that only the leader runs.
    #[must_use]
    pub fn needs_leader(&self) -> bool {
        self.clusters.iter().any(|cluster| !cluster.controllers().is_empty())
    }
}

impl Cluster {
    /// The configured controllers. Configuration, permissions, policy, `check` and the daemon all use this list.
    #[must_use]
    pub fn controllers(&self) -> Vec<Box<dyn Controller>> {
        let signers = Some(&self.signers).filter(|signers| !signers.is_empty());
        let pod_signers = Some(&self.pod_signers).filter(|signers| !signers.is_empty());
        [
            configured(self.root_configmap.as_ref()),
            configured(self.crl_configmap.as_ref()),
            configured(self.istiod_certificate.as_ref()),
            configured(self.workload_secrets.as_ref()),
            configured(signers),
            configured(self.intermediate.as_ref()),
            configured(pod_signers),
            configured(self.cluster_trust_bundle.as_ref()),
            configured(self.cert_manager.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The rules of policy for this cluster. `ca` is the first trust domain of the CA.
    #[must_use]
    pub fn rules(&self, ca: &TrustDomain) -> ClusterRules {
        let mut rules = ClusterRules {
            cluster: self.name.clone(),
            trust_domain: self.trust_domain.as_ref().unwrap_or(ca).clone(),
            controllers: Vec::new(),
            signers: Vec::new(),
            pod_signers: Vec::new(),
            profiles: Vec::new(),
        };
        for controller in self.controllers() {
            match controller.grants() {
                Grants::Nothing => {}
                Grants::Controller(granted) => rules.controllers.push(granted),
                Grants::Requesters(signers) => rules.signers.extend(signers),
                Grants::Pods(signers) => rules.pod_signers.extend(signers),
                Grants::Profiles(profiles) => rules.profiles.extend(profiles),
            }
        }
        rules
    }
}

fn configured<C: Controller + Clone + 'static>(section: Option<&C>) -> Option<Box<dyn Controller>> {
    section.map(|section| -> Box<dyn Controller> { Box::new(section.clone()) })
}

impl TokenReview {
    fn default_audiences() -> Vec<String> {
        vec!["istio-ca".to_owned()]
    }

    fn default_cache() -> Duration {
        Duration::from_secs(60)
    }

    fn default_timeout() -> Duration {
        Duration::from_secs(5)
    }
}

impl NodeImpersonation {
    fn default_trusted_accounts() -> Vec<Account> {
        Account::try_from("istio-system/ztunnel".to_owned()).into_iter().collect()
    }
}

impl TryFrom<String> for Account {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a service account; write namespace/service-account");
        let (namespace, service_account) = text.split_once('/').ok_or_else(wrong)?;
        Ok(Self {
            namespace: namespace.parse().map_err(|_| wrong())?,
            service_account: service_account.parse().map_err(|_| wrong())?,
        })
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}
